"""Classification of labelled clips (fine-tuning, linear probe, from scratch): task, criterion, registered model."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
import math
import os
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.models import register_model
from fairseq.tasks import FairseqTask, register_task
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.dataset import Sampling
from amae_plugin.data.labels import LABELS_NAME, Labels, read_names
from amae_plugin.data.sampling import balanced_weights, class_subset, read_weights
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask, AudioTaskConfig
from amae_plugin.fairseq_plugin.bases import SummedCriterion, TrainedModel, Values
from amae_plugin.fairseq_plugin.batches import STAND_IN
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.fairseq_plugin.optim import set_overrides
from amae_plugin.metrics.classification import multi_label, single_label
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.published import PublishedFile
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
class AmaeClassificationTaskConfig(AudioTaskConfig):
    """Data, labels and augmentation of classification; the defaults are Audio-MAE's for AudioSet, single-label."""

    fold: Optional[int] = setting(None, "cross-validation: the manifests are those in <data>/fold<N>")
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
    label_fraction: float = setting(1.0, "share of the training clips that is used, drawn class by class")


@register_task("amae_classification", dataclass=AmaeClassificationTaskConfig)
class AmaeClassificationTask(AudioTask):
    """Single-label or multi-label classification of the clips of a manifest."""

    def __init__(self, cfg: AmaeClassificationTaskConfig):
        super().__init__(cfg)
        if cfg.fold is not None:
            self.data = self.data / f"fold{cfg.fold}"
        if not 0 < cfg.label_fraction <= 1:
            raise UserError(f"task.label_fraction={cfg.label_fraction}: above 0 and at most 1")
        if cfg.balanced_samples is not None and cfg.balanced_samples < 1:
            raise UserError(f"task.balanced_samples={cfg.balanced_samples}: at least 1, or null")
        self.measures = ("mAP", "mAUC", "d_prime") if cfg.multi_label else ("accuracy", "macro_f1")
        self._scored: List[Tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.state.add_factory("classes", lambda: list(read_names(self.data / LABELS_NAME)))

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
        sampling = self._sampling(split, labels) if split.startswith("train") else None
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
        pool = class_subset(labels, cfg.label_fraction, cfg.seed)
        if cfg.label_fraction < 1:
            logger.info(f"{split}: {len(pool):,} of {len(labels):,} clips, as task.label_fraction says")
        if cfg.balanced_samples is None:
            return Sampling(pool)
        path = self.data / f"{split}.weights.npy"
        # A link that leads nowhere is a file that the user wanted.
        weights = read_weights(path, len(labels)) if os.path.lexists(path) else balanced_weights(labels)
        if not weights[pool].any():
            raise UserError(f"{path}: no clip of those that task.label_fraction leaves has a weight above 0")
        return Sampling(pool, weights[pool], cfg.balanced_samples, cfg.seed)

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the classifier, with the weights of ``model.pretrained`` or ``model.imagenet``.

        A checkpoint that is only read brings its own weights and settings. Otherwise ``cfg``, which checkpoints keep,
        gets the number of classes and the encoder's settings: those of the pretrained encoder, overridden by
        ``model.encoder``.
        """
        pretrained = None
        if not from_checkpoint:
            kind = f"with task.multi_label={str(self.cfg.multi_label).lower()}"
            self.check_best_metric(("loss", *self.measures), kind)
            pretrained = self._read_pretrained(cfg.pretrained) if cfg.get("pretrained") else None
            with open_dict(cfg):
                cfg.num_classes = len(self.state.classes)
                cfg.encoder = self._encoder_settings(cfg, pretrained)
        self.default_input = find_system(cfg.encoder).input(cfg.encoder)
        model = super().build_model(cfg, from_checkpoint)
        if pretrained is not None:
            pretrained.load_encoder(model)
            logger.info(f"encoder: {pretrained.path}, {pretrained.encoder_settings['_name']}")
        elif cfg.get("imagenet") and not from_checkpoint:
            self._load_image_weights(model, cfg)
            logger.info(f"encoder: {cfg.imagenet}")
        return model

    @staticmethod
    def _load_image_weights(model: Classifier, cfg: DictConfig) -> None:
        load = find_system(cfg.encoder).load_image_weights
        if load is None:
            raise UserError(f"model.imagenet={cfg.imagenet}: {cfg.encoder._name} cannot start from an image model")
        try:
            load(model.encoder, PublishedFile.read(user_path(cfg.imagenet)).state)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"model.imagenet={cfg.imagenet}: no ViT/DeiT of model.encoder's sizes: {error}") from None

    def _encoder_settings(self, cfg: DictConfig, pretrained: Optional[Checkpoint]) -> DictConfig:
        input_sizes = {"input_length": self.cfg.target_length}
        if self.cfg.num_mel_bins is not None:
            input_sizes["num_mel_bins"] = self.cfg.num_mel_bins
        if pretrained is not None:
            if cfg.get("imagenet"):
                raise UserError("model.pretrained and model.imagenet exclude each other: set one of them to null")
            pretrained.check_settings()
            settings = dict(pretrained.encoder_settings)
            sizes = input_sizes if find_system(settings).fits_positions else {}
            return OmegaConf.merge(settings, sizes, cfg.get("encoder") or {})
        if not cfg.get("encoder"):
            remedy = "+model@model.encoder=amae_audio_mae, or another file of config/model"
            raise UserError(f"model.pretrained is null, so model.encoder must say what to train from scratch: {remedy}")
        return OmegaConf.merge(input_sizes, cfg.encoder)

    @staticmethod
    def _read_pretrained(path: str) -> Checkpoint:
        if not user_path(path).is_file():
            remedy = "pretrain one, give another, or train from scratch with model.pretrained=null"
            raise UserError(f"model.pretrained={path}: there is no such checkpoint; {remedy}")
        return Checkpoint.read(user_path(path))

    def valid_step(self, sample: Values, model: nn.Module, criterion: nn.Module) -> Tuple[Tensor, int, Values]:
        """Run fairseq's step, and keep the scores on this device until the whole split is measured."""
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        scored = log.pop("id"), log.pop("scores"), log.pop("target")
        if STAND_IN not in sample:
            self._scored.append(scored)
        return loss, sample_size, log

    def reduce_metrics(self, logging_outputs: List[Values], criterion: FairseqCriterion) -> None:
        """Log what every task logs; in validation also a place for each measure, since fairseq reads one early."""
        super().reduce_metrics(logging_outputs, criterion)
        if not criterion.training:
            for name in self.measures:
                metrics.log_derived(name, lambda meters: math.nan)

    def post_validate(self, model: nn.Module, stats: Values, agg: MetersDict) -> None:
        """Add the measures of the whole split to what fairseq prints and compares checkpoints by.

        The scores come from all devices, which must call this together. Each clip counts once.
        """
        parts, self._scored = self._scored, []
        if torch.distributed.is_initialized():
            everywhere: List[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, parts)
            parts = [part for device in everywhere for part in device]
        if not parts:
            return
        ids, scores, targets = (np.concatenate(arrays) for arrays in zip(*parts))
        once = np.unique(ids, return_index=True)[1]
        scores, targets = scores[once], targets[once]
        multi = self.cfg.multi_label
        measured = multi_label(scores, targets) if multi else single_label(scores, targets.argmax(axis=1))
        stats.update(measured.headline)
        metric, better = self.cfg.best_checkpoint_metric, max if self.cfg.maximize_best_checkpoint_metric else min
        if (best := f"best_{metric}") in stats:  # the best of the earlier validations
            stats[best] = better(stats[best], stats[metric])


# From logits and target probabilities (B, C) to the mean over clips.
LOSSES: Dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "bce": F.binary_cross_entropy_with_logits}


@dataclass
class AmaeClassificationConfig(FairseqDataclass):
    """Options of :class:`AmaeClassification`."""

    loss: str = setting("cross_entropy", "cross_entropy (softmax), or bce (sigmoid; several labels a clip, or mixup)")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes, in training only")


@register_criterion("amae_classification", dataclass=AmaeClassificationConfig)
class AmaeClassification(SummedCriterion):
    """Cross-entropy or binary cross-entropy against soft targets.

    The sum is over clips (of the mean over classes for ``bce``). In validation the log also holds the scores of every
    clip. They cannot be summed: the task takes them out and measures them all together.
    """

    def __init__(self, task: FairseqTask, loss: str, label_smoothing: float):
        super().__init__(task)
        if loss not in LOSSES:
            raise UserError(f"criterion.loss={loss}: must be one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"criterion.label_smoothing={label_smoothing}: must be at least 0 and below 1")
        self.mean_loss = LOSSES[loss]
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, sample: Values, reduce: bool = True) -> Tuple[Tensor, int, Values]:
        """Return the loss of a batch of the task (summed over clips), their number, and the log."""
        logits, target = model(**sample["net_input"])["logits"], sample["target"]
        spread = self.label_smoothing if self.training else 0.0
        smoothed = target * (1 - spread) + spread / target.shape[1]
        loss = self.mean_loss(logits.float(), smoothed) * len(target)
        log = self.log({"loss": loss}, len(target), sample)
        if not self.training:
            scored = {"id": sample["id"], "scores": logits.float(), "target": target.to(torch.uint8)}
            log.update({name: values.cpu().numpy() for name, values in scored.items()})
        return loss, len(target), log


@dataclass
class AmaeClassifierConfig(ClassifierConfig, FairseqDataclass):
    """:class:`ClassifierConfig` with what training adds: initial weights, learning rates, and compilation."""

    pretrained: Optional[str] = setting(None, "checkpoint that gives the encoder; null: model.encoder from scratch")
    imagenet: Optional[str] = setting(None, "file of timm's ViT or DeiT weights to start from, if the system can")
    layer_decay: float = setting(0.75, "learning rate of a layer over that of the one above it")


@register_model("amae_classifier", dataclass=AmaeClassifierConfig)
class AmaeClassifier(Classifier, TrainedModel):
    """A classifier as fairseq trains it."""

    plain_config = ClassifierConfig

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "AmaeClassifier":
        """Build the model from a config whose interpolations are resolved; the task loads pretrained weights."""
        if not 0 < cfg.layer_decay <= 1:
            raise UserError(f"model.layer_decay={cfg.layer_decay}: must be above 0 and at most 1")
        model = super().build_model(cfg, task)
        depth = len(model.encoder.blocks) + 1
        set_overrides(model, lambda name: cfg.layer_decay ** (depth - model.layer_index(name)))  # BEiT, MAE
        return model
