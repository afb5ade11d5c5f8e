"""The recognition task and its criterion: which clips it takes, what it measures, sums that do not depend on cuts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq.criterions import build_criterion
from fairseq.data import Dictionary
from fairseq.logging import metrics
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.data.manifest import write_manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.recognition import AmaeCTCTask, AmaeCTCTaskConfig
from amae_plugin.metrics.recognition import TextErrors

ENCODER = {"_name": "amae_ssast", "num_mel_bins": 128, "embed_dim": 16, "depth": 1, "num_heads": 2}
# Of a clip the frames, at 16 kHz, and the transcript.
CLIPS = [(98, "A B | C |"), (40, "A A | B |"), (61, ""), (70, "C | C |"), (33, "B |")]


@pytest.fixture
def no_meters() -> Iterator[None]:
    metrics.reset()
    yield
    metrics.reset()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(clips: list[tuple[int, str]] = CLIPS, dictionary: str = "| 9\nA 5\nB 4\nC 1\n") -> Path:
        rows = []
        for index, (frames, _) in enumerate(clips):
            samples = 400 + 160 * (frames - 1)
            soundfile.write(tmp_path / f"{index}.wav", np.random.default_rng(index).normal(0, 0.1, samples), 16_000)
            rows.append((f"{index}.wav", samples))
        for split in ("train", "valid"):
            write_manifest(tmp_path / f"{split}.tsv", tmp_path, rows)
            (tmp_path / f"{split}.ltr").write_text("".join(f"{text}\n" for _, text in clips))
        (tmp_path / "dict.ltr.txt").write_text(dictionary)
        return tmp_path

    return write


def task(folder: Path, **settings: Any) -> AmaeCTCTask:
    fixed = {"data": str(folder), "target_length": 112, "seed": 1, "bf16": False, "fp16": False, "mean": -4.0}
    fixed |= {"std": 4.0, "best_checkpoint_metric": "wer", "maximize_best_checkpoint_metric": False}
    return AmaeCTCTask.setup_task(OmegaConf.merge(OmegaConf.structured(AmaeCTCTaskConfig), {**fixed, **settings}))


def model(made: AmaeCTCTask, encoder: dict[str, Any] | None = None, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    quiet = {"dropout": 0.0, "drop_path": 0.0, "mask_ratio_time": 0.3, "mask_length": 2, "sub_steps": 2}
    config = {"_name": "amae_ctc", "encoder": encoder or {**ENCODER, "patch_size": [8, 128], "patch_stride": [8, 128]}}
    config |= {"layer_decay": 1.0, "frozen_updates": 0, "compile": False, "pretrained": None, **quiet, **settings}
    return made.build_model(OmegaConf.create(config))


def loaded(folder: Path, split: str = "train", **settings: Any) -> tuple[AmaeCTCTask, nn.Module]:
    made = task(folder, **settings)
    built = model(made)
    made.load_dataset(split)
    return made, built


def criterion(made: AmaeCTCTask, sentence_avg: bool = True) -> Any:
    return build_criterion(OmegaConf.create({"_name": "amae_ctc", "sentence_avg": sentence_avg}), made)


def batch(made: AmaeCTCTask, clips: list[int], split: str = "train") -> dict[str, Any]:
    dataset = made.dataset(split)
    return dataset.collater([dataset[clip] for clip in clips])


def test_a_batch_holds_whole_clips_and_fairseqs_targets(write: Callable[..., Path]) -> None:
    folder = write()
    made, built = loaded(folder)
    sample = batch(made, [0, 1, 2])
    assert sample["net_input"]["source"].shape == (3, 112, 128)
    assert (~sample["net_input"]["padding_mask"]).sum(1).tolist() == [98, 40, 61]
    theirs = Dictionary.load(str(folder / "dict.ltr.txt"))
    for clip, (_, text) in enumerate(CLIPS[:3]):
        ids = theirs.encode_line(text, append_eos=False, add_if_not_exist=False).tolist()
        length = int(sample["target_lengths"][clip])
        assert sample["target"][clip, :length].tolist() == ids
        assert (sample["target"][clip, length:] == theirs.pad()).all()
    assert made.dataset("train").sizes.tolist() == [98, 40, 61, 70, 33]
    assert built.config.num_units == len(theirs) and built.config.input_length == 112


@pytest.mark.parametrize("sentence_avg", [True, False])
def test_gradients_do_not_depend_on_how_a_global_batch_is_cut(write: Callable[..., Path], sentence_avg: bool) -> None:
    made, built = loaded(write())
    measure = criterion(made, sentence_avg).train()
    built.train()
    found = []
    for cut in ([[0, 1, 2, 3, 4]], [[0], [1, 2], [3, 4]], [[4, 0], [2], [3, 1]]):
        built.zero_grad()
        total = 0
        for clips in cut:
            loss, sample_size, log = measure(built, batch(made, clips))
            assert log["sample_size"] == sample_size and torch.equal(log["loss"], loss.detach())
            loss.backward()
            total += sample_size
        assert total == (5 if sentence_avg else 16)
        found.append([parameter.grad / total for parameter in built.parameters()])
    for one, *others in zip(*found):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


class Known(nn.Module):
    """A model that spells the texts that it is told, each unit in a step of its own, blanks between them."""

    def __init__(self, made: AmaeCTCTask, texts: list[str]):
        super().__init__()
        self.ids = [made.units.encode(text) for text in texts]
        self.units = len(made.units)

    def forward(self, source: torch.Tensor, padding_mask: torch.Tensor, seed: torch.Tensor) -> dict[str, torch.Tensor]:
        steps = torch.tensor([2 * len(ids) + 1 for ids in self.ids])
        paths = torch.zeros(len(source), int(steps.max()) + 3, dtype=torch.long)
        for path, ids in zip(paths, self.ids):
            path[1 : 2 * len(ids) : 2] = torch.tensor(ids, dtype=torch.long)
            path[2 * len(ids) + 1 :] = 5  # beyond the end, where nothing counts
        log_probs = nn.functional.one_hot(paths, self.units).mul(10.0).log_softmax(dim=-1)
        return {"log_probs": log_probs, "padding": torch.arange(paths.shape[1]) >= steps[:, None]}


def test_measures_are_error_rates_of_the_whole_split_and_each_clip_counts_once(
    write: Callable[..., Path], no_meters: None
) -> None:
    made, _ = loaded(write(), "valid")
    measure = criterion(made).eval()
    told = ["A | C |", "A A | B |", "A |", "C |", "B | B |"]
    for clips in ([0, 1], [2, 3, 4], [0, 1]):
        made.valid_step(batch(made, clips, "valid"), Known(made, [told[clip] for clip in clips]), measure)
    stats = {"best_wer": 0.1}
    made.post_validate(nn.Module(), stats, None)
    words = [["AB C", "AA B", "", "C C", "B"], ["A C", "AA B", "A", "C", "B B"]]
    assert stats == {**TextErrors.of_all(*words).headline, "best_wer": 0.1}
    assert stats["wer"] == 4 / 7
    made.post_validate(nn.Module(), after := {}, None)
    assert after == {}  # nothing is left for the next split


LONG, SHORT = (120, "A |"), (8, "A A A | B |")


@pytest.mark.parametrize(
    ("clip", "setting", "message"),
    [
        (LONG, "on_long_clip", r"line 4: 2\.wav: 120 frames, .*; set task\.target_length=128, or leave such clips out"),
        (SHORT, "on_short_clip", r"line 4: 2\.wav: 2 steps, and its transcript needs 8; raise model\.sub_steps, or"),
    ],
)
def test_clips_that_are_too_long_or_too_short_stop_or_are_left_out_and_counted(
    write: Callable[..., Path], clip: tuple[int, str], setting: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write([*CLIPS[:2], clip, CLIPS[3], clip])
    with pytest.raises(UserError, match=message):
        loaded(folder)
    for split in ("train", "valid"):
        with caplog.at_level(logging.WARNING):
            made, _ = loaded(folder, split, **{setting: "skip"})
        dataset = made.dataset(split)
        assert len(dataset) == 3 and dataset.sizes.tolist() == [98, 40, 70]
        assert f"left out 2 of 5 clips, {'more than 112' if clip is LONG else 'too short'}" in caplog.text
        sample = batch(made, [0, 1, 2], split)
        assert sample["target_lengths"].tolist() == [5, 5, 4]  # the third is the fourth of the manifest


def test_not_a_single_usable_clip_is_an_error(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"train\.tsv: not one clip is left"):
        loaded(write([LONG, SHORT]), on_long_clip="skip", on_short_clip="skip")


@pytest.mark.parametrize(("frames", "text", "problem"), [(120, "A |", "has 120 frames"), (5, "A A A |", "has 2 steps")])
def test_a_file_of_another_length_than_its_manifest_says_is_never_cropped(
    write: Callable[..., Path], frames: int, text: str, problem: str
) -> None:
    folder = write([(90, text), (50, "B |")])
    noise = np.random.default_rng(0).normal(0, 0.1, 400 + 160 * (frames - 1))
    soundfile.write(folder / "0.wav", noise, 16_000)
    made, _ = loaded(folder)
    with pytest.raises(UserError, match=rf"0\.wav: {problem}.* its manifest says otherwise"):
        batch(made, [0])
    made, _ = loaded(folder, on_bad_audio="skip")
    assert batch(made, [0, 1])["id"].tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentations": "roll"}, "augmentations: roll would change"),
        ({"augmentations": "magnitude,mixup"}, "augmentations: mixup would change"),
        ({"augmentations": {"noise": {}}}, "noise would change .* set frames=0 of noise"),
        ({"batch_length": "shortest"}, "'shortest', which crops clips"),
        ({"post_process": "letters"}, "task.post_process is 'letters', must be one of letter"),
        ({"on_long_clip": "crop"}, "task.on_long_clip=crop: must be raise or skip"),
        ({"on_unknown_unit": "skip"}, "task.on_unknown_unit=skip: must be raise or unk"),
        ({"labels": "wrd"}, r"dict\.wrd\.txt: cannot read the dictionary"),
        ({"best_checkpoint_metric": "accuracy"}, "in recognition it must be one of loss, wer, cer"),
        ({"maximize_best_checkpoint_metric": True}, "best_checkpoint_metric=wer it must be false, or the worst"),
    ],
)
def test_settings_that_do_not_fit_transcripts(
    write: Callable[..., Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loaded(write(), **settings)


def test_augmentations_that_keep_the_order_are_taken(write: Callable[..., Path]) -> None:
    made, _ = loaded(write(), augmentations={"magnitude": {}, "spec_augment": {"time": 8}, "noise": {"frames": 0}})
    assert batch(made, [0])["net_input"]["source"].isfinite().all()


def test_spectrograms_on_the_device_are_those_of_the_workers(write: Callable[..., Path], no_meters: None) -> None:
    losses = []
    for features in ("workers", "device"):
        made, built = loaded(write(), split="valid", features=features)
        with torch.no_grad():
            losses.append(made.valid_step(batch(made, [0, 1, 3], "valid"), built, criterion(made).eval())[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_place_of_the_spectrograms_that_is_none_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="task: features is 'gpu', must be one of workers, device"):
        loaded(write(), features="gpu")


def test_an_unknown_unit_is_an_error_or_fairseqs_unknown(write: Callable[..., Path]) -> None:
    folder = write([(98, "A Q |"), (98, "B |")])
    with pytest.raises(UserError, match=r"train\.ltr, line 1: 'Q' is not among the 4 units"):
        loaded(folder)
    made, _ = loaded(folder, on_unknown_unit="unk")
    assert batch(made, [0])["target"].tolist() == [[5, 3, 4]]


def test_a_checkpoints_units_are_taken_over_and_others_are_refused(write: Callable[..., Path]) -> None:
    state = task(write()).state
    stored = {"units": state.units}
    other = task(write(dictionary="| 9\nA 5\nC 4\nB 1\n"))
    other.load_state_dict(stored)
    assert other.units.symbols[4:] == ("|", "A", "B", "C")
    other = task(write(dictionary="| 9\nA 5\nC 4\nB 1\n"))
    assert len(other.units) == 8
    with pytest.raises(UserError, match=r"dict\.ltr\.txt: .* C, where the checkpoint's have B; restore what was"):
        other.load_state_dict(stored)
    spelled = task(write(), post_process="none")
    assert spelled.units
    with pytest.raises(UserError, match=r"task\.post_process=none, and the checkpoint has letter"):
        spelled.load_state_dict(stored)


class Step:
    """An optimizer that notes which weights have a gradient."""

    def __init__(self, built: nn.Module):
        self.built = built

    def step(self) -> None:
        self.moved = {name for name, parameter in self.built.named_parameters() if parameter.grad is not None}


def test_a_frozen_encoder_thaws_after_its_updates(write: Callable[..., Path], no_meters: None) -> None:
    made = task(write())
    built = model(made, frozen_updates=2)
    made.load_dataset("train")
    measure, optimizer = criterion(made), Step(built)
    optimizer.backward = lambda loss: loss.backward()
    for update, frozen in enumerate([True, True, False]):
        built.zero_grad()
        made.train_step(batch(made, [0, 1]), built, measure, optimizer, update)
        made.optimizer_step(optimizer, built, update)
        assert any(name.startswith("encoder.") for name in optimizer.moved) != frozen
        assert "head.weight" in optimizer.moved
    with pytest.raises(UserError, match=r"model\.frozen_updates=-1: must be 0 or more"):
        model(made, frozen_updates=-1)
