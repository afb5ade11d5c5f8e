"""Other ways of the data to the model train the same model: shards, and spectrograms computed where the model is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run, amae, command, run_in_turn, train, train_on_two_ranks

DEVICE = "task.features=device"


def losses(run: Run) -> np.ndarray:
    assert run.returncode == 0, run.output
    return np.array([float(loss) for loss in run.losses().values()])


def test_packed_clips_train_to_the_same_losses(labelled: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    done = amae("pack", str(labelled), "--out", str(packed), "--workers", "1")
    assert done.returncode == 0, done.stderr
    recipe, length = "pretrain_audio_mae_tiny", "optimization.max_update=3"
    runs = {
        tmp_path / data.name: command(recipe, tmp_path / data.name, [f"task.data={data}", length])
        for data in (labelled, packed)
    }
    plain, sharded = run_in_turn(runs)
    assert len(losses(plain)) == 3
    assert plain.losses() == sharded.losses()
    assert plain.logged("valid")[-1]["valid_loss"] == sharded.logged("valid")[-1]["valid_loss"]


@pytest.mark.parametrize("recipe", ["pretrain_audio_mae_tiny", "finetune_audio_mae_tiny"])
def test_spectrograms_on_the_device_train_as_those_of_the_workers(
    labelled: Path, checkpoint: Path, tmp_path: Path, recipe: str
) -> None:
    settings = [f"task.data={labelled}", "optimization.max_update=4", "checkpoint.save_interval_updates=2"]
    settings += ["checkpoint.keep_interval_updates=-1"]
    pictures = ["task.picture_interval=4"]
    if recipe.startswith("finetune"):
        pictures = []
        settings += [f"model.pretrained={checkpoint}", "task.mixup=0.5", "task.noise=0.1"]
    middle = tmp_path / "device" / "checkpoints" / "checkpoint_1_2.pt"
    runs = {
        tmp_path / "workers": settings,
        tmp_path / "device": [*settings, DEVICE, *pictures],
        tmp_path / "resumed": [*settings, DEVICE, f"checkpoint.restore_file={middle}"],
    }
    workers, device, resumed = run_in_turn({folder: command(recipe, folder, each) for folder, each in runs.items()})
    np.testing.assert_allclose(losses(device), losses(workers), rtol=1e-3)
    assert len(losses(device)) == 4 and "no picture after" not in device.output
    assert (tmp_path / "device" / "tensorboard" / "pictures").exists() == bool(pictures)
    assert resumed.losses() == {update: loss for update, loss in device.losses().items() if update > 2}
    assert resumed.logged("valid")[-1]["valid_loss"] == device.logged("valid")[-1]["valid_loss"]


def test_two_ranks_compute_spectrograms_as_one(corpus: Path, tmp_path: Path) -> None:
    settings = [f"task.data={corpus}", "optimization.max_update=3", DEVICE]
    alone = train(tmp_path / "alone", *settings)
    together = train_on_two_ranks(tmp_path / "together", *settings, "dataset.batch_size=4")
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-3)
