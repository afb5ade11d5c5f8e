"""Systems whose teacher follows the encoder: the same teacher however a batch is cut, and after a stop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import Run, amae, train, train_and_kill, train_in_turn, train_on_two_ranks
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint


def weights(run: Run, prefix: str) -> dict[str, Tensor]:
    state = Checkpoint.read(run.folder / "checkpoints" / "checkpoint_last.pt").state
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("recipe", "objectives", "parts"),
    [
        ("pretrain_m2d_tiny", {"cosine": 1}, ("blocks", "norm")),
        ("pretrain_eat_tiny", {"frame": 1, "utterance": 64}, ("patch_embed", "cls_token", "norm_pre", "blocks")),
    ],
)
def test_one_process_accumulation_two_ranks_and_a_kill_give_the_same_teacher(
    recipe: str, objectives: dict[str, float], parts: tuple[str, ...], corpus: Path, labelled: Path, tmp_path: Path
) -> None:
    # A fast teacher, whose difference from the encoder would show.
    decay = ["model.teacher_decay=[0.7,0.9]", "model.teacher_decay_updates=6"]
    settings = [f"task.data={corpus}", *decay, "optimization.max_update=12", "checkpoint.save_interval_updates=5"]
    # Probes of the features change nothing.
    in_pieces = [*settings, "dataset.batch_size=4", "task.probe_interval=5", f"task.probe_data={labelled}"]
    killed = train_and_kill(tmp_path / "2", 7, *settings, recipe=recipe)
    whole, accumulated, resumed = train_in_turn(tmp_path, [settings, in_pieces, settings], recipe)
    on_two = train_on_two_ranks(tmp_path / "two", *in_pieces, recipe=recipe)
    for run in (whole, accumulated, resumed, on_two):
        assert run.returncode == 0, run.output

    logged = whole.logged("train_inner")
    assert [int(entry["num_updates"]) for entry in logged] == list(range(1, 13))
    for entry in logged:
        total = sum(weight * float(entry[f"loss_{name}"]) for name, weight in objectives.items())
        assert float(entry["loss"]) == pytest.approx(total, rel=1e-4)
        assert float(entry["target_variance"]) > 0.1
        assert -1 <= float(entry["target_similarity"]) <= 1
        if "cosine" in objectives:
            similarity = 1 - float(entry["loss_cosine"]) / 2
            assert float(entry["target_similarity"]) == pytest.approx(similarity, abs=2e-3)
    for run in (accumulated, on_two):
        assert [int(entry["probe_num_updates"]) for entry in run.logged("probe")] == [0, 5, 10]
    teacher = weights(whole, "teacher.")
    assert teacher.keys() == {name for name in weights(whole, "encoder.") if name.startswith(parts)}
    for run in (accumulated, on_two):
        losses = {update: pytest.approx(float(loss), rel=1e-5) for update, loss in whole.losses().items()}
        assert {update: float(loss) for update, loss in run.losses().items()} == losses
        # A bias of keys has no gradient but rounding errors, which Adam makes steps of.
        for name, value in weights(run, "teacher.").items():
            torch.testing.assert_close(value, teacher[name], rtol=1e-4, atol=1e-4)
    # Updates after the last checkpoint are done again.
    assert 7 <= max(killed.losses()) < 12 and (min(resumed.losses()), max(resumed.losses())) == (6, 12)
    for run in (killed, resumed):
        assert all(loss == whole.losses()[update] for update, loss in run.losses().items())
    for name, value in weights(resumed, "teacher.").items():
        assert torch.equal(value, teacher[name])

    path = str(whole.folder / "checkpoints" / "checkpoint_last.pt")
    *others, last = parts
    shown = f"moving average of the encoder's {', '.join(others)} and {last}, decay 0.7 to 0.9 over 6 updates"
    assert shown in amae("inspect", path).stdout
    refused = amae("reconstruct", path, str(corpus), "--out", str(tmp_path / "page"))
    assert refused.returncode == 2 and f"(its objectives: {', '.join(objectives)})" in refused.stderr


def test_fine_tuning_takes_the_encoder_with_its_front_end_and_bands(labelled: Path, tmp_path: Path) -> None:
    pretrained = train(
        tmp_path / "m2d", f"task.data={labelled}", "optimization.max_update=3", recipe="pretrain_m2d_tiny"
    )
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
    assert re.search(rf"^accuracy +{float(valid['valid_accuracy']):.4f} ", done.stdout, re.M)
