"""Classification of labelled clips (fine-tuning, linear probe, from scratch): task, criterion, registered model."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from fairseq.tasks import FairseqTask, register_task
from omegaconf import DictConfig
from torch import Tensor, nn

from amae_plugin.data.dataset import Sampling
from amae_plugin.data.labels import LABELS_NAME, Labels, read_names
from amae_plugin.data.sampling import balanced_weights, class_subset, read_weights
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import SummedCriterion, Values
from amae_plugin.fairseq_plugin.downstream import (
    DownstreamTask,
    DownstreamTaskConfig,
    TrainedDownstreamConfig,
    TrainedDownstreamModel,
)
from amae_plugin.metrics.classification import multi_label, single_label
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import setting

logger = logging.getLogger(__name__)

ALIASES = {
    "mixup": ("mixup", "share"),
    "spec_augment_time": ("spec_augment", "time"),
    "spec_augment_frequency": ("spec_augment", "frequency"),
    "noise": ("noise", "amplitude"),
    "noise_roll": ("noise", "frames"),
}
"""Augmentations and parameters that settings of their own stand for."""


@dataclass
class AmaeClassificationTaskConfig(DownstreamTaskConfig):
    """Data, labels and augmentation of classification; the defaults are Audio-MAE's for AudioSet, single-label."""

    multi_label: bool = setting(False, "a clip may have several labels")
    augmentations: Any = "roll,magnitude,spec_augment"
    mixup: Optional[float] = setting(None, "sets augmentations.mixup.share; 0: no mixup")
    spec_augment_time: Optional[int] = setting(None, "sets augmentations.spec_augment.time")
    spec_augment_frequency: Optional[int] = setting(None, "sets augmentations.spec_augment.frequency")
    noise: Optional[float] = setting(None, "sets augmentations.noise.amplitude; 0: no noise")
    noise_roll: Optional[int] = setting(None, "with noise: sets augmentations.noise.frames")
    balanced_samples: Optional[int] = setting(
        None, "clips drawn an epoch, by train.weights.npy (amae weights) or else balanced by class; null: each once"
    )
    balanced_repeats: bool = setting(True, "whether an epoch may draw a clip more than once")
    label_fraction: float = setting(1.0, "share of the training clips that is used, drawn class by class")


@register_task("amae_classification", dataclass=AmaeClassificationTaskConfig)
class AmaeClassificationTask(DownstreamTask):
    """Single-label or multi-label classification of the clips of a manifest."""

    takes = ("audio", "image")

    def __init__(self, cfg: AmaeClassificationTaskConfig):
        super().__init__(cfg)
        if not 0 < cfg.label_fraction <= 1:
            raise UserError(f"task.label_fraction={cfg.label_fraction}: above 0 and at most 1")
        if cfg.balanced_samples is not None and cfg.balanced_samples < 1:
            raise UserError(f"task.balanced_samples={cfg.balanced_samples}: at least 1, or null")
        self.measures = dict.fromkeys(("mAP", "mAUC", "d_prime") if cfg.multi_label else ("accuracy", "macro_f1"), True)
        self.condition = f"with task.multi_label={str(cfg.multi_label).lower()}"
        self.state.add_factory("classes", lambda: list(read_names(self.data / LABELS_NAME)))

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the model, for batches as a classifier is evaluated: clips padded to ``task.target_length``.

        Raises:
            UserError: batches have another length, and the encoder would tell.
        """
        model = super().build_model(cfg, from_checkpoint)
        length, masks_padding = self.cfg.batch_length, find_system(cfg.encoder).encoder_class.masks_padding
        if not (from_checkpoint or length == "fixed" or (length == "longest" and masks_padding)):
            reason = "evaluation and prediction pad clips to task.target_length, which this encoder would not know"
            raise UserError(f"task.batch_length={length}: {reason}; set task.batch_length=fixed")
        return model

    def load_state_dict(self, state_dict: Values) -> None:
        """Take over a checkpoint's classes.

        Raises:
            UserError: this task has read others.
        """
        known, stored = self.state.state_dict.get("classes"), state_dict.get("classes")
        if known is not None and stored is not None and known != stored:
            pairs = enumerate(zip_longest(known, stored, fillvalue="nothing"), 1)
            line, (here, there) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            path, remedy = self.data / LABELS_NAME, "restore the list, or train in another folder (hydra.run.dir=...)"
            raise UserError(f"{path}, line {line}: {here}, where the checkpoint's classes have {there}; {remedy}")
        super().load_state_dict(state_dict)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load ``<split>.tsv`` and ``<split>.lbl``."""
        manifest = self.read_manifest(split)
        path, names_path = self.data / f"{split}.lbl", self.data / LABELS_NAME
        labels = Labels.read(path, names_path, len(manifest), multi=self.cfg.multi_label)
        sampling = self._sampling(split, labels) if self.trains_on(split) else None
        self.make_dataset(manifest, split, labels=labels, sampling=sampling)

    def chosen_augmentations(self) -> Dict[str, Dict[str, Any]]:
        """Return the parameters of the chosen augmentations, with those that settings of their own stand for."""
        chosen = super().chosen_augmentations()
        for alias, (name, parameter) in ALIASES.items():
            value = self.cfg[alias]
            if value is None or (alias == "noise_roll" and "noise" not in chosen):
                continue
            logger.info(f"task.{alias}={value} stands for task.augmentations.{name}.{parameter}={value}")
            chosen[name] = {**chosen.get(name, {}), parameter: value}
            if not value and alias in ("mixup", "noise"):
                del chosen[name]
        return chosen

    def _sampling(self, split: str, labels: Labels) -> Optional[Sampling]:
        cfg = self.cfg
        if cfg.label_fraction == 1 and cfg.balanced_samples is None:
            return None
        pool = np.arange(len(labels))
        if cfg.label_fraction < 1:
            pool = class_subset(labels, cfg.label_fraction, cfg.seed)
            logger.info(f"{split}: {len(pool):,} of {len(labels):,} clips, as task.label_fraction says")
        if cfg.balanced_samples is None:
            return Sampling(pool)
        path = self.data / f"{split}.weights.npy"
        # A link that leads nowhere is a file that the user wanted.
        weights = read_weights(path, len(labels)) if os.path.lexists(path) else balanced_weights(labels)
        if not weights[pool].any():
            raise UserError(f"{path}: no clip of those that task.label_fraction leaves has a weight above 0")
        drawable = np.count_nonzero(weights[pool])
        if not cfg.balanced_repeats and cfg.balanced_samples > drawable:
            problem = f"{self.data / split}.tsv has {drawable:,} clips to draw"
            raise UserError(f"task.balanced_samples={cfg.balanced_samples}: {problem}; set task.balanced_repeats=true")
        return Sampling(pool, weights[pool], cfg.balanced_samples, cfg.seed, cfg.balanced_repeats)

    def sizes(self) -> Dict[str, int]:
        """Return the number of classes."""
        return {"num_classes": len(self.state.classes)}

    def measure(self, *columns: np.ndarray) -> Mapping[str, float]:
        """Measure scores (N, C) against targets (N, C)."""
        scores, targets = columns
        found = multi_label(scores, targets) if self.cfg.multi_label else single_label(scores, targets.argmax(axis=1))
        return found.headline


# From logits and target probabilities (B, C) to the mean over clips.
LOSSES: Dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "bce": F.binary_cross_entropy_with_logits}


@dataclass
class AmaeClassificationConfig(FairseqDataclass):
    """Options of :class:`AmaeClassification`."""

    loss: str = setting("cross_entropy", "cross_entropy (softmax), or bce (sigmoid; several labels a clip, or mixup)")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes, in training only")
    mean_over_classes: bool = setting(False, "mean over classes also of cross_entropy, as M2D's published code")


@register_criterion("amae_classification", dataclass=AmaeClassificationConfig)
class AmaeClassification(SummedCriterion):
    """Cross-entropy or binary cross-entropy against soft targets.

    The sum is over clips; for ``bce``, or with *mean_over_classes*, of the mean over classes. In validation the log
    also holds the scores of every clip. They cannot be summed: the task takes them out and measures them all together.
    """

    def __init__(self, task: FairseqTask, loss: str, label_smoothing: float, mean_over_classes: bool = False):
        super().__init__(task)
        if loss not in LOSSES:
            raise UserError(f"criterion.loss={loss}: must be one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"criterion.label_smoothing={label_smoothing}: must be at least 0 and below 1")
        self.mean_loss = LOSSES[loss]
        self.divides = mean_over_classes and loss == "cross_entropy"
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, sample: Values, reduce: bool = True) -> Tuple[Tensor, int, Values]:
        """Return the loss of a batch of the task (summed over clips), their number, and the log."""
        logits, target = model(**sample["net_input"])["logits"], sample["target"]
        spread = self.label_smoothing if self.training else 0.0
        smoothed = target * (1 - spread) + spread / target.shape[1]
        loss = self.mean_loss(logits.float(), smoothed) * len(target)
        if self.divides:
            loss = loss / target.shape[1]
        log = self.log({"loss": loss}, len(target), sample)
        if not self.training:
            scored = (sample["id"], logits.float(), target.to(torch.uint8))
            log["scored"] = tuple(values.cpu().numpy() for values in scored)
        return loss, len(target), log


@dataclass
class AmaeClassifierConfig(ClassifierConfig, TrainedDownstreamConfig):
    """:class:`ClassifierConfig` with what training adds."""


@register_model("amae_classifier", dataclass=AmaeClassifierConfig)
class AmaeClassifier(Classifier, TrainedDownstreamModel):
    """A classifier as fairseq trains it."""
