"""Systems compared for real, for seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amae_plugin.cli.main import main

CONFIG_DIR = Path(__file__).parents[2] / "config"
SMALLER = ["dataset.batch_size=4", "task.clips_per_update=4", "model.embed_dim=24", "model.depth=1"]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of two classes of 12 clips: noise, and a tone."""
    root, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("manifests")
    rng = np.random.default_rng(0)
    for name, level in (("noise", 0.0), ("tone", 0.3)):
        (root / name).mkdir()
        for index in range(12):
            tone = level * np.sin(np.arange(6400) * rng.uniform(0.3, 0.4))
            soundfile.write(root / name / f"{index}.wav", tone + 0.05 * rng.standard_normal(6400), 16_000)
    command = ["manifest", "folder", str(root), "--labels", "--valid-fraction", "0.25", "--test-fraction", "0.25"]
    assert main([*command, "--out", str(out)]) == 0
    return out


def test_a_comparison_from_the_command_line(manifests: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "amae"), "compare", "--config-dir", str(CONFIG_DIR)]
    command += [
        "--pretrain",
        str(manifests),
        "--fine-tune",
        str(manifests),
        "--out",
        str(tmp_path),
        "--minutes",
        "0.2",
    ]
    command += ["--updates", "20", "--fractions", "1", "--systems", "mae-ast", "AST", "--set", *SMALLER]
    command += ["--set-fine-tuning", "dataset.batch_size=4", "task.clips_per_update=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pretrained, scratch = json.loads((tmp_path / "comparison.json").read_text())["systems"]
    assert (pretrained["system"], scratch["system"]) == ("MAE-AST", "AST")
    # As many updates as fit the time, and the learning rate came to its end with it.
    log = (tmp_path / "mae-ast" / "pretraining" / "output.log").read_text()
    at_the_end = {name: float(value) for name, value in re.findall(r'"train_(lr|wall|num_updates)": "([^"]+)"', log)}
    assert at_the_end["num_updates"] == pretrained["pretraining_updates"] > 1
    assert 12 <= at_the_end["wall"] < 40
    assert at_the_end["lr"] < 5e-5, "a tenth of the recipe's"
    assert pretrained["pretraining_clips"] == 4 * pretrained["pretraining_updates"]
    rate = pretrained["pretraining_clips"] / pretrained["pretraining_seconds"]
    assert pretrained["pretraining_clips_per_second"] == pytest.approx(rate)
    assert pretrained["pretraining_loss"] > 0
    assert scratch["pretraining_updates"] == scratch["pretraining_seconds"] == 0
    assert all(0 <= result["accuracy"]["100%"] <= 1 for result in (pretrained, scratch))
    table = (tmp_path / "comparison.md").read_text()
    assert table in done.stdout
    assert f"| MAE-AST | {pretrained['pretraining_seconds']:,.0f} s | {pretrained['pretraining_updates']:,} |" in table
    assert f"| AST | none |  |  |  | {scratch['accuracy']['100%']:.1%} |" in table
    assert "By chance: 50.0%" in table
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    # Run again, nothing is trained again.
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("checkpoint_last.pt")}
    assert len(before) == 3
    assert main(command[1:]) == 0
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("checkpoint_last.pt")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "Beats"], "--systems: no BEATS; there are AUDIO-MAE, MAE-AST, SSAST, "),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--fractions", "1.5"], "--fractions must be above 0 and at most 1"),
        (["--pretrain", "nowhere"], "nowhere: has no train.tsv, valid.tsv"),
        (["--config-dir", "nowhere"], "no recipe nowhere/pretrain_audio_mae_tiny.yaml"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config-dir", str(CONFIG_DIR), "--pretrain", str(manifests), "--fine-tune", str(manifests)]
    assert main([*command, "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
