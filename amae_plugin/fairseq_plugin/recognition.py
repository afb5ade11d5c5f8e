"""Recognition of speech by CTC: task, criterion, registered model."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, DictConfig
from torch import Tensor, nn

from amae_plugin.data.dataset import Sampling
from amae_plugin.data.speech import SpeechDataset
from amae_plugin.data.transcripts import POST_PROCESS, Transcripts, Units, collapse
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import SummedCriterion, Values, plain_module
from amae_plugin.fairseq_plugin.downstream import (
    DownstreamTask,
    DownstreamTaskConfig,
    TrainedDownstreamConfig,
    TrainedDownstreamModel,
)
from amae_plugin.metrics.recognition import TextErrors
from amae_plugin.models.ctc import CTC, CTCConfig, StepCount
from amae_plugin.models.settings import setting

logger = logging.getLogger(__name__)


CHOICES = {"on_unknown_unit": ("raise", "unk"), "on_long_clip": ("raise", "skip"), "on_short_clip": ("raise", "skip")}
"""Values of the settings that say what to do about a clip."""


@dataclass
class AmaeCTCTaskConfig(DownstreamTaskConfig):
    """Data, labels and augmentation of recognition."""

    labels: str = setting("ltr", "the transcripts are <split>.<labels>, and their units those of dict.<labels>.txt")
    post_process: Optional[str] = setting(
        None, f"how units make words, as fairseq has it: {', '.join(POST_PROCESS)}; null: as their marks tell"
    )
    on_unknown_unit: str = setting("raise", "a unit that the dictionary lacks: raise stops, unk takes it for <unk>")
    on_long_clip: str = setting("raise", "a clip longer than target_length: raise stops, skip leaves it out")
    on_short_clip: str = setting("raise", "a clip too short for its transcript: raise stops, skip leaves it out")
    batch_length: str = "longest"
    augmentations: Any = None


@register_task("amae_ctc", dataclass=AmaeCTCTaskConfig)
class AmaeCTCTask(DownstreamTask):
    """Recognition of the units of a transcript in the clips of a manifest, from fairseq's own files of labels.

    Clips come whole. A clip that cannot be, or that has fewer steps than CTC needs for its transcript, is an error that
    names it, or is left out and counted.
    """

    def __init__(self, cfg: AmaeCTCTaskConfig):
        super().__init__(cfg)
        self.measures, self.condition = {"wer": False, "cer": False}, "in recognition"
        for name, choices in CHOICES.items():
            if cfg[name] not in choices:
                raise UserError(f"task.{name}={cfg[name]}: must be {' or '.join(choices)}")
        self.steps: Optional[StepCount] = None
        self.state.add_factory("units", self._read_units)

    def _read_units(self) -> Dict[str, object]:
        try:
            return Units.read(self.data, self.cfg.labels, self.cfg.post_process).plain()
        except ValueError as error:
            raise UserError(f"task.{error}") from None

    @property
    def units(self) -> Units:
        """Units of the transcripts, read from the dictionary or from a checkpoint."""
        return Units.from_plain(self.state.units)

    def load_state_dict(self, state_dict: Values) -> None:
        """Take over a checkpoint's units.

        Raises:
            UserError: this task has read others.
        """
        known, stored = self.state.state_dict.get("units"), state_dict.get("units")
        if known is not None and stored is not None and known != stored:
            path = self.data / f"dict.{self.cfg.labels}.txt"
            ours, theirs = Units.from_plain(known), Units.from_plain(stored)
            pairs = zip_longest(ours.symbols, theirs.symbols, fillvalue="nothing")
            others = [f"{here}, where the checkpoint's have {there}" for here, there in pairs if here != there]
            differ = others or [f"task.post_process={ours.post_process}, and the checkpoint has {theirs.post_process}"]
            remedy = "restore what was, or train in another folder (hydra.run.dir=...)"
            raise UserError(f"{path}: other units than the checkpoint's: {differ[0]}; {remedy}")
        super().load_state_dict(state_dict)

    def sizes(self) -> Dict[str, int]:
        """Return the number of units and the length of the input."""
        return {"num_units": len(self.units), "input_length": self.cfg.target_length}

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the model, and note how many steps it makes of a clip."""
        model: Any = super().build_model(cfg, from_checkpoint)
        self.steps = model.steps
        return model

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load ``<split>.tsv`` and ``<split>.<labels>``.

        Raises:
            UserError: a file is missing or malformed, or a clip is too long or too short and this is not to be skipped.
        """
        manifest = self.read_manifest(split)
        path, unknown = self.data / f"{split}.{self.cfg.labels}", self.cfg.on_unknown_unit == "unk"
        transcripts = Transcripts.read(path, self.units, len(manifest), unknown=unknown)
        self.make_dataset(manifest, split, SpeechDataset, transcripts=transcripts, steps=self.steps)
        self._leave_out(self.datasets[split].dataset)
        self.datasets[split].set_epoch(0)

    def _leave_out(self, dataset: SpeechDataset) -> None:
        """Leave out clips that are too long or too short, or raise an error that names the first of them."""
        manifest, longest = dataset.manifest, self.cfg.target_length
        needed, frames = dataset.transcripts.steps_needed, dataset.clip_frames
        steps, left = dataset.steps(frames), np.ones(len(manifest), bool)
        for name, found in (("long", dataset.too_long), ("short", dataset.too_short)):
            clips = np.flatnonzero(found & left)
            left &= ~found
            if not len(clips):
                continue
            reason = f"more than {longest} frames" if name == "long" else "too short for the transcript"
            clip, counted = clips[0], f"{len(clips):,} of {len(manifest):,} clips, {reason}"
            if self.cfg[f"on_{name}_clip"] == "skip":
                logger.warning(f"{manifest.path}: left out {counted} (task.on_{name}_clip=skip)")
                continue
            if name == "long":
                problem = f"{frames[clip]:,} frames, and a clip is not cropped without its transcript"
                fitting = -(-frames[clips].max() // self.cfg.length_multiple) * self.cfg.length_multiple
                remedy = f"set task.target_length={fitting}"
            else:
                problem = f"{steps[clip]:,} steps, and its transcript needs {needed[clip]:,}"
                remedy = "raise model.sub_steps"
            place = f"{manifest.path}, line {clip + 2}: {manifest.name(clip)}"
            others = f"leave such clips out by task.on_{name}_clip=skip ({counted})"
            raise UserError(f"{place}: {problem}; {remedy}, or {others}")
        if not left.any():
            raise UserError(f"{manifest.path}: not one clip is left, since all are too long or too short")
        if not left.all():
            dataset.sampling = Sampling(np.flatnonzero(left))

    def measure(self, *columns: np.ndarray) -> Mapping[str, float]:
        """Measure the errors of the texts, references and hypotheses."""
        return TextErrors.of_all(*columns).headline

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step; a frozen encoder has no gradients, so that neither decay nor momentum moves it."""
        plain = plain_module(model, CTC)
        if plain.frozen:
            for weight in plain.encoder.parameters():
                weight.grad = None
        super().optimizer_step(optimizer, model, update_num)


@dataclass
class AmaeCTCCriterionConfig(FairseqDataclass):
    """Options of :class:`AmaeCTCCriterion`."""

    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("amae_ctc", dataclass=AmaeCTCCriterionConfig)
class AmaeCTCCriterion(SummedCriterion):
    """Negative log-likelihood of the transcripts by CTC (Graves et al. 2006), in nats.

    The sum is over clips. It is divided by the number of their units or, with ``optimization.sentence_avg``, which
    wav2vec 2.0's recipes set, by the number of clips. In validation the log also holds the texts of every clip, which
    the task takes out: references, and what the most probable units of all steps spell.
    """

    def __init__(self, task: FairseqTask, sentence_avg: bool):
        super().__init__(task)
        self.sentence_avg = sentence_avg

    def forward(
        self, model: nn.Module, sample: Values, reduce: bool = True
    ) -> Tuple[Tensor, Union[Tensor, int], Values]:
        """Return the loss of a batch of the task, the number by which it is divided, and the log."""
        output, target, lengths = model(**sample["net_input"]), sample["target"], sample["target_lengths"]
        log_probs, steps, units = output["log_probs"], (~output["padding"]).sum(dim=1), self.task.units
        # The data set has no clip with fewer steps than its transcript needs, so an infinite loss is a fault to see.
        options = {"blank": units.blank, "reduction": "sum", "zero_infinity": False}
        loss = F.ctc_loss(log_probs.transpose(0, 1), target, steps, lengths, **options)
        sample_size = len(target) if self.sentence_avg else lengths.sum()
        log = self.log({"loss": loss}, sample_size, sample)
        if not self.training:
            paths = [path[:end] for path, end in zip(log_probs.argmax(dim=2).tolist(), steps.tolist())]
            texts = (
                [units.to_text(ids[:length]) for ids, length in zip(target.tolist(), lengths.tolist())],
                [units.to_text(span.unit for span in collapse(path, units.blank)) for path in paths],
            )
            log["scored"] = (sample["id"].cpu().numpy(), *(np.array(column, dtype=object) for column in texts))
        return loss, sample_size, log


@dataclass
class AmaeCTCConfig(CTCConfig, TrainedDownstreamConfig):
    """:class:`CTCConfig` with what training adds."""

    frozen_updates: int = setting(0, "updates at the beginning that train only what follows the encoder")


@register_model("amae_ctc", dataclass=AmaeCTCConfig)
class AmaeCTC(CTC, TrainedDownstreamModel):
    """A recogniser as fairseq trains it."""

    frozen_updates = 0

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "AmaeCTC":
        """Build the model, and note when its encoder thaws."""
        if cfg.frozen_updates < 0:
            raise UserError(f"model.frozen_updates={cfg.frozen_updates}: must be 0 or more")
        model = super().build_model(cfg, task)
        model.frozen_updates = cfg.frozen_updates
        return model

    def set_num_updates(self, num_updates: int) -> None:
        """Freeze or thaw the encoder; fairseq calls this before each update."""
        self.freeze(num_updates < self.frozen_updates)
