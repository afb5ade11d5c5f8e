"""Where a run begins: its checkpoint, the place in the data, what must fit, and when nothing is left to do."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq.data.iterators import GroupedIterator
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq_cli.train import should_stop_early
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from amae_plugin.cluster import signals
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import launch, patches, resuming
from amae_plugin.fairseq_plugin.batches import EpochBatches
from amae_plugin.fairseq_plugin.classification import AmaeClassificationTask, AmaeClassificationTaskConfig
from amae_plugin.fairseq_plugin.launch import Run
from amae_plugin.fairseq_plugin.resuming import Finished

CLIPS = 47


@pytest.fixture(scope="module")
def folder(write_split: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [(["a" if index % 2 else "b"], 0.3 + 0.02 * (index % 9), 16000) for index in range(CLIPS)]
    return write_split(tmp_path_factory.mktemp("clips"), clips, ["a", "b"], split="train")


def task(folder: Path, **settings: object) -> AmaeClassificationTask:
    values = {"data": str(folder), "target_length": 64, "seed": 1, "bf16": False, "fp16": False}
    values |= {"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True}
    config = OmegaConf.merge(OmegaConf.structured(AmaeClassificationTaskConfig), {**values, **settings})
    made = AmaeClassificationTask(OmegaConf.create({"task": config, "optimization": {"update_freq": [1]}}).task)
    made.load_dataset("train")
    return made


@pytest.fixture(scope="module")
def tasks(folder: Path) -> dict[str, AmaeClassificationTask]:
    return {length: task(folder, batch_length=length) for length in ("fixed", "longest")}


@pytest.fixture(scope="module")
def made(tasks: dict[str, AmaeClassificationTask]) -> AmaeClassificationTask:
    return tasks["fixed"]


def iterators(
    made: AmaeClassificationTask, batch: int, shards: int, epoch: int = 2, frequency: int = 1
) -> list[EpochBatches]:
    dataset = made.dataset("train")
    made.cfg._parent.optimization.update_freq = [frequency]
    return [
        made.get_batch_iterator(dataset, max_sentences=batch, epoch=epoch, num_shards=shards, shard_id=shard)
        for shard in range(shards)
    ]


def updates(devices: list[EpochBatches], frequency: int) -> list[list[int]]:
    """Clips of each update that is left, as fairseq groups the batches of all devices; nothing is decoded."""
    left = [list(device.next_epoch_itr()._itr._itr._sampler_iter) for device in devices]
    turns = [[*chain.from_iterable(turn)] for turn in zip(*left, strict=True)]
    return [[*chain.from_iterable(turns[start : start + frequency])] for start in range(0, len(turns), frequency)]


def saved_after(devices: list[EpochBatches], turns: int) -> dict:
    for device in devices:
        device.next_epoch_itr().n = turns
    return devices[0].state_dict()


# Global batches of 8 clips: clips of a batch, devices, and accumulation steps.
CUTS = st.sampled_from([(1, 1, 8), (8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2), (1, 8, 1), (4, 2, 1), (4, 1, 2)])


@given(CUTS, CUTS, st.integers(1, 5))
def test_a_global_batch_cut_otherwise_continues_with_the_same_clips(
    made: AmaeClassificationTask, before: tuple[int, int, int], after: tuple[int, int, int], done: int
) -> None:
    batch, shards, frequency = before
    whole = updates(iterators(made, batch, shards), frequency)
    assert sorted(chain.from_iterable(whole)) == list(range(CLIPS))
    state = saved_after(iterators(made, batch, shards), done * frequency)
    batch, shards, frequency = after
    resumed = iterators(made, batch, shards)
    for device in resumed:
        device.load_state_dict(state)
    assert updates(resumed, frequency) == whole[done:]


@given(CUTS, st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)), st.integers(1, 5), st.integers(1, 5))
def test_another_global_batch_leaves_out_no_clip_and_repeats_none(
    made: AmaeClassificationTask, before: tuple[int, int, int], after: tuple[int, int, int], done: int, more: int
) -> None:
    batch, shards, frequency = before
    whole = [*chain.from_iterable(updates(iterators(made, batch, shards), frequency))]
    state, seen = saved_after(iterators(made, batch, shards), done * frequency), 8 * done
    for batch, shards, _ in (after, before):  # twice: the second place is one in batches that lack clips
        resumed = iterators(made, batch, shards)
        for device in resumed:
            device.load_state_dict(state)
        assert [*chain.from_iterable(updates(resumed, 1))] == whole[seen:]
        turns = state["place"]["clips"] // (batch * shards) + more
        if turns * batch * shards >= CLIPS:
            break
        state = saved_after(resumed, turns)
        seen = state["place"]["clips"]
        assert seen == turns * batch * shards


def grouped(device: EpochBatches, frequency: int) -> GroupedIterator:
    """A device's updates as fairseq trains them; nothing is decoded."""
    batches = device.next_epoch_itr()
    batches._itr = iter([{"clips": [*batch]} for batch in batches._itr._itr._sampler_iter])
    return GroupedIterator(batches, frequency)


def clips_of(turn: tuple[list[dict], ...]) -> list[int]:
    """Clips of an update, of which each device has a group of batches."""
    return [
        clip for batches in zip_longest(*turn, fillvalue={"clips": []}) for part in batches for clip in part["clips"]
    ]


ANY_CUT = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5))


@pytest.mark.parametrize("length", ["fixed", "longest"])
@given(before=ANY_CUT, after=ANY_CUT, share=st.floats(0, 1, exclude_max=True))
def test_any_number_of_batches_an_update_trains_the_rest_of_the_epoch_once(
    length: str, tasks: dict[str, AmaeClassificationTask], before: tuple[int, ...], after: tuple[int, ...], share: float
) -> None:
    batch, shards, frequency = before
    turns = updates(iterators(tasks[length], batch, shards), 1)
    done = int(share * -(-len(turns) // frequency)) * frequency
    state = saved_after(iterators(tasks[length], batch, shards), done)
    left = [*chain.from_iterable(turns[done:])]
    if length == "fixed":
        batch, shards, _ = after
    frequency = after[2]
    resumed = iterators(tasks[length], batch, shards, frequency=frequency)
    for device in resumed:
        device.load_state_dict(state)
    trained: list[int] = []
    for turn in zip(*(grouped(device, frequency) for device in resumed), strict=True):
        trained += clips_of(turn)
        place = resumed[0].state_dict()["place"]
        assert place.get("clips") in (None, (CLIPS - len(left) + len(trained)) % CLIPS)
    assert trained == left
    for device in resumed:
        assert device.state_dict() == {**device.state_dict(), "epoch": 3, "iterations_in_epoch": 0}
        assert device.next_epoch_idx == 3


SHORTER = [({"balanced_samples": 40}, {"balanced_samples": 20}), ({}, {"label_fraction": 0.3})]


@pytest.mark.parametrize(("before", "after"), SHORTER, ids=["balanced_samples", "label_fraction"])
@pytest.mark.parametrize("place", [True, False], ids=["in clips", "in batches"])
def test_an_epoch_that_has_become_shorter_than_the_place_in_it_is_over(
    before: dict[str, float], after: dict[str, float], place: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved_after(iterators(task(folder, **before), 4, 1), 8)
    if not place:  # an old checkpoint's
        del state["place"]
    shorter = task(folder, **after)
    for shards in (1, 2):
        resumed = iterators(shorter, 4, shards)
        for device in resumed:
            device.load_state_dict(state)
            assert (device.epoch, device.next_epoch_idx, device.iterations_in_epoch) == (3, 3, 0)
        assert "task.balanced_samples and task.label_fraction; the next one begins" in caplog.text
        assert updates(resumed, 1) == updates(iterators(shorter, 4, shards, epoch=3), 1)


def test_batches_of_clips_of_one_length_continue_as_they_are_or_say_that_they_cannot(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = task(folder, batch_length="longest")
    whole = updates(iterators(made, 4, 1), 2)
    state = saved_after(iterators(made, 4, 1), 4)
    for shards, frequency in ((1, 2), (2, 1)):
        resumed = iterators(made, 4, shards)
        for device in resumed:
            device.load_state_dict(state)
        assert updates(resumed, frequency) == whole[2:]
    assert not caplog.records
    resumed = iterators(made, 2, 1)
    resumed[0].load_state_dict(state)
    assert abs(len(updates(resumed, 1)) - 2 * 8) <= 1
    assert "some clips come once more and some not at all" in caplog.text


@pytest.mark.parametrize("within", [True, False])
def test_another_manifest_is_an_error_within_an_epoch_and_else_told(
    within: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved_after(iterators(task(folder), 4, 1), 3 if within else 12)
    assert (state["iterations_in_epoch"] > 0) == within
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("train.tsv", "train.lbl"):
        lines = (folder / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(lines[:-5]) + "\n")
    (resumed,) = iterators(task(tmp_path), 4, 1)
    if within:
        with pytest.raises(
            UserError,
            match=r"train\.tsv lists 42 clips, and listed 47 .* another folder \(hydra\.run\.dir=.* checkpoint\.reset_",
        ):
            resumed.load_state_dict(state)
    else:
        resumed.load_state_dict(state)
        assert "train.tsv lists 42 clips, and listed 47 for the checkpoint" in caplog.text


def test_a_manifest_in_another_order_is_told(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = saved_after(iterators(task(folder), 4, 1), 3)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    root, *lines = (folder / "train.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text("\n".join([root, *reversed(lines)]) + "\n")
    iterators(task(tmp_path), 4, 1)[0].load_state_dict(state)
    assert "train.tsv lists other clips, or in another order, than for the checkpoint" in caplog.text


WHOLE = {
    "model": {"weight": torch.zeros(1)},
    "cfg": {"task": {"mean": 0.0}},
    "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}},
    "optimizer_history": [{}],
}


@pytest.mark.parametrize(
    ("changed", "entry"),
    [
        ({"model": None}, "model"),
        ({"cfg": None}, "cfg.task"),
        ({"cfg": {"model": {}}}, "cfg.task"),
        ({"extra_state": None}, "extra_state"),
        ({"extra_state": [1]}, "extra_state"),
        ({"optimizer_history": []}, "optimizer_history"),
    ],
)
def test_weights_that_are_no_checkpoint_of_a_run_are_an_error(changed: dict, entry: str, tmp_path: Path) -> None:
    torch.save({**WHOLE, **changed}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=rf"weights\.pt: not a checkpoint of a fairseq run, .* an entry {entry}$"):
        resuming.read_checkpoint(str(tmp_path / "weights.pt"))


def test_an_old_checkpoint_counts_batches_of_its_own_size(tmp_path: Path) -> None:
    settings = {"dataset": {"batch_size": 4}, "distributed_training": {"distributed_world_size": 2}}
    state = {**WHOLE, "cfg": {"task": {"mean": 0.0}, **settings}}
    torch.save(state, tmp_path / "old.pt")
    read = resuming.read_checkpoint(str(tmp_path / "old.pt"))
    assert read["extra_state"]["train_iterator"]["place"] == {"batches": 6, "shards": 2, "clips": 24}


@pytest.mark.parametrize("kept", [True, False])
def test_a_moving_average_begins_with_the_weights_of_a_checkpoint_that_keeps_none(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, average = {"weight": torch.ones(2)}, {"weight": torch.zeros(2)}
    state = {**WHOLE, "model": weights, "extra_state": {"train_iterator": {}, **({"ema": average} if kept else {})}}
    torch.save(state, tmp_path / "x.pt")
    for stores in (True, False):
        cfg = OmegaConf.create({"checkpoint": {"save_dir": str(tmp_path)}, "ema": {"store_ema": stores}})
        caplog.clear()
        read = Run(cfg, requeues=0).read_checkpoint(str(tmp_path / "x.pt"))
        assert ("ema" in read["extra_state"]) == (kept or stores)
        if stores:
            assert torch.equal(read["extra_state"]["ema"]["weight"], (average if kept else weights)["weight"])
        assert ("x.pt keeps no moving average" in caplog.text) == (stores and not kept)


def section(folder: Path, **settings: object) -> DictConfig:
    checkpoint = OmegaConf.structured(FairseqConfig()).checkpoint
    return OmegaConf.merge(checkpoint, {"save_dir": str(folder), **settings})


@pytest.mark.parametrize("key", ["restore_file", "finetune_from_model", "continue_once"])
def test_a_checkpoint_that_is_named_and_missing_is_an_error(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"checkpoint\.{key}=nowhere\.pt: there is no such file"):
        resuming.choose_checkpoint(section(tmp_path, **{key: "nowhere.pt"}), restarted=False)


def test_a_name_of_the_runs_own_folder_gets_its_path_as_advice(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_best.pt").touch()
    with pytest.raises(UserError, match=rf"restore_file=checkpoint_best\.pt: .*; write {tmp_path}/checkpoint_best\.pt"):
        resuming.choose_checkpoint(section(tmp_path, restore_file="checkpoint_best.pt"), restarted=False)


def test_checkpoints_without_the_last_one_are_not_overwritten(tmp_path: Path) -> None:
    resuming.choose_checkpoint(section(tmp_path), restarted=False)
    (tmp_path / "checkpoint_best.pt").touch()
    with pytest.raises(UserError, match=rf"no checkpoint_last\.pt.*restore_file={tmp_path}/checkpoint_best\.pt"):
        resuming.choose_checkpoint(section(tmp_path), restarted=False)


def test_a_job_that_was_started_again_continues_from_its_own_checkpoint(tmp_path: Path) -> None:
    given = {"restore_file": "elsewhere.pt", "reset_optimizer": True, "reset_dataloader": True}
    (tmp_path / resuming.LAST).touch()
    chosen = section(tmp_path, **given)
    resuming.choose_checkpoint(chosen, restarted=True)
    assert (chosen.restore_file, chosen.reset_optimizer, chosen.reset_dataloader) == (resuming.LAST, False, False)


def test_a_torn_checkpoint_names_an_earlier_one(tmp_path: Path) -> None:
    for name, content in (("checkpoint_1_5.pt", b""), ("checkpoint_best.pt", b""), (resuming.LAST, b"PK\3\4torn")):
        (tmp_path / name).write_bytes(content)
    os.utime(tmp_path / "checkpoint_1_5.pt", (1, 1))
    with pytest.raises(UserError, match=rf"{resuming.LAST}: .*; an earlier one: .*={tmp_path}/checkpoint_best\.pt$"):
        resuming.read_checkpoint(str(tmp_path / resuming.LAST))


def run_of(made: AmaeClassificationTask, **settings: object) -> SimpleNamespace:
    """What a comparison asks of a trainer."""
    assert made.state.classes
    cfg = {"task": made.cfg, "model": {"pooling": "mean", "depth": 2}, "optimization": {"lr": [0.1]}}
    cfg |= {"checkpoint": {"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True}, **settings}
    return SimpleNamespace(task=made, cfg=OmegaConf.create(OmegaConf.to_container(OmegaConf.create(cfg))))


def checkpoint_of(trainer: SimpleNamespace) -> dict:
    cfg = OmegaConf.to_container(trainer.cfg)
    classes = list(trainer.task.state.classes)
    whole = {"task_state": {"classes": classes}, "last_optimizer_state": {"state": {}}, "extra_state": {}}
    return {"cfg": cfg, **whole}


def test_a_checkpoint_of_the_same_run_fits(folder: Path) -> None:
    trainer = run_of(task(folder))
    assert list(resuming.compare("x.pt", checkpoint_of(trainer), trainer, True)) == []
    old = {"cfg": {"task": trainer.cfg.task}, "extra_state": {}}
    assert list(resuming.compare("x.pt", {**old, "last_optimizer_state": {"state": {}}}, trainer, True)) == []
    with pytest.raises(UserError, match=r"x\.pt holds no state of the optimizer.*; begin another run"):
        list(resuming.compare("x.pt", old, trainer, True))
    with pytest.raises(UserError, match=r"x\.pt: the settings of its task describe no input of a model \(std is -1"):
        list(resuming.compare("x.pt", {"cfg": {"task": {**trainer.cfg.task, "std": -1}}}, trainer, False))


@pytest.mark.parametrize("resumes", [True, False])
def test_other_classes_are_an_error_where_a_run_continues(resumes: bool, folder: Path, tmp_path: Path) -> None:
    state = checkpoint_of(run_of(task(folder)))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "labels.txt").write_text("b\na\n")
    trainer = run_of(task(tmp_path))
    message = f"x.pt: {tmp_path}/labels.txt, line 1: b, where the checkpoint's classes have a; restore the list"
    if resumes:
        with pytest.raises(UserError, match=message):
            list(resuming.compare("x.pt", state, trainer, resumes))
    else:
        assert next(resuming.compare("x.pt", state, trainer, resumes)).startswith(message)
        assert trainer.task.state.classes == ["b", "a"]


@pytest.mark.parametrize(
    "changed", [{"mean": 1.0}, {"std": 2.0}, {"window_type": "povey"}, {"target_length": 32}, {"num_mel_bins": 64}]
)
def test_another_input_is_an_error_where_a_run_continues(changed: dict, folder: Path) -> None:
    state, trainer = checkpoint_of(run_of(task(folder))), run_of(task(folder, **changed))
    (key, value), *_ = changed.items()
    with pytest.raises(UserError, match=rf"x\.pt .* another input .*: task\.{key} \(.* there, {value} here\)"):
        list(resuming.compare("x.pt", state, trainer, True))
    assert any(f"task.{key}=" in line for line in resuming.compare("x.pt", state, trainer, False))


def test_other_settings_are_told_with_both_values(folder: Path) -> None:
    state = checkpoint_of(run_of(task(folder)))
    trainer = run_of(task(folder, seed=2, max_bad_audio=7), model={"pooling": "cls", "depth": 2, "new": 1})
    assert sorted(resuming.compare("x.pt", state, trainer, True)) == [
        "x.pt was written with model.pooling=mean, this run has cls",
        "x.pt was written with task.seed=1, this run has 2",
    ]


@pytest.mark.parametrize("change", [{"best_checkpoint_metric": "loss"}, {"maximize_best_checkpoint_metric": False}])
def test_the_best_result_by_another_measure_does_not_count(change: dict, made: AmaeClassificationTask) -> None:
    trainer = run_of(made)
    measure = trainer.cfg.checkpoint
    state = {**checkpoint_of(trainer), "extra_state": {"best": 0.9, "val_loss": 0.8}}
    state["extra_state"][type(made).__name__] = {"best": 0.9, "num_runs": 2.0, "seconds": 7.0}
    whole = copy.deepcopy(state)
    assert list(resuming.compare("x.pt", state, trainer, True)) == [] and state == whole
    (key, value), *_ = change.items()
    (told,) = resuming.compare("x.pt", state, run_of(made, checkpoint={**measure, **change}), True)
    assert told.startswith(f"x.pt was written with checkpoint.{key}={measure[key]}, this run has {value}: its best ")
    assert state["extra_state"] == {type(made).__name__: {"seconds": 7.0}}


@pytest.mark.parametrize("swept", ["common.seed", "task.data", "model"])
def test_a_sweep_continues_no_run_of_another_sweep(
    swept: str, made: AmaeClassificationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run_of(made, common={"seed": 1})
    trainer.cfg.checkpoint.save_dir = str(tmp_path)
    state = checkpoint_of(trainer)
    monkeypatch.setenv("AMAE_SWEPT", f"optimization.lr {swept}")
    assert list(resuming.compare(str(tmp_path / "x.pt"), state, trainer, True)) == []
    other = OmegaConf.to_container(trainer.cfg)
    changes = {"common.seed": ("common", "seed", 2), "task.data": ("task", "data", "x"), "model": ("model", "depth", 3)}
    section, key, value = changes[swept]
    other[section][key] = value
    state["cfg"] = other
    with pytest.raises(UserError, match=rf"x\.pt is of another sweep: {swept} is .*{value}.* there and .*sweep\.dir"):
        list(resuming.compare(str(tmp_path / "x.pt"), state, trainer, True))
    list(resuming.compare("elsewhere/x.pt", state, trainer, True))  # from which all jobs may go on
    monkeypatch.delenv("AMAE_SWEPT")
    list(resuming.compare(str(tmp_path / "x.pt"), state, trainer, True))


def test_a_run_that_begins_with_the_weights_of_another_has_not_trained_for_its_time(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({**WHOLE, "extra_state": {"previous_training_time": 600.9}}, path)
    left = []
    for settings in (
        {"finetune_from_model": str(path)},
        {"restore_file": str(path), "reset_optimizer": True, "reset_dataloader": True},
        {"restore_file": str(path), "reset_dataloader": True},
    ):
        cfg = OmegaConf.structured(FairseqConfig())
        cfg = OmegaConf.merge(cfg, {"checkpoint": section(tmp_path / "run", **settings)})
        run = Run(cfg, requeues=0)

        def load(*_: object, run: Run = run) -> tuple[None, None]:
            left.append(run.read_checkpoint(str(path))["extra_state"].get("previous_training_time"))
            return None, None

        run.begin(cfg.checkpoint, SimpleNamespace(task=None), load)
    signals.forget()
    assert left == [None, None, 600.9]


def test_the_clock_and_the_turn_of_the_moving_average_go_on() -> None:
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig()), {"ema": {"store_ema": True, "ema_update_freq": 4}})
    trainer = SimpleNamespace(
        cumulative_training_time=lambda: torch.tensor(100.0), get_num_updates=lambda: 7, ema=SimpleNamespace()
    )
    metrics.log_start_time("wall")
    metrics.load_state_dict(metrics.state_dict())  # as fairseq does
    resuming.restore_counters(cfg, trainer)
    assert metrics.get_smoothed_value("default", "wall") == pytest.approx(100.0, abs=5)
    assert trainer.ema.update_freq_counter == 3


@pytest.fixture
def no_run() -> Iterator[None]:
    patches.forget_run()
    yield
    patches.forget_run()


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"optimization": {"max_update": 12}}, "optimization.max_update=12"),
        ({"optimization": {"max_epoch": 3}}, "optimization.max_epoch=3"),
        ({"optimization": {"stop_time_hours": 0.5}}, "optimization.stop_time_hours=0.5"),
        ({"checkpoint": {"patience": 2}}, "checkpoint.patience=2"),
    ],
)
def test_a_run_that_has_ended_makes_no_further_update(settings: dict, setting: str, no_run: None) -> None:
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig()), settings)

    def trainer(updates: int, hours: float) -> SimpleNamespace:
        return SimpleNamespace(get_num_updates=lambda: updates, cumulative_training_time=lambda: 3600 * hours)

    resuming.refuse_finished(cfg, trainer(11, 0.4), SimpleNamespace(next_epoch_idx=3))
    should_stop_early.num_runs = 2
    with pytest.raises(Finished, match=f"is finished after 12 updates, by {setting}; raise it"):
        resuming.refuse_finished(cfg, trainer(12, 0.6), SimpleNamespace(next_epoch_idx=4))


@pytest.mark.parametrize(
    ("place", "settings", "steps"),
    [
        ({"epoch": 3, "iterations_in_epoch": 0}, {}, [(2, 0.5)]),
        ({"epoch": 3, "iterations_in_epoch": 4}, {}, []),
        ({"epoch": 3, "iterations_in_epoch": 0}, {"reset_dataloader": True}, [(2, 0.5)]),
        ({"epoch": 3, "iterations_in_epoch": 0}, {"reset_lr_scheduler": True}, []),
        ({"epoch": 3, "iterations_in_epoch": 0}, {"reset_optimizer": True}, []),
        ({"epoch": 3, "iterations_in_epoch": 0}, {"finetune_from_model": "before.pt"}, []),
    ],
)
def test_a_schedule_that_goes_on_gets_the_loss_of_the_epoch_that_the_checkpoint_ended(
    place: dict[str, int], settings: dict, steps: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_run: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("before.pt").touch()
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig()), {"checkpoint": section(tmp_path / "run", **settings)})
    given: list[tuple[int, float]] = []
    optimizer = FairseqOptimizer(None)
    trainer = SimpleNamespace(task=None, optimizer=optimizer, lr_step=lambda *arguments: given.append(arguments))
    trainer.get_num_updates = trainer.cumulative_training_time = lambda: 0
    metrics.log_start_time("wall")
    for loss in (0.5, None):
        loaded = {"train_iterator": place, "val_loss": loss}, SimpleNamespace(next_epoch_idx=3)
        Run(cfg, requeues=0).begin(cfg.checkpoint, trainer, lambda cfg, trainer, loaded=loaded: loaded)
    signals.forget()
    assert given == steps


@pytest.mark.parametrize(("overrides", "decay"), [("{}", 0.3), ("{'weight_decay': 0.7, 'lr': 9}", 0.7)])
def test_an_optimizer_of_fairseqs_goes_on_with_the_settings_of_the_run(
    overrides: str, decay: float, tmp_path: Path, no_run: None
) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]

    def made(**settings: object) -> FairseqAdam:
        given = {"lr": [0.5], "tpu": False, **settings}
        return FairseqAdam(OmegaConf.merge(OmegaConf.structured(FairseqAdamConfig), given), parameters)

    before, trainer = made(weight_decay=0.1), SimpleNamespace(task=None, get_num_updates=lambda: 0)
    trainer.cumulative_training_time, trainer.optimizer = lambda: 0, made(weight_decay=0.3, adam_betas="(0.8, 0.9)")
    cfg = OmegaConf.structured(FairseqConfig())
    cfg = OmegaConf.merge(cfg, {"checkpoint": section(tmp_path, optimizer_overrides=overrides)})

    def load(cfg: DictConfig, trainer: SimpleNamespace) -> tuple[dict, SimpleNamespace]:
        before.set_lr(0.2)
        trainer.optimizer.load_state_dict(before.state_dict())
        return {"train_iterator": {"iterations_in_epoch": 1}}, SimpleNamespace(next_epoch_idx=1)

    metrics.log_start_time("wall")
    Run(cfg, requeues=0).begin(cfg.checkpoint, trainer, load)
    signals.forget()
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["lr"]) == (decay, (0.8, 0.9), 0.2)


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "would end"])
def test_a_signal_ends_a_run_after_the_validation_that_is_due(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig()), {"checkpoint": section(tmp_path)})
    trainer, batches, saved = SimpleNamespace(get_num_updates=lambda: 3), SimpleNamespace(epoch=1), []
    monkeypatch.setattr(launch.signals, "first_received", lambda: signal.SIGTERM)
    monkeypatch.setattr(launch.checkpoint_utils, "save_checkpoint", lambda *arguments: saved.append(arguments))
    monkeypatch.setitem(patches._originals, "validate_and_save", lambda *arguments: ([0.5], ends))
    run = Run(cfg, requeues=0)
    monkeypatch.setattr(run.lock, "check", lambda: None)
    monkeypatch.setattr(patches, "_run", run, raising=False)
    with nullcontext() if ends else pytest.raises(SystemExit):
        patches.validate_and_save(cfg, trainer, None, batches, ["valid"], end_of_epoch=True)
    assert saved == ([] if ends else [(cfg.checkpoint, trainer, batches, 0.5)])


def test_a_fine_tuning_that_goes_on_needs_no_weights_to_start_from(
    folder: Path, tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    write_checkpoint(tmp_path / resuming.LAST, ["a", "b"])
    given = {"layer_decay": 1.0, "head_lr": 1.0, "compile": False}
    encoder = {"_name": "amae_ssast", "embed_dim": 16, "depth": 1, "num_heads": 2}
    for settings in ({"pretrained": "gone.pt"}, {"imagenet": "gone.pt", "encoder": encoder}):
        made = task(folder, num_mel_bins=64)
        made.cfg._parent.checkpoint = section(tmp_path)
        model = {"_name": "amae_classifier", **given, **settings}
        assert made.build_model(OmegaConf.create(model)).head.out_features == 2
        made.cfg._parent.checkpoint = section(tmp_path / "new")
        with pytest.raises(UserError, match=r"gone\.pt: "):
            made.build_model(OmegaConf.create(model))


def test_settings_that_the_pretrained_encoder_does_not_have_are_told(
    folder: Path, tmp_path: Path, write_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint(tmp_path / "pretrained.pt", None)
    model = {"_name": "amae_classifier", "layer_decay": 1.0, "head_lr": 1.0, "compile": False, "pretrained": str(path)}
    for encoder, told in (({}, []), ({"patch_stride": [10, 10], "depth": 1}, ["patch_stride=[10, 10]"])):
        caplog.clear()
        made = task(folder, num_mel_bins=64)
        made.build_model(OmegaConf.create({**model, "encoder": encoder}))
        unused = [record.message for record in caplog.records if "has no effect" in record.message]
        assert unused == [
            f"model.encoder.{each} has no effect: Audio-MAE, the system of {path}, has no such setting" for each in told
        ]


def test_early_stopping_continues(made: AmaeClassificationTask, no_run: None) -> None:
    cfg = OmegaConf.create({"checkpoint": {"patience": 2, "maximize_best_checkpoint_metric": True}})
    assert not any(should_stop_early(cfg, accuracy) for accuracy in (0.9, 0.5))
    (name, state), *_ = made.get_checkpoint_dict().items()
    assert name == "AmaeClassificationTask"  # fairseq asks for the state by the name of the class
    patches.forget_run()
    made.set_checkpoint_dict(state)
    assert should_stop_early(cfg, 0.8)


def test_a_batch_without_a_clip_counts_nowhere(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    caplog.set_level(logging.WARNING)
    order = task(folder).dataset("train")
    first = iterators(task(folder), 4, 1, epoch=1)[0].frozen_batches[0]
    for clip in first:
        (tmp_path / f"{clip}.flac").write_bytes(b"")
    made = task(tmp_path, on_bad_audio="skip", max_bad_audio=4)
    (device,) = iterators(made, 4, 1, epoch=1)
    stand_in = device.first_batch
    assert stand_in["id"].numel() == 1
    batches = list(device.next_epoch_itr())
    assert len(order) == sum(batch["nsentences"] for batch in batches if "stand_in" not in batch) + 4
    assert batches[0]["stand_in"]
    assert caplog.text.count("skipped clip") == 4

    model, steps = torch.nn.Linear(1, 1), []
    for batch in batches[:2]:
        count = batch["nsentences"]
        criterion = lambda model, sample, count=count: (  # noqa: E731
            model(torch.ones(1, 1)).sum() * count,
            count,
            {"loss": torch.tensor(7.0), "nsentences": count, "sample_size": count, "ntokens": count},
        )
        model.set_num_updates = lambda updates: None
        model.zero_grad()
        optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
        _, size, log = made.train_step(batch, model, criterion, optimizer, 0)
        steps.append((size, log["loss"].item(), log["nsentences"], model.weight.grad.item()))
    assert steps == [(0, 0.0, 0, 0.0), (4, 7.0, 4, 4.0)]


def test_a_split_without_one_good_clip_is_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.flac"):
        path.write_bytes(b"")
    (device,) = iterators(task(tmp_path, on_bad_audio="skip"), 4, 1)
    with pytest.raises(UserError, match=r"train\.tsv: not one of its clips can be decoded"):
        device.first_batch  # noqa: B018


@pytest.mark.parametrize("step", ["train_step", "valid_step"])
def test_memory_that_does_not_suffice_names_the_setting(step: str, made: AmaeClassificationTask) -> None:
    def criterion(model: torch.nn.Module, sample: dict) -> None:
        torch.empty(1 << 58)

    model = torch.nn.Identity()
    model.set_num_updates = lambda updates: None
    rest = (SimpleNamespace(), 0) if step == "train_step" else ()
    with pytest.raises(UserError, match=r"memory does not suffice for a batch of dataset\.batch_size") as raised:
        getattr(made, step)({}, model, criterion, *rest)
    assert "out of memory" not in str(raised.value)  # by which fairseq would leave the batch out and train on
