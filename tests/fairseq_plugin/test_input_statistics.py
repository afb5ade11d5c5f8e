"""``task.mean=auto`` and ``task.std=auto``: measured once, by one process, as ``amae stats`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from omegaconf import DictConfig, OmegaConf

from amae_plugin.cli.main import main
from amae_plugin.data import statistics
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import audio_task

SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2}
SIZES |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
AUDIO_MAE = {"_name": "amae_audio_mae", **SIZES, "num_mel_bins": 128, "input_length": 64, "decoder": "global"}
M2D = {"_name": "amae_m2d", **SIZES, "num_mel_bins": 80, "input_length": 64}
MAE_AST = {"_name": "amae_mae_ast", **SIZES, "num_mel_bins": 128}
DOWNSTREAM = {"layer_decay": 1.0, "head_lr": 1.0, "compile": False}


@pytest.fixture
def folder(write_split: Callable[..., Path], tmp_path: Path) -> Path:
    folder = write_split(tmp_path / "data", [((name,), 0.7, 16000) for name in "abab"], "ab", split="train")
    (folder / "train.ltr").write_text("a |\n" * 4)
    (folder / "dict.ltr.txt").write_text("a 4\n| 4\n")
    return folder


def run_settings(folder: Path, kind: str = "amae_pretraining", **task: object) -> DictConfig:
    """Settings of a run, of which a task takes its section."""
    metric = {"amae_pretraining": "loss", "amae_classification": "accuracy", "amae_ctc": "wer"}[kind]
    checkpoint = {"best_checkpoint_metric": metric, "maximize_best_checkpoint_metric": metric == "accuracy"}
    checkpoint |= {"save_dir": str(folder / "run"), "restore_file": "checkpoint_last.pt", "reset_dataloader": False}
    return OmegaConf.create(
        {
            "common": {"seed": 1, "bf16": False, "fp16": False, "tensorboard_logdir": None},
            "dataset": {"train_subset": "train", "valid_subset": "valid"},
            "checkpoint": checkpoint,
            "task": {"_name": kind, "data": str(folder), "target_length": 64, "mean": "auto", "std": "auto", **task},
        }
    )


def build(cfg: DictConfig, model: dict[str, Any] = AUDIO_MAE) -> tuple[float, float]:
    """Build a run's task and its model; mean and standard deviation in the run's settings, which checkpoints keep."""
    task = tasks.setup_task(cfg.task)
    task.build_model(OmegaConf.create(model))
    assert (task.cfg.mean, task.cfg.std) == (cfg.task.mean, cfg.task.std)
    return cfg.task.mean, cfg.task.std


def shown(folder: Path, *options: str) -> tuple[float, float]:
    """What ``amae stats`` says."""
    file = folder / "shown.json"
    assert main(["stats", str(folder), "--workers", "1", "--json", str(file), *options]) == 0
    figures = json.loads(file.read_text())
    return float(f"{figures['mean']:.7g}"), float(f"{figures['std']:.7g}")


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("amae_pretraining", AUDIO_MAE),
        ("amae_classification", {"_name": "amae_classifier", "encoder": AUDIO_MAE, **DOWNSTREAM}),
        ("amae_ctc", {"_name": "amae_ctc", "encoder": AUDIO_MAE, "frozen_updates": 0, **DOWNSTREAM}),
    ],
)
def test_every_task_has_the_figures_of_amae_stats(kind: str, model: dict[str, Any], folder: Path) -> None:
    assert build(run_settings(folder, kind), model) == shown(folder, "--target-length", "64")


def test_they_are_measured_once_for_each_front_end_and_length(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kaldi = build(run_settings(folder))
    slaney = build(run_settings(folder), M2D)
    shorter = build(run_settings(folder, target_length=32), {**AUDIO_MAE, "input_length": 32})
    assert slaney == shown(folder, "--target-length", "64", "--front-end", "slaney")
    assert len({kaldi, slaney, shorter}) == 3
    monkeypatch.setattr(statistics, "measure", None)
    assert build(run_settings(folder)) == kaldi
    caplog.clear()
    half = build(run_settings(folder, std=4.5))
    assert half == (kaldi[0], 4.5)
    assert "task.std=4.5 stays as it is" in caplog.text


def test_a_model_that_normalises_its_input_needs_none(folder: Path) -> None:
    assert build(run_settings(folder), MAE_AST) == (ModelInput.mean, ModelInput.std)
    assert not (folder / "stats.json").exists()


def test_a_run_that_goes_on_keeps_those_of_its_checkpoint(
    folder: Path, write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    written = write_checkpoint(tmp_path / "checkpoint.pt", None)
    content = torch.load(written, weights_only=False)
    content["cfg"]["task"] |= {"mean": -1.5, "std": 2.5}
    (folder / "run").mkdir()
    last = folder / "run" / "checkpoint_last.pt"
    torch.save(content, last)
    assert build(run_settings(folder)) == (-1.5, 2.5)
    anew = run_settings(folder)
    anew.checkpoint.reset_dataloader = True  # the weights go on, though the epochs begin
    assert build(anew) == (-1.5, 2.5)
    anew.checkpoint.reset_optimizer = True
    anew.task.update(mean="auto", std="auto")
    assert build(anew) == shown(folder, "--target-length", "64")
    last.write_bytes(b"damaged")  # who loads it says so
    assert build(run_settings(folder)) == shown(folder, "--target-length", "64")


def test_a_folder_that_cannot_be_written_to_is_measured_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, values: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(statistics, "write_json", refuse)
    assert build(run_settings(folder)) == shown(folder, "--target-length", "64")
    assert "stats.json: cannot be written (Permission denied), so train.tsv will be measured again" in caplog.text


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", ["aut", "Auto", "", "-4,2", None, True, [1.0]])
def test_what_is_neither_a_number_nor_auto_is_named(key: str, value: object, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"task\.{key}=.*: must be a number, or auto for that of the training clips"):
        tasks.setup_task(run_settings(folder, **{key: value}).task)


def test_numbers_stay_as_they_are(folder: Path) -> None:
    assert build(run_settings(folder, mean=-4, std=4.5)) == (-4, 4.5)
    assert not (folder / "stats.json").exists()


def test_the_first_process_measures_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(found: list[Any], src: int) -> None:
        assert src == 0
        sent.extend(found if not sent else [])
        found[0] = sent[0]

    def refuse(*arguments: object) -> tuple[float, float]:
        raise UserError("train.tsv: none of the clips can be decoded")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    for measure in (lambda *arguments: (-5.5, 3.25), refuse):
        sent.clear()
        for rank in (0, 1):
            monkeypatch.setattr(audio_task, "read_or_measure", None if rank else measure)
            monkeypatch.setattr(audio_task.distributed_utils, "get_global_rank", lambda rank=rank: rank)
            if measure is refuse:
                with pytest.raises(UserError, match=r"train\.tsv: none of the clips can be decoded"):
                    build(run_settings(folder))
            else:
                assert build(run_settings(folder)) == (-5.5, 3.25)
