"""Systems whose teacher follows the encoder: the same teacher however a batch is cut, and after a stop."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from conftest import amae, train, train_in_turn, train_on_two_ranks
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint

RECIPE = "pretrain_m2d_tiny"


def weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    state = Checkpoint.read(folder / "checkpoints" / "checkpoint_last.pt").state
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_one_process_accumulation_two_ranks_and_a_stop_give_the_same_teacher(corpus: Path, tmp_path: Path) -> None:
    # A fast teacher, whose difference from the encoder would show.
    decay = ["model.teacher_decay=[0.7,0.9]", "model.teacher_decay_updates=6"]
    settings = [f"task.data={corpus}", *decay, "+lr_scheduler.max_update=6"]
    last = "optimization.max_update=6"
    whole, accumulated, stopped = train_in_turn(
        tmp_path,
        [
            [*settings, last],
            [*settings, last, "dataset.batch_size=4"],
            [*settings, "optimization.max_update=3"],
        ],
        RECIPE,
    )
    on_two = train_on_two_ranks(tmp_path / "two", *settings, last, "dataset.batch_size=4", recipe=RECIPE)
    resumed = train(stopped.folder, *settings, last, recipe=RECIPE)
    for run in (whole, accumulated, stopped, on_two, resumed):
        assert run.returncode == 0, run.output
    losses = {update: float(loss) for update, loss in whole.losses().items()}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    teacher, encoder = weights(whole.folder, "teacher."), weights(whole.folder, "encoder.")
    assert teacher.keys() == {name for name in encoder if name.startswith(("blocks.", "norm."))}
    for run in (accumulated, on_two):
        for update, loss in run.losses().items():
            torch.testing.assert_close(float(loss), losses[update], rtol=1e-5, atol=0)
        for name, value in weights(run.folder, "teacher.").items():
            torch.testing.assert_close(value, teacher[name], rtol=1e-4, atol=2e-5)
    for update, loss in resumed.losses().items():
        assert update > 3 and loss == whole.losses()[update]
    for name, value in weights(resumed.folder, "teacher.").items():
        assert torch.equal(value, teacher[name])
    (entry, *_) = whole.logged("train_inner")
    assert float(entry["loss"]) == float(entry["loss_cosine"]) and float(entry["target_variance"]) > 0

    path = str(whole.folder / "checkpoints" / "checkpoint_last.pt")
    shown = amae("inspect", path).stdout
    assert "moving average of the encoder's blocks and norm, decay 0.7 to 0.9 over 6 updates" in shown
    refused = amae("reconstruct", path, str(corpus), "--out", str(tmp_path / "page"))
    assert refused.returncode == 2 and "(its objectives: cosine)" in refused.stderr


def test_fine_tuning_takes_the_encoder_with_its_front_end_and_bands(labelled: Path, tmp_path: Path) -> None:
    pretrained = train(tmp_path / "m2d", f"task.data={labelled}", "optimization.max_update=3", recipe=RECIPE)
    assert pretrained.returncode == 0, pretrained.output
    run = train(
        tmp_path / "classifier",
        f"task.data={labelled}",
        f"model.pretrained={tmp_path / 'm2d' / 'checkpoints' / 'checkpoint_last.pt'}",
        "task.clips_per_epoch=32",
        "task.epochs=4",
        "task.clips_per_update=8",
        "task.target_length=64",
        *("dataset.batch_size=8", "dataset.num_workers=1", "model.compile=false", "optimization.lr=[0.01]"),
        recipe="finetune_m2d_spc2",
        smaller=[],
    )
    assert run.returncode == 0, run.output
    path = tmp_path / "classifier" / "checkpoints" / "checkpoint_last.pt"
    checkpoint = Checkpoint.read(path)
    assert (checkpoint.input.front_end.name, checkpoint.input.num_mel_bins) == ("slaney", 80)
    assert (checkpoint.input.mean, checkpoint.input.std, checkpoint.input.normalization) == (-7.1, 4.2, "one_std")
    assert not any("teacher" in name for name in checkpoint.state)
    done = amae("evaluate", str(path), "--data", str(labelled), "--split", "valid")
    assert done.returncode == 0, done.stderr
    (valid, *_) = reversed(run.logged("valid"))
    assert re.search(rf"^accuracy +{float(valid['valid_accuracy']):.4f}$", done.stdout, re.M)
