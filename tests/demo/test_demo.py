"""The whole demo, shrunk: real speech, real training, real pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.run import Demo, main, run
from amae_plugin.demo.words import SPEAKERS
from amae_plugin.errors import UserError
from amae_plugin.runs.training import read_losses

CONFIG_DIR = Path(__file__).parents[2] / "config"
HELD_OUT = [speaker for speaker in SPEAKERS if speaker.split == "valid"][:2]
VOICES = [
    *[speaker for speaker in SPEAKERS if speaker.split == "train"][:4],
    *HELD_OUT,
    *[speaker for speaker in SPEAKERS if speaker.split == "test"][:1],
]
SMALL = (
    "optimization.max_update=12",
    "task.clips_per_update=4",
    "dataset.batch_size=4",
    "dataset.validate_interval_updates=4",
    "checkpoint.save_interval_updates=4",
    "lr_scheduler.warmup_updates=2",
    "common.log_interval=1",
    "task.picture_interval=0",
    "model.embed_dim=48",
    "model.depth=1",
    "model.decoder_embed_dim=32",
    "model.decoder_depth=2",
)
SMALL_FINE_TUNING = (
    "task.clips_per_update=4",
    "dataset.batch_size=4",
    "dataset.validate_interval_updates=0",
    "checkpoint.save_interval_updates=0",
    "lr_scheduler.warmup_updates=1",
    "common.log_interval=1",
)


def demo(root: Path, overrides: tuple[str, ...] = SMALL) -> Demo:
    return Demo(
        root,
        CONFIG_DIR,
        clips_per_word=14,
        words=("cat", "seven"),
        speakers=VOICES,
        fractions={1.0: 6, 0.25: 4},
        overrides=overrides,
        fine_tuning_overrides=SMALL_FINE_TUNING,
    )


def log_of_pretraining(root: Path) -> Path:
    return root / "pretraining" / "output.log"


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished demo's folder, and what it printed."""
    root = tmp_path_factory.mktemp("demo") / "Démo, a=b (1)"
    with redirect_stdout(io.StringIO()) as printed:
        run(demo(root))
    return root, printed.getvalue()


def test_everything_is_there(first: tuple[Path, str]) -> None:
    root, printed = first
    for name in ("pretraining/checkpoints/checkpoint_last.pt", "loss.png", "reconstruction.png", "accuracy.png"):
        assert (root / name).stat().st_size > 10_000
        assert str(root / name) in printed
    for command in ("fairseq-hydra-train", "amae manifest folder", "amae stats", "from scratch"):
        assert command in printed


def test_held_out_voices_are_not_trained_on(first: tuple[Path, str]) -> None:
    root, _ = first
    voices = {}
    for split in ("train", "valid"):
        manifest = Manifest.read(root / "manifests" / f"{split}.tsv")
        voices[split] = {Path(manifest.name(i)).name.split("_")[0] for i in range(len(manifest))}
    assert voices["valid"] == {speaker.hash for speaker in HELD_OUT}
    assert not voices["valid"] & voices["train"]


def test_losses_are_those_logged(first: tuple[Path, str]) -> None:
    root, printed = first
    losses = read_losses(log_of_pretraining(root))
    assert [update for update, _ in losses["training"]] == list(range(1, 13))
    assert [update for update, _ in losses["validation"]] == [4, 8, 12]
    assert losses["validation"][-1][1] < losses["validation"][0][1]
    assert f"{losses['validation'][-1][1]:.3f} after 12" in printed


def test_accuracies_are_those_of_the_classifiers_on_unheard_voices(first: tuple[Path, str]) -> None:
    root, printed = first
    accuracies = json.loads((root / "accuracy.json").read_text())
    assert {labels: set(row) for labels, row in accuracies.items()} == {
        "100% of the labels": {"pretrained", "from scratch"},
        "25% of the labels": {"pretrained", "from scratch"},
    }
    for labels, row in accuracies.items():
        for start, accuracy in row.items():
            folder = root / "fine-tuning" / f"{start.replace(' ', '_')}_{labels.split('%')[0]}"
            with (folder / "evaluation" / "test" / "predictions.csv").open() as file:
                rows = list(csv.DictReader(file))
            assert accuracy == pytest.approx(sum(row["labels"] == row["predicted"] for row in rows) / len(rows))
            assert f"{accuracy:.1%}" in printed
    test = Manifest.read(root / "manifests" / "test.tsv")
    assert len(rows) == len(test)
    assert not {Path(row["path"]).name.split("_")[0] for row in rows} & {
        speaker.hash for speaker in VOICES if speaker.split != "test"
    }


def test_from_scratch_the_network_is_the_one_that_was_pretrained(first: tuple[Path, str]) -> None:
    root, _ = first
    pretrained, scratch = (
        Checkpoint.read(root / "fine-tuning" / name / "checkpoints" / "checkpoint_last.pt")
        for name in ("pretrained_100", "from_scratch_100")
    )
    assert {name: value.shape for name, value in pretrained.state.items()} == {
        name: value.shape for name, value in scratch.state.items()
    }
    assert pretrained.config["optimization"]["max_update"] == scratch.config["optimization"]["max_update"] == 6


def test_run_again_it_reuses_everything(first: tuple[Path, str]) -> None:
    root, printed = first
    before = contents(root)
    with redirect_stdout(io.StringIO()) as again:
        run(demo(root))
    assert contents(root) == before
    assert re.findall(r"loss: .*", again.getvalue()) == re.findall(r"loss: .*", printed)


def test_a_lost_picture_is_drawn_again(first: tuple[Path, str]) -> None:
    root, _ = first
    picture = root / "reconstruction.png"
    before = picture.read_bytes()
    picture.unlink()
    run(demo(root))
    assert picture.read_bytes() == before


def test_other_settings_are_refused(first: tuple[Path, str]) -> None:
    root, _ = first
    with pytest.raises(UserError, match=r"pretraining holds a training with other settings: delete it"):
        run(demo(root, (*SMALL, "optimization.lr=[0.1]")))


def test_killed_training_goes_on(first: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = first
    shutil.copytree(root / "words", tmp_path / "words")
    killed = demo(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from test_demo import *\nrun(demo(Path({str(tmp_path)!r})))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "pretraining" / "checkpoints" / "checkpoint_last.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "loss.png").exists()

    run(killed)
    losses = read_losses(log_of_pretraining(tmp_path))
    assert [update for update, _ in losses["training"]] == list(range(1, 13))
    assert losses == read_losses(log_of_pretraining(root))
    assert "Loaded checkpoint" in log_of_pretraining(tmp_path).read_text()
    assert (tmp_path / "reconstruction.png").exists()


def test_outside_the_repository_it_says_where_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--config-dir", str(tmp_path)]) == 2
    assert "run this from the root of the repository" in capsys.readouterr().err
