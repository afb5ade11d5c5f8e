from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import (
    BIN,
    CONFIG_DIR,
    ENCODER,
    Run,
    amae,
    environment,
    train,
    train_in_turn,
    train_on_two_ranks,
    write_classes,
)

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.inspection import describe

RECIPE = "finetune_audio_mae_tiny"
SCRATCH = [*ENCODER, "model.layer_decay=1.0"]


def finetune(folder: Path, *overrides: str, cwd: Path | None = None) -> Run:
    return train(folder, *overrides, recipe=RECIPE, cwd=cwd)


def last(run: Run) -> Checkpoint:
    return Checkpoint.read(run.folder / "checkpoints" / "checkpoint_last.pt")


def test_from_manifest_to_number(labelled: Path, checkpoint: Path, tmp_path: Path) -> None:
    run = finetune(
        tmp_path / "run",
        f"task.data={labelled}",
        f"model.pretrained={checkpoint}",
        "optimization.max_update=200",
        "lr_scheduler.warmup_updates=20",
        "dataset.validate_interval_updates=40",
        "checkpoint.save_interval_updates=40",
        "model.mask_ratio_time=0",
        "model.mask_ratio_frequency=0",
    )
    assert run.returncode == 0, run.output
    assert f"encoder: {checkpoint}" in run.output
    losses = [float(loss) for loss in run.losses().values()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    validations = run.logged("valid")
    assert {"valid_loss", "valid_accuracy", "valid_macro_f1"} <= set(validations[-1])
    best = max(float(entry["valid_accuracy"]) for entry in validations)
    assert best > 0.8

    # The best checkpoint is the best by accuracy, and evaluating it gives the accuracy that was logged.
    path = run.folder / "checkpoints" / "checkpoint_best.pt"
    assert Checkpoint.read(path).extra_state["best"] == pytest.approx(best)
    done = amae("evaluate", str(path), "--data", str(labelled), "--split", "valid", "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["accuracy"] == pytest.approx(best)
    with (run.folder / "evaluation" / "valid" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12

    # Inspecting it tells the same; and its predictions for the files themselves are those of the evaluation.
    facts = describe(Checkpoint.read(path))
    assert facts["best"] == facts["last"] == pytest.approx(best)
    assert facts["updates"] in {int(v["valid_num_updates"]) for v in validations if float(v["valid_accuracy"]) == best}
    assert 0 < facts["train_loss"] < sum(losses[:5]) / 5
    assert (facts["metric"], facts["classes"], facts["max_update"]) == ("accuracy", ["high", "low", "noise"], 200)
    manifest = Manifest.read(labelled / "valid.tsv")
    for index, predictions in enumerate(load_model(path).predict([manifest[index].path for index in range(12)])):
        for label, probability in predictions:
            assert probability == pytest.approx(float(rows[index][f"p({label})"]), abs=1e-5)


def test_checkpoint_holds_all_that_is_needed(labelled: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "data")
    shutil.copy(checkpoint, tmp_path / "pretrained.pt")
    # Paths are taken from where the command is typed.
    run = finetune(
        Path("run"), "task.data=data", "model.pretrained=pretrained.pt", "optimization.max_update=3", cwd=tmp_path
    )
    assert run.returncode == 0, run.output
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "pretrained.pt").unlink()
    path = tmp_path / "run" / "checkpoints" / "checkpoint_last.pt"
    script = (
        "import sys, torch, amae_plugin\n"
        "from fairseq.checkpoint_utils import load_model_ensemble_and_task\n"
        "from amae_plugin.checkpoints import Checkpoint\n"
        "models, cfg, task = load_model_ensemble_and_task([sys.argv[1]])\n"
        "plain, source = Checkpoint.read(sys.argv[1]).model(), torch.randn(2, 128, 128)\n"
        "assert torch.equal(models[0].eval()(source)['logits'], plain(source)['logits'])\n"
        "print(task.state.classes)\n"
    )
    done = subprocess.run(
        [str(BIN / "python"), "-c", script, str(path)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.endswith("['high', 'low', 'noise']\n"), done.stderr
    assert Checkpoint.read(path).encoder_settings["embed_dim"] == 48


def test_frozen_encoder_stays_what_it_was(labelled: Path, checkpoint: Path, tmp_path: Path) -> None:
    run = finetune(
        tmp_path,
        f"task.data={labelled}",
        f"model.pretrained={checkpoint}",
        "model.frozen=true",
        "model.batch_norm=true",
        "optimization.max_update=5",
    )
    assert run.returncode == 0, run.output
    before, after = (
        {name: tensor for name, tensor in each.state.items() if name.startswith("encoder.")}
        for each in (Checkpoint.read(checkpoint), last(run))
    )
    assert set(before) == set(after)
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert last(run).state["head.weight"].abs().max() > 1e-4


EVERYTHING = [
    *SCRATCH,
    "task.mixup=0.5",
    "task.noise=0.1",
    "model.drop_path=0.3",
    "task.balanced_samples=20",
    "criterion.label_smoothing=0.1",
    "optimization.max_update=8",
    "dataset.validate_interval_updates=4",
]


def test_global_batch_and_measures_do_not_depend_on_how_they_are_cut(labelled: Path, tmp_path: Path) -> None:
    overrides = [*EVERYTHING, f"task.data={labelled}", "dataset.batch_size_valid=5"]
    at_once = finetune(tmp_path / "at_once", *overrides)
    accumulated = finetune(tmp_path / "accumulated", *overrides, "dataset.batch_size=4")
    on_two = train_on_two_ranks(tmp_path / "on_two", *overrides, "dataset.batch_size=4", recipe=RECIPE)
    for run in (at_once, accumulated, on_two):
        assert run.returncode == 0, run.output
    expected = {update: float(loss) for update, loss in at_once.losses().items()}
    assert len(expected) == 8
    for run in (accumulated, on_two):
        assert {update: float(loss) for update, loss in run.losses().items()} == pytest.approx(expected, rel=1e-5)
        for entry, reference in zip(run.logged("valid"), at_once.logged("valid"), strict=True):
            for name in ("valid_accuracy", "valid_macro_f1", "valid_loss"):
                assert float(entry[name]) == pytest.approx(float(reference[name]), rel=1e-5)


def test_a_run_continues_with_the_same_clips(labelled: Path, tmp_path: Path) -> None:
    overrides = [*EVERYTHING, f"task.data={labelled}", "checkpoint.save_interval_updates=5"]
    overrides += ["model.batch_norm=true", "ema.store_ema=true", "ema.ema_decay=0.9"]
    whole = finetune(tmp_path / "whole", *overrides, "checkpoint.keep_interval_updates=-1")
    assert whole.returncode == 0, whole.output
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True)
    (stopped,) = (tmp_path / "whole" / "checkpoints").glob("checkpoint_*_5.pt")
    shutil.copy(stopped, tmp_path / "resumed" / "checkpoints" / "checkpoint_last.pt")
    resumed = finetune(tmp_path / "resumed", *overrides)
    assert resumed.returncode == 0, resumed.output
    assert list(resumed.losses()) == [6, 7, 8]
    assert resumed.losses() == {update: whole.losses()[update] for update in (6, 7, 8)}
    averages = [last(run).extra_state["ema"] for run in (whole, resumed)]
    assert not torch.equal(averages[0]["head.weight"], last(whole).state["head.weight"])
    for name, value in averages[0].items():
        assert torch.equal(averages[1][name], value), name


def test_early_stopping_goes_by_the_measure(labelled: Path, tmp_path: Path) -> None:
    run = finetune(
        tmp_path,
        f"task.data={labelled}",
        *SCRATCH,
        "optimization.max_update=40",
        "optimization.lr=[1e-12]",
        "lr_scheduler.min_lr=0",
        "dataset.validate_interval_updates=2",
        "checkpoint.patience=3",
    )
    assert run.returncode == 0, run.output
    assert "early stop since valid performance hasn't improved for last 3 runs" in run.output
    assert [int(entry["valid_num_updates"]) for entry in run.logged("valid")] == [2, 4, 6, 8]


def test_several_labels_a_clip(labelled: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    (data / "labels.txt").write_text("high\nlow\nnoise\ntone\n")
    for path in data.glob("*.lbl"):
        path.write_text(path.read_text().replace("high", "tone,high").replace("low", "low,tone"))
    run = finetune(
        tmp_path / "run",
        f"task.data={data}",
        *SCRATCH,
        "task.multi_label=true",
        "checkpoint.best_checkpoint_metric=mAP",
        "optimization.max_update=30",
        "optimization.lr=[3e-3]",
        "task.augmentations=null",
        "task.mixup=0.0",
    )
    assert run.returncode == 0, run.output
    assert 0.5 < float(run.logged("valid")[-1]["valid_mAP"]) <= 1
    assert {"valid_mAUC", "valid_d_prime"} <= set(run.logged("valid")[-1])
    path = run.folder / "checkpoints" / "checkpoint_best.pt"
    done = amae("evaluate", str(path), "--data", str(data), "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout


def test_part_of_the_labels(labelled: Path, tmp_path: Path) -> None:
    overrides = [f"task.data={labelled}", *SCRATCH, "optimization.max_update=3", "task.label_fraction=0.25"]
    run = finetune(tmp_path, *overrides)
    assert run.returncode == 0, run.output
    assert "9 of 36 clips, as task.label_fraction says" in run.output


def test_folds_in_one_command(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_classes(tmp_path / f"audio{fold}", clips=8, seed=fold)
        done = amae(
            *("manifest", "folder", str(tmp_path / f"audio{fold}"), "--labels"),
            *("--out", str(tmp_path / "data" / f"fold{fold}"), "--valid-fraction", "0.25"),
        )
        assert done.returncode == 0, done.stderr
    arguments = [
        *(str(BIN / "fairseq-hydra-train"), "-m", "--config-dir", str(CONFIG_DIR)),
        *("--config-name", "finetune_audio_mae_esc50", "task.data=data", "task.fold=1,2", *SCRATCH),
        *("model.bf16=false", "model.compile=false", "task.target_length=64", "dataset.num_workers=1"),
        *("dataset.batch_size=8", "task.clips_per_update=8", "optimization.max_update=6", "common.log_interval=2"),
        "lr_scheduler.warmup_updates=2",
    ]
    done = subprocess.run(
        arguments,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    runs = tmp_path / "outputs" / "finetune_audio_mae_esc50"
    values = []
    for fold in (1, 2):
        # Each fold has a best checkpoint and curves of its own, though both ran in one process.
        read = Checkpoint.read(runs / f"fold{fold}" / "checkpoints" / "checkpoint_best.pt")
        assert read.config["task"]["fold"] == fold
        assert list((runs / f"fold{fold}" / "tensorboard" / "valid").glob("events.*"))
        values.append(last(Run(runs / f"fold{fold}", "", 0)).extra_state["val_loss"])
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    shown = amae("results", str(runs))
    for output in (done.stdout, shown.stdout):
        assert re.search(rf"^mean +{mean:.4f} ", output, re.M)
        assert re.search(rf"^std +{spread:.4f} ", output, re.M)


WRONG_SETTINGS = [
    (["model.pretrained=nowhere.pt"], "model.pretrained=nowhere.pt: there is no such checkpoint"),
    (["model.pretrained=null"], "model.encoder must say what to train from scratch"),
    (
        ["model.imagenet=a.pth", "model.pretrained={checkpoint}"],
        "model.pretrained and model.imagenet exclude each other",
    ),
    (["model.imagenet=a.pth", *ENCODER], "amae_audio_mae cannot start from an image model"),
    ([*ENCODER, "criterion.loss=mse"], "criterion.loss=mse: must be one of cross_entropy, bce"),
    ([*ENCODER, "task.mixup=2"], "task.mixup=2"),
    ([*ENCODER, "task.multi_label=true"], "best_checkpoint_metric=accuracy: with task.multi_label=true it must be"),
    ([*ENCODER, "task.label_fraction=0"], "task.label_fraction=0"),
    ([*ENCODER, "+task.batch_length=longest"], "task.batch_length=longest: evaluation and prediction pad clips to"),
    ([*ENCODER, "model.layer_decay=0"], "model.layer_decay=0"),
    ([*ENCODER, "dataset.train_subset=nothing"], "nothing.tsv"),
    ([*ENCODER, "task.data={unknown}"], "train.lbl, line 5: 'meduim' is not among the 3 classes"),
    ([*ENCODER, "task.data={short}"], "train.lbl has 35 lines, but the manifest beside it has 36 clips"),
]


@pytest.fixture(scope="module")
def refused(labelled: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """What became of each of the wrong settings."""
    folder = tmp_path_factory.mktemp("refused")
    paths = {"checkpoint": checkpoint, "unknown": folder / "unknown", "short": folder / "short"}
    lines = (labelled / "train.lbl").read_text().splitlines()
    for name, changed in (("unknown", [*lines[:4], "meduim", *lines[5:]]), ("short", lines[:-1])):
        shutil.copytree(labelled, paths[name])
        (paths[name] / "train.lbl").write_text("\n".join(changed) + "\n")
    runs = [[f"task.data={labelled}", *overrides] for overrides, _ in WRONG_SETTINGS]
    for overrides in runs:
        for name, path in paths.items():
            overrides[:] = [override.replace(f"{{{name}}}", str(path)) for override in overrides]
    return train_in_turn(folder, runs, "finetune_audio_mae_tiny")


@pytest.mark.parametrize("index", range(len(WRONG_SETTINGS)), ids=[message for _, message in WRONG_SETTINGS])
def test_wrong_settings_say_what_to_mend(index: int, refused: list[Run]) -> None:
    assert refused[index].returncode != 0
    assert WRONG_SETTINGS[index][1] in refused[index].output
