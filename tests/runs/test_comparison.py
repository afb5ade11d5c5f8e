"""Systems compared for real, for seconds."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.metrics.spread import Spread
from amae_plugin.runs import comparison as comparing
from amae_plugin.runs.comparison import CONTESTANTS, Comparison, Result, notes, table

CONFIG_DIR = Path(__file__).parents[2] / "config"
ODD = 'a=b, (c) Übung\'s "q" [d] {e} $f %g #h'
"""Name of a folder with what Hydra's grammar and shells take for something else."""
SMALLER = ["dataset.batch_size=4", "task.clips_per_update=4", "model.embed_dim=24", "model.depth=1"]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of two classes of 12 clips: noise, and a tone."""
    root, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("manifests") / ODD
    rng = np.random.default_rng(0)
    for name, level in (("noise", 0.0), ("tone", 0.3)):
        (root / name).mkdir()
        for index in range(12):
            tone = level * np.sin(np.arange(6400) * rng.uniform(0.3, 0.4))
            soundfile.write(root / name / f"{index}.wav", tone + 0.05 * rng.standard_normal(6400), 16_000)
    command = ["manifest", "folder", str(root), "--labels", "--valid-fraction", "0.25", "--test-fraction", "0.25"]
    assert main([*command, "--out", str(out)]) == 0
    return out


def test_a_comparison_from_the_command_line(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / ODD
    command = [str(Path(sys.executable).parent / "amae"), "compare", "--config-dir", str(CONFIG_DIR)]
    command += [
        "--pretrain",
        str(manifests),
        "--fine-tune",
        str(manifests),
        "--out",
        str(root),
        "--minutes",
        "0.2",
    ]
    command += ["--updates", "20", "--fractions", "1", "--systems", "mae-ast", "AST", "--set", *SMALLER]
    command += ["--set-fine-tuning", "dataset.batch_size=4", "task.clips_per_update=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Each training's command is printed, to be typed.
    typed = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("fairseq-hydra-train")]
    run = [json.loads(path.read_text())["arguments"] for path in root.rglob("settings.json")]
    assert sorted(run) == sorted(shlex.split(line)[1:] for line in typed)
    pretrained, scratch = json.loads((root / "comparison.json").read_text())["systems"]
    assert (pretrained["system"], scratch["system"]) == ("MAE-AST", "AST")
    # As many updates as fit the time, and the learning rate came to its end with it.
    log = (root / "mae-ast" / "seed_1" / "pretraining" / "output.log").read_text()
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
    assert set(pretrained["frozen"]) == {"k-NN", "linear probe"} and scratch["frozen"] == {}
    # Noise and a tone are told apart even by a network that learned for seconds.
    assert min(pretrained["frozen"].values()) >= 0.8
    page = (root / "comparison.md").read_text(encoding="utf-8")
    assert page in done.stdout
    table = re.sub(" +", " ", page)
    assert f"| MAE-AST | {pretrained['pretraining_seconds']:,.0f} s | {pretrained['pretraining_updates']:,} |" in table
    assert "| clips/s | fine-tuning, 100% of the labels | k-NN | linear probe |" in table
    accuracies = [pretrained["accuracy"]["100%"], *pretrained["frozen"].values()]
    assert f"{rate:,.1f} | {' | '.join(f'{accuracy:.1%}' for accuracy in accuracies)} |" in table
    assert f"| AST | none | | | | {scratch['accuracy']['100%']:.1%} | | |" in table
    assert "by chance: 50.0%" in table and "±" not in table
    assert (root / "comparison.png").stat().st_size > 10_000
    # The features were probed before the first update and as training went on.
    assert pretrained["probes"][0]["update"] == 0 and 1 <= len(pretrained["probes"]) <= 9
    assert all(0 <= probe["value"] <= 1 for probe in pretrained["probes"]) and scratch["probes"] == []
    assert all(update % 20 == 0 and loss > 0 for update, loss in pretrained["losses"])
    assert f"| MAE-AST | {pretrained['probes'][0]['value']:.1%} |" in table
    assert (root / "curves.png").stat().st_size > 10_000
    # Run again, nothing is trained or probed again; of another seed, only what is missing. The time of a run counts
    # whole, although a run that was killed has not logged it.
    output = root / "mae-ast" / "seed_1" / "pretraining" / "output.log"
    output.write_text(log.replace("done training in", "killed after"))
    kept = ("checkpoint_last.pt", "frozen.json")
    before = {path: path.stat().st_mtime for name in kept for path in root.rglob(name)}
    assert len(before) == 4
    monkeypatch.chdir(tmp_path)
    assert main([ODD if argument == str(root) else argument for argument in command[1:]]) == 0
    again = json.loads((root / "comparison.json").read_text())["systems"][0]
    assert again["pretraining_seconds"] == pretrained["pretraining_seconds"] == pytest.approx(12, abs=5)
    assert main([*command[1:], "--systems", "AST", "--seeds", "1", "2"]) == 0
    after = {path: path.stat().st_mtime for name in kept for path in root.rglob(name)}
    assert {path.parts[-4:-1] for path in after.keys() - before} == {("seed_2", "fine-tuning_100", "checkpoints")}
    assert {path: after[path] for path in before} == before
    one, two = json.loads((root / "comparison.json").read_text())["systems"]
    assert (one["seed"], two["seed"]) == (1, 2) and one["accuracy"] == scratch["accuracy"]
    settings = [root / "ast" / f"seed_{seed}" / "fine-tuning_100" / "settings.json" for seed in (1, 2)]
    seeds = [re.findall(r"common\.seed=(\d)", path.read_text()) for path in settings]
    assert seeds == [["1"], ["2"]]
    spread = Spread.of(run["accuracy"]["100%"] for run in (one, two))
    with (root / "comparison.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1:] == [["AST", "none", "", "", "", str(spread)]] and "±" in str(spread)
    assert str(spread) in (root / "comparison.md").read_text(encoding="utf-8")
    assert r"$\pm$" in (root / "comparison.tex").read_text(encoding="utf-8")
    # Of an encoder that was trained anew, no earlier fine-tuning counts.
    capsys.readouterr()
    os.utime(root / "mae-ast" / "seed_1" / "pretraining" / "checkpoints" / "checkpoint_last.pt")
    assert main(command[1:]) == 2
    holds = f"{root / 'mae-ast' / 'seed_1' / 'fine-tuning_100'} holds a training of another encoder than "
    assert holds in capsys.readouterr().err


def test_shares_of_the_labels_below_a_percent_are_told_apart(manifests: Path, tmp_path: Path) -> None:
    command = ["compare", "--config-dir", str(CONFIG_DIR), "--pretrain", str(manifests), "--fine-tune", str(manifests)]
    command += ["--out", str(tmp_path), "--systems", "AST", "--updates", "2", "--fractions", "0.004", "0.001"]
    assert main([*command, "--set-fine-tuning", "dataset.batch_size=4", "task.clips_per_update=4"]) == 0
    (result,) = json.loads((tmp_path / "comparison.json").read_text())["systems"]
    assert result["accuracy"].keys() == {"0.4%", "0.1%"}
    assert {path.parent.name for path in tmp_path.rglob("settings.json")} == {"fine-tuning_0.4", "fine-tuning_0.1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "Beats"], "--systems: no Beats; there are Audio-MAE, MAE-AST, SSAST, "),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--updates", "0", "--systems", "AST"], "AST is not pretrained, so with --updates 0 there is nothing to do"),
        (["--seeds", "1", "2", "1"], "--seeds 1 2 1: must be different numbers"),
        (["--fractions", "1.5"], "--fractions must be above 0 and at most 1"),
        (["--pretrain", "nowhere"], "nowhere: has no train.tsv, valid.tsv"),
        (["--config-dir", "nowhere"], "/nowhere/pretrain_audio_mae_tiny.yaml; "),
        (["--set", "task.pictures=1", "+dataset.disable_validation=true"], "--set +dataset.disable_validation=true: "),
        (["--set-fine-tuning", "common.log_format=tqdm"], "--set-fine-tuning common.log_format=tqdm: the comparison "),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config-dir", str(CONFIG_DIR), "--pretrain", str(manifests), "--fine-tune", str(manifests)]
    assert main([*command, "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_row_holds_the_means_of_its_seeds(manifests: Path, tmp_path: Path) -> None:
    names, seeds = tuple(CONTESTANTS)[:2], (3, 5)
    comparison = Comparison(manifests, manifests, tmp_path, systems=names, seeds=seeds)
    results = [
        Result(name, seed, {"10%": seed / 10}, {"k-NN": 0.25, "linear probe": seed / 100}, 100 * seed, 800, 60.0, 4)
        for seed in seeds
        for name in names
    ]
    row = ["60 s", "400", "800", "4.0", "40.0% ± 14.1", "25.0% ± 0.0", "4.0% ± 1.4"]
    assert table(results).rows == [[name, *row] for name in names]
    said = notes(results, comparison)
    assert said.startswith("Accuracy on the 6 clips of `test`; by chance: 50.0%.")
    assert said.endswith("Mean ± standard deviation of the seeds 3, 5.")


def test_curves_alone_and_what_failed(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With trainings that only write a log and a checkpoint, of which one fails."""
    started = []

    def complete(trainings, at_once, failures) -> None:
        for training in trainings:
            started.append(training)
            training.folder.mkdir(parents=True)
            seed = int(training.folder.parent.name[-1])
            if training.folder.parts[-3:-1] == ("m2d", "seed_2"):
                failures[training.folder] = UserError("broken")
                continue
            lines = [("train_inner", {"num_updates": 20 * update, "loss": 1 / update}) for update in range(1, 5)] + [
                (
                    "probe",
                    {"probe_accuracy": seed * number / 100, "probe_num_updates": 10 * number, "probe_seconds": at},
                )
                for number, at in enumerate((3, *(7.4 * step for step in range(1, 9))))
                if number != 4  # the machine was busy
            ]
            lines += [("valid", {"valid_num_updates": 80, "valid_loss": 0.2})]
            text = "\n".join(f"[][{tag}][INFO] - {json.dumps(values)}" for tag, values in lines)
            training.log.write_text(text)
            state = {"previous_training_time": 60.0}
            Checkpoint(training.checkpoint, {"model": {"_name": "amae_ssast"}}, {}, extra_state=state).write()

    monkeypatch.setattr(comparing, "complete", complete)
    monkeypatch.setattr(comparing, "_read_or_probe", lambda *_: {"k-NN": 0.5, "linear probe": 0.5})
    command = ["compare", "--config-dir", str(CONFIG_DIR), "--pretrain", str(manifests), "--fine-tune", str(manifests)]
    command += ["--out", str(tmp_path), "--minutes", "1", "--updates", "0", "--systems", "SSAST", "M2D"]
    assert main([*command, "--seeds", "1", "2"]) == 2
    output, error = capsys.readouterr()
    assert "1 failed, the rest is done: m2d/seed_2/pretraining: broken" in error
    assert "pretraining, 1 minutes: 4 runs" in output and "fine-tuning" not in output
    assert all("task.probe_minutes=0.1225" in training.arguments for training in started)
    rows = json.loads((tmp_path / "comparison.json").read_text())["systems"]
    assert [(row["system"], row["seed"]) for row in rows] == [("SSAST", 1), ("M2D", 1), ("SSAST", 2)]
    assert rows[0]["losses"][:2] == [[20, 1.0], [40, 0.5]] and len(rows[0]["probes"]) == 8
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["k-NN while pretraining", "at the start", "0.125 min", "0.25 min", "0.5 min", "1 min"],
            ["SSAST", "0.0% ± 0.0", "1.5% ± 0.7", "3.0% ± 1.4", "", "12.0% ± 5.7"],
            ["M2D", "0.0%", "1.0%", "2.0%", "", "8.0%"],
        ]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") in output
