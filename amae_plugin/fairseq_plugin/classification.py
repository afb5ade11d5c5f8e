"""Classification of labelled clips: fine-tuning, linear probe, and training from scratch."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
from fairseq.criterions import FairseqCriterion
from fairseq.tasks import register_task
from omegaconf import II, DictConfig, OmegaConf, open_dict
from torch import nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME, Labels, read_names
from amae_plugin.data.sampling import Sampling, balanced_weights, class_subset, read_weights
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask, AudioTaskConfig
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.fairseq_plugin.meters import log_split
from amae_plugin.metrics.classification import multi_label, single_label
from amae_plugin.models.base import Model
from amae_plugin.models.published import PublishedFile
from amae_plugin.models.registry import find_system

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

    fold: Optional[int] = field(
        default=None, metadata={"help": "cross-validation: the manifests are those in <data>/fold<N>"}
    )
    multi_label: bool = field(default=False, metadata={"help": "a clip may have several labels"})
    augmentations: Any = "roll,magnitude,spec_augment"
    mixup: Optional[float] = field(default=None, metadata={"help": "sets augmentations.mixup.share; 0: no mixup"})
    spec_augment_time: Optional[int] = field(default=None, metadata={"help": "sets augmentations.spec_augment.time"})
    spec_augment_frequency: Optional[int] = field(
        default=None, metadata={"help": "sets augmentations.spec_augment.frequency"}
    )
    noise: Optional[float] = field(default=None, metadata={"help": "sets augmentations.noise.amplitude; 0: no noise"})
    noise_roll: Optional[int] = field(default=None, metadata={"help": "with noise: sets augmentations.noise.frames"})
    balanced_samples: Optional[int] = field(
        default=None,
        metadata={
            "help": "draw this many clips an epoch, by train.weights.npy if it is there (amae weights), else by "
            "class-balanced weights; null: every clip once"
        },
    )
    label_fraction: float = field(
        default=1.0, metadata={"help": "share of the training clips that is used, drawn class by class"}
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")


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
        measured = ("loss", *self.measure_names)
        if cfg.best_checkpoint_metric not in measured:
            raise UserError(
                f"checkpoint.best_checkpoint_metric={cfg.best_checkpoint_metric}: with "
                f"task.multi_label={str(cfg.multi_label).lower()} it must be one of {', '.join(measured)}"
            )
        self._scored: Optional[Dict[str, np.ndarray]] = None
        self.state.add_factory("classes", lambda: list(read_names(self.data / LABELS_NAME)))

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take over a checkpoint's classes.

        Raises:
            UserError: this task has read others.
        """
        known, stored = self.state.state_dict.get("classes"), state_dict.get("classes")
        if known is not None and stored is not None and known != stored:
            raise UserError(
                f"{self.data / LABELS_NAME} is not the list of classes that the checkpoint was trained with; train in "
                "another folder (hydra.run.dir=...) or restore the list"
            )
        super().load_state_dict(state_dict)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Load ``<split>.tsv`` and ``<split>.lbl``."""
        manifest = self.read_manifest(split)
        labels = Labels.read(
            self.data / f"{split}.lbl", self.data / LABELS_NAME, len(manifest), multi=self.cfg.multi_label
        )
        sampling = self._sampling(split, labels) if split.startswith("train") else None
        self.make_dataset(manifest, split, labels=labels, sampling=sampling)

    def chosen_augmentations(self) -> Dict[str, Dict[str, Any]]:
        """Return the parameters of the chosen augmentations, with those that settings of their own stand for."""
        chosen = super().chosen_augmentations()
        for setting, (name, parameter) in ALIASES.items():
            value = self.cfg[setting]
            if value is None or (setting == "noise_roll" and "noise" not in chosen):
                continue
            logger.info(f"task.{setting}={value} stands for task.augmentations.{name}.{parameter}={value}")
            chosen[name] = {**chosen.get(name, {}), parameter: value}
            if not value and setting in ("mixup", "noise"):
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
        weights = read_weights(path, len(labels)) if path.exists() else balanced_weights(labels)
        if not weights[pool].any():
            raise UserError(f"{path}: no clip of those that task.label_fraction leaves has a weight above 0")
        return Sampling(pool, weights[pool], cfg.balanced_samples, cfg.seed)

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the classifier, with the weights of ``model.pretrained`` or ``model.imagenet``.

        A checkpoint that is only being read brings weights and settings itself. Otherwise the encoder's settings are
        those of the pretrained one, with what ``model.encoder`` says of them, and go into ``cfg`` with the number of
        classes, so that checkpoints hold them.
        """
        pretrained = None
        with open_dict(cfg):
            cfg.num_classes = len(self.state.classes)
            if not from_checkpoint:
                pretrained = self._read_pretrained(cfg.pretrained) if cfg.get("pretrained") else None
                cfg.encoder = self._encoder_settings(cfg, pretrained)
        self.encoder_settings = cfg.encoder
        model = super().build_model(cfg, from_checkpoint)
        if pretrained is not None:
            pretrained.load_encoder(model)
            logger.info(f"encoder: {pretrained.path}, {pretrained.encoder_settings['_name']}")
        elif cfg.get("imagenet") and not from_checkpoint:
            self._load_image_weights(model, cfg)
            logger.info(f"encoder: {cfg.imagenet}")
        return model

    @staticmethod
    def _load_image_weights(model: Model, cfg: DictConfig) -> None:
        load = find_system(cfg.encoder).load_image_weights
        if load is None:
            raise UserError(f"model.imagenet={cfg.imagenet}: {cfg.encoder._name} cannot start from an image model")
        try:
            load(model.encoder, PublishedFile.read(user_path(cfg.imagenet)).state)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"model.imagenet={cfg.imagenet}: no ViT or DeiT of model.encoder's sizes: {error}"
            ) from None

    def _encoder_settings(self, cfg: DictConfig, pretrained: Optional[Checkpoint]) -> DictConfig:
        input_sizes = {"input_length": self.cfg.target_length, "num_mel_bins": self.cfg.num_mel_bins}
        if pretrained is not None:
            if cfg.get("imagenet"):
                raise UserError("model.pretrained and model.imagenet exclude each other: set one of them to null")
            settings = dict(pretrained.encoder_settings)
            if find_system(settings).fits_positions:
                settings.update(input_sizes)
            return OmegaConf.merge(settings, cfg.get("encoder") or {})
        if not cfg.get("encoder"):
            raise UserError(
                "model.pretrained is null, so model.encoder must say what to train from scratch: "
                "+model@model.encoder=amae_audio_mae, or another file of config/model"
            )
        return OmegaConf.merge(input_sizes, cfg.encoder)

    @staticmethod
    def _read_pretrained(path: str) -> Checkpoint:
        if not user_path(path).is_file():
            raise UserError(
                f"model.pretrained={path}: there is no such checkpoint; pretrain one, give another, or train from "
                "scratch with model.pretrained=null"
            )
        return Checkpoint.read(user_path(path))

    def valid_step(self, sample: Dict[str, Any], model: nn.Module, criterion: nn.Module) -> Any:
        """fairseq's step; the scores stay on this device until the whole split is measured."""
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        self._scored = {name: log.pop(name) for name in ("id", "scores", "target")}
        return loss, sample_size, log

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: FairseqCriterion) -> None:
        """Log what every task logs, and in validation the measures of the whole split."""
        super().reduce_metrics(logging_outputs, criterion)
        if not criterion.training:
            log_split(self._scored, self.measure_names, self.measures)
            self._scored = None

    @property
    def measure_names(self) -> Tuple[str, ...]:
        """What validation logs, any of which ``checkpoint.best_checkpoint_metric`` may name."""
        return ("mAP", "mAUC", "d_prime") if self.cfg.multi_label else ("accuracy", "macro_f1")

    def measures(self, scores: np.ndarray, targets: np.ndarray) -> Mapping[str, float]:
        """The measures of a split from its scores (N, C) and targets (N, C)."""
        measured = (
            multi_label(scores, targets) if self.cfg.multi_label else single_label(scores, targets.argmax(axis=1))
        )
        return measured.headline
