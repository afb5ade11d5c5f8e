"""The pretraining task and its criterion: pictures and probes that never end a run, and the criterion's two names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions import build_criterion
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar
from fairseq.optim.amp_optimizer import AMPOptimizer
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.data.manifest import write_manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.frozen import POOLING
from amae_plugin.evaluation.probe import probe
from amae_plugin.fairseq_plugin import probing
from amae_plugin.fairseq_plugin.pretraining import AmaePretraining, AmaePretrainingConfig
from amae_plugin.inference.model import load_model
from amae_plugin.models.registry import SYSTEMS

SIZES = {
    "num_mel_bins": 128,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


@pytest.fixture(scope="module")
def folder(write_split: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_split(tmp_path_factory.mktemp("clips"), [((), 0.6, 16000)] * 3, split="valid")
    shutil.copy(folder / "valid.tsv", folder / "train.tsv")
    return folder


def task(folder: Path, out: Path, **settings: object) -> AmaePretraining:
    fixed = {"data": str(folder), "target_length": 64, "seed": 1, "valid_subset": "valid", "bf16": False, "fp16": False}
    fixed |= {"best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": False}
    changing = {"tensorboard_logdir": str(out), "picture_interval": 2, "pictures": 2}
    config = OmegaConf.structured(AmaePretrainingConfig)
    return AmaePretraining.setup_task(OmegaConf.merge(config, {**fixed, **changing, **settings}))


def model(made: AmaePretraining, **settings: object) -> nn.Module:
    return made.build_model(OmegaConf.create({"_name": "amae_mae_ast", **SIZES, **settings}))


def train(made: AmaePretraining, trained: nn.Module, updates: int) -> None:
    metrics.reset()
    for update in range(updates):
        made.optimizer_step(SimpleNamespace(step=lambda: None), trained, update)


def events(folder: Path) -> list[Path]:
    return list(folder.glob("pictures/events.*"))


def test_a_run_without_validation_reads_the_clips_for_its_pictures(folder: Path, tmp_path: Path) -> None:
    made = task(folder, tmp_path)
    trained = model(made)
    made.load_dataset("train")
    train(made, trained, 1)
    assert not events(tmp_path)
    train(made, trained, 2)
    assert len(events(tmp_path)) == 1


@pytest.mark.parametrize(("interval", "max_update", "drawn"), [(400, 3, [3]), (2, 3, [2, 3]), (3, 3, [3]), (0, 3, [])])
def test_a_run_that_is_shorter_than_the_interval_ends_with_a_picture(
    interval: int, max_update: int, drawn: list[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, updates = task(folder, tmp_path, picture_interval=interval, max_update=max_update), []
    monkeypatch.setattr(made, "draw_pictures", lambda model, update: updates.append(update))
    train(made, model(made), max_update)
    assert updates == drawn


def test_a_model_that_predicts_no_spectrogram_is_told_once_and_trains(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = task(folder, tmp_path)
    train(made, model(made, reconstruction_weight=0.0), 4)
    assert not events(tmp_path)
    assert caplog.text.count("no pictures, since the model's objectives predict no spectrogram") == 1
    assert "training goes on" not in caplog.text


def test_a_picture_that_fails_does_not_end_the_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text(f"{folder}\n{tmp_path}/damaged.wav\t9600\n")
    made = task(tmp_path, tmp_path)
    trained = model(made)
    made.load_dataset("train")
    train(made, trained, 2)
    assert not events(tmp_path)
    assert "no picture after update 2; training goes on" in caplog.text
    assert "damaged.wav" in caplog.text


def test_clips_for_pictures_that_do_not_exist_are_missed_before_the_first_update(folder: Path, tmp_path: Path) -> None:
    made = task(folder, tmp_path, valid_subset="missing")
    model(made)
    with pytest.raises(UserError, match=r"missing\.tsv"):
        made.load_dataset("train")
    model(made, reconstruction_weight=0.0)
    made.load_dataset("train")  # nothing is drawn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best_checkpoint_metric": "los"}, "checkpoint.best_checkpoint_metric=los: in pretraining it must be one of"),
        ({"best_checkpoint_metric": "loss_info_nce"}, ""),
        ({"maximize_best_checkpoint_metric": True}, "must be false, or the worst checkpoint is kept"),
    ],
)
def test_checkpoints_are_compared_by_what_is_measured(
    settings: dict, message: str, folder: Path, tmp_path: Path
) -> None:
    made = task(folder, tmp_path, **settings)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        model(made)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_clips_is_named(folder: Path, tmp_path: Path, split: str) -> None:
    write_manifest(tmp_path / f"{split}.tsv", folder, [])
    with pytest.raises(UserError, match=rf"{split}\.tsv: holds no clips; add some"):
        task(tmp_path, tmp_path).load_dataset(split)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_precisions_of_fairseq_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"common\.bf16 and common\.fp16 .* set model\.bf16=true"):
        task(folder, tmp_path, **{name: True})


def test_the_first_name_of_the_criterion_still_works(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = task(folder, tmp_path)
    new, old = (
        build_criterion(OmegaConf.create({"_name": name, "score_padding": False}), made)
        for name in ("amae_masked_prediction", "amae_reconstruction")
    )
    assert isinstance(old, type(new))
    assert old.score_padding is new.score_padding is False
    # A run resumes only if its criterion has the class name that the checkpoint holds; checkpoints hold this one.
    assert type(old).__name__ == type(new).__name__ == "AmaeReconstruction"
    assert caplog.text.count("amae_masked_prediction") == 1


class Scaler:
    """The loss scaler of fairseq's AMP, which skips the steps of these numbers and halves the scale each time."""

    def __init__(self, skipped: set[int]):
        self.skipped, self.steps, self.scale = skipped, 0, 8.0

    def step(self, optimizer: object) -> None:
        self.scale *= 0.5 if self.steps in self.skipped else 1.0
        self.steps += 1

    def update(self) -> None:
        pass

    def get_scale(self) -> float:
        return self.scale


def test_what_follows_an_update_follows_each_step_that_was_made(folder: Path, tmp_path: Path) -> None:
    made = task(folder, tmp_path, picture_interval=0, max_update=7)
    trained, followed = model(made), []
    trained.after_update = lambda *numbers: followed.append(numbers)
    optimizer = AMPOptimizer.__new__(AMPOptimizer)
    optimizer.fp32_optimizer, optimizer._grad_scaler = None, Scaler(skipped={1})
    metrics.reset()
    for update in (0, 1, 1, 2):  # fairseq repeats an update whose gradients were not finite
        made.optimizer_step(optimizer, trained, update)
    assert followed == [(1, 7), (2, 7), (3, 7)]
    train(made, trained, 1)
    assert followed[3:] == [(1, 7)]


@pytest.mark.parametrize(
    ("system", "modalities", "chosen"),
    [
        ("amae_cav_mae", None, ("audio", "image")),
        ("amae_cav_mae", ["audio"], ("audio",)),
        ("amae_cav_mae", "image,audio", ("audio", "image")),
        ("amae_mae_ast", None, ("audio",)),
        ("amae_mae_ast", ["audio"], ("audio",)),
    ],
)
def test_a_model_takes_what_the_task_says(
    system: str, modalities: object, chosen: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    made = task(folder, tmp_path, modalities=modalities)
    own = {"input_length": 64, "image_size": 32, "modalities": None} if system == "amae_cav_mae" else {}
    made.build_model(OmegaConf.create({"_name": system, **SIZES, **own}))
    assert (made.default_input.image is not None) == ("image" in chosen)


@pytest.mark.parametrize(
    ("system", "modalities", "message"),
    [
        ("amae_cav_mae", ["image"], "pretraining needs audio"),
        ("amae_cav_mae", [], "CAV-MAE takes audio and image of a clip here"),
        ("amae_cav_mae", ["audio", "audio"], "must be some of audio, image"),
        ("amae_cav_mae", ["smell"], "task.modalities=smell: "),
        ("amae_mae_ast", ["audio", "image"], "MAE-AST takes audio of a clip here"),
    ],
)
def test_a_model_cannot_take_what_it_has_no_part_for(
    system: str, modalities: object, message: str, folder: Path, tmp_path: Path
) -> None:
    made = task(folder, tmp_path, modalities=modalities)
    with pytest.raises(UserError, match=message):
        made.build_model(OmegaConf.create({"_name": system, **SIZES}))


def test_batches_that_no_patches_fit(folder: Path, tmp_path: Path) -> None:
    for length in ("longest", "shortest"):
        made = task(folder, tmp_path, batch_length=length, length_multiple=8)
        with pytest.raises(UserError, match=r"length_multiple=8: .* patches of 16 frames .* multiple of 16"):
            model(made)
        model(made, patch_size=[2, 128])
    model(task(folder, tmp_path, batch_length="fixed", length_multiple=8))


@pytest.fixture(scope="module", params=[False, True], ids=["one label", "several"])
def labelled(request: pytest.FixtureRequest, write_split: Callable[..., Path], tmp_path_factory) -> Path:
    """Manifests of clips with one label each, or with one or two."""
    folder, classes = tmp_path_factory.mktemp("labelled"), ["low", "middle", "high"]
    for split, clips in (("train", 9), ("valid", 6), ("test", 6)):
        labels = [classes[index % 3 : index % 3 + 1 + (request.param and index % 2)] for index in range(clips)]
        write_split(folder, [(each, 0.4 + 0.02 * index, 16_000) for index, each in enumerate(labels)], classes, split)
    return folder


def step(made: AmaePretraining, trained: nn.Module, update: int) -> float:
    """An update on two clips, whose masks are drawn from PyTorch's stream; returns the loss."""
    criterion = build_criterion(OmegaConf.create({"_name": "amae_masked_prediction", "score_padding": True}), made)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    optimizer.backward = lambda loss: loss.backward()
    items = made.datasets["train"]
    batch = items.collater([items[0], items[1]])
    batch["net_input"]["seed"] = None
    trained.train()
    loss, _, _ = made.train_step(batch, trained, criterion, optimizer, update)
    made.optimizer_step(optimizer, trained, update)
    return float(loss.detach())


def probed(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "probe"]


def test_a_probe_measures_what_amae_probe_does_and_changes_nothing(
    labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})  # fairseq keeps those of a process
    caplog.set_level("INFO")
    losses, last = [], []
    for settings in ({}, {"probe_interval": 2}, {"probe_interval": 1, "probe_data": str(labelled)}):
        torch.manual_seed(1)
        metrics.reset()
        made = task(labelled, tmp_path, picture_interval=0, log_format="json", **settings)
        trained = model(made)
        made.load_dataset("train")
        losses.append([step(made, trained, update) for update in range(4)])
        assert trained.training and all(block.training for block in trained.encoder.blocks)
        last.append(len(probed(caplog)))
    assert losses[1:] == [losses[0]] * 2
    found = probed(caplog)
    assert last == [0, 3, 8] and [int(each["probe_num_updates"]) for each in found] == [0, 2, 4, 0, 1, 2, 3, 4]
    measure = next(name for name in found[0] if name not in ("probe_num_updates", "probe_seconds"))
    assert [each[measure] for each in found[:3]] == [found[index][measure] for index in (3, 5, 7)]
    assert list((tmp_path / "probe").glob("events.*")), "no TensorBoard"

    path, tested = tmp_path / "model.pt", tmp_path / "valid for test"
    config = {"model": {"_name": "amae_mae_ast", **SIZES}, "task": OmegaConf.to_container(made.cfg)}
    torch.save({"cfg": config, "model": trained.state_dict(), "task_state": {}, "extra_state": {}}, path)
    shutil.copytree(labelled, tested)
    for suffix in (".tsv", ".lbl"):
        shutil.copy(tested / f"valid{suffix}", tested / f"test{suffix}")
    expected = probe(load_model(path, "cpu", pooling=POOLING), tested)
    assert measure == f"probe_{expected.measure}"
    assert float(found[-1][measure]) == pytest.approx(expected.values["k-NN"][-1], abs=1e-5)


@pytest.mark.parametrize("settings", [{"probe_interval": 5}, {"probe_minutes": 1.0}])
def test_a_folder_without_labels_is_named_at_the_start(settings: dict, folder: Path, tmp_path: Path) -> None:
    key = next(iter(settings))
    with pytest.raises(
        UserError, match=rf"task\.{key}=.* has no train\.lbl, valid\.lbl, labels\.txt .*task\.probe_data"
    ):
        model(task(folder, tmp_path, **settings))
    model(task(folder, tmp_path, **dict.fromkeys(settings, 0)))


def test_only_the_first_process_probes_and_a_failure_does_not_end_the_run(
    write_split: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    for split in ("train", "valid"):
        write_split(tmp_path, [(["a"], 0.5, 16_000)] * 2, ["a"], split)
    made = task(tmp_path, tmp_path, picture_interval=0, probe_interval=2, log_format="json")
    trained = model(made)
    made.load_dataset("train")
    monkeypatch.setattr(distributed_utils, "get_global_rank", lambda: 1)
    step(made, trained, 0)
    train(made, trained, 2)
    assert not probed(caplog)
    monkeypatch.undo()
    train(made, trained, 2)
    assert len(probed(caplog)) == 1
    trained.train()
    (tmp_path / "1.flac").write_bytes(b"fLaC")
    train(made, trained, 2)
    assert "no probe after update 2; training goes on" in caplog.text and trained.training
    again = task(tmp_path, tmp_path, picture_interval=0, probe_interval=2)
    trained = model(again)
    with pytest.raises(UserError, match=r"1\.flac"):  # before the first update, it can be mended
        again.train_step({}, trained, nn.Module(), SimpleNamespace(), 0)


def test_probes_by_the_clock(tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made_at = [100.0], []
    monkeypatch.setattr(probing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(probing.Probing, "_run", lambda self, model, update: made_at.append((now[0] - 100, update)))
    metrics.reset()
    made = task(labelled, tmp_path, picture_interval=0, probe_minutes=1.0)
    trained = model(made)
    assert made._probing.seconds == 0
    made._probing.before_first(trained, 0)
    for update, seconds in enumerate((10, 59, 61, 80, 119, 185, 190, 241), start=1):
        now[0] = 100 + seconds
        made._probing.after(trained, update)
    assert made_at == [(0, 0), (61, 3), (185, 6), (241, 8)]
    # A run that resumes counts the time before.
    state = made.get_checkpoint_dict()["AmaePretraining"]
    now[0], made_at[:] = 1000.0, []
    again = task(labelled, tmp_path, picture_interval=0, probe_minutes=1.0)
    model(again)
    again.set_checkpoint_dict(state)
    for update, seconds in ((9, 50), (10, 60)):
        now[0] = 1000 + seconds
        again._probing.after(trained, update)
    assert made_at == [(960, 10)] and again._probing.seconds == 241 + 60
    # Where probes take more than a fifth of the time, they wait.
    again._probing._spent, now[0] = 80.0, 1000 + 130
    again._probing.after(trained, 11)
    now[0] = 1000 + 170
    again._probing.after(trained, 12)
    assert made_at[1:] == [(1070, 12)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_probed_in_bfloat16(
    system: str, write_split: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for split in ("train", "valid"):
        write_split(tmp_path, [([name], 0.5, 16_000) for name in "abb"], ["a", "b"], split)
    made = task(tmp_path, tmp_path, probe_interval=5, log_format="json", probe_train_clips=1)
    known = {field.name for field in fields(SYSTEMS[system].config)}
    settings = {"input_length": 64, "image_size": 32, "modalities": None, "bf16": True, **SIZES}
    trained = made.build_model(OmegaConf.create({"_name": system, **{k: v for k, v in settings.items() if k in known}}))
    made._probing.before_first(trained.train(), 0)
    assert 0 <= float(probed(caplog)[0]["probe_accuracy"]) <= 1
