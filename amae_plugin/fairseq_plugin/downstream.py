"""Base of the downstream tasks: the encoder that a model starts from, and measures of a whole split."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask, AudioTaskConfig
from amae_plugin.fairseq_plugin.bases import TrainedModel, Values
from amae_plugin.fairseq_plugin.batches import STAND_IN
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.fairseq_plugin.optim import set_overrides
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import setting

logger = logging.getLogger(__name__)


@dataclass
class DownstreamTaskConfig(AudioTaskConfig):
    """Data of a downstream task."""

    fold: Optional[int] = setting(None, "cross-validation: the manifests are those in <data>/fold<N>")


class DownstreamTask(AudioTask):
    """Base of the tasks whose clips have labels or transcripts.

    Attributes:
        measures: names of what a validation measures of a whole split; True if more of it is better.
        condition: beginning of the message "..., it must be one of" these names.
    """

    measures: Mapping[str, bool]
    condition: str

    def __init__(self, cfg: DownstreamTaskConfig):
        super().__init__(cfg)
        if cfg.fold is not None:
            self.data = self.data / f"fold{cfg.fold}"
        self._scored: List[Tuple[np.ndarray, ...]] = []

    @abstractmethod
    def sizes(self) -> Dict[str, int]:
        """Return the settings of the model that follow from the data, which replace those of the recipe."""

    @abstractmethod
    def measure(self, *columns: np.ndarray) -> Mapping[str, float]:
        """Measure a whole split from what the criterion logs as ``scored``, an entry a clip, without the clips' ids."""

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the model, with the encoder's weights of ``model.pretrained`` or ``model.imagenet``.

        A checkpoint that is only read brings its own weights and settings. Otherwise ``cfg``, which checkpoints keep,
        gets the sizes that the data decide and the encoder's settings: those of the pretrained encoder, overridden by
        ``model.encoder``.
        """
        pretrained = None
        if not from_checkpoint:
            self.check_best_metric({"loss": False, **self.measures}, self.condition)
            pretrained = self._read_pretrained(cfg.pretrained) if cfg.get("pretrained") else None
            with open_dict(cfg):
                cfg.update(self.sizes())
                cfg.encoder = self._encoder_settings(cfg, pretrained)
                modalities = self.choose_modalities(cfg.encoder, default=("audio",))
                if len(find_system(cfg.encoder).encoder_class.modalities) > 1:
                    cfg.encoder.modalities = list(modalities)
        self.default_input = find_system(cfg.encoder).input(cfg.encoder)
        model = super().build_model(cfg, from_checkpoint)
        if pretrained is not None:
            pretrained.load_encoder(model)
            logger.info(f"encoder: {pretrained.path}, {pretrained.encoder_settings['_name']}")
        elif cfg.get("imagenet") and not from_checkpoint:
            self.load_image_weights(model, cfg.encoder, cfg.imagenet)
        return model

    def _encoder_settings(self, cfg: DictConfig, pretrained: Optional[Checkpoint]) -> DictConfig:
        input_sizes = {"input_length": self.cfg.target_length}
        if self.cfg.num_mel_bins is not None:
            input_sizes["num_mel_bins"] = self.cfg.num_mel_bins
        if pretrained is not None:
            if cfg.get("imagenet"):
                raise UserError("model.pretrained and model.imagenet exclude each other: set one of them to null")
            pretrained.check_settings()
            settings, given = dict(pretrained.encoder_settings), cfg.get("encoder") or {}
            sizes = input_sizes if find_system(settings).fits_positions else {}
            merged = OmegaConf.merge(settings, sizes, given)
            system = find_system(merged)
            known = {"_name", *(each.name for each in fields(system.config))}
            for name in (name for name in given if name not in known):
                reason = f"{system.title}, the system of {pretrained.path}, has no such setting"
                logger.warning(f"model.encoder.{name}={given[name]} has no effect: {reason}")
            return merged
        if not cfg.get("encoder"):
            remedy = "+model@model.encoder=amae_audio_mae, or another file of config/model"
            raise UserError(f"model.pretrained is null, so model.encoder must say what to train from scratch: {remedy}")
        return OmegaConf.merge(input_sizes, cfg.encoder)

    def _read_pretrained(self, path: str) -> Checkpoint:
        found = user_path(path) if user_path(path).is_file() else self.continued  # which describes the encoder, too
        if found is None:
            remedy = "pretrain one, give another, or train from scratch with model.pretrained=null"
            raise UserError(f"model.pretrained={path}: there is no such checkpoint; {remedy}")
        return Checkpoint.read(found)

    def valid_step(self, sample: Values, model: nn.Module, criterion: nn.Module) -> Tuple[Tensor, int, Values]:
        """Run fairseq's step, and keep what it scored on this device until the whole split is measured."""
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        scored = log.pop("scored")
        if STAND_IN not in sample:
            self._scored.append(scored)
        return loss, sample_size, log

    def reduce_metrics(self, logging_outputs: List[Values], criterion: FairseqCriterion) -> None:
        """Log what every task logs; in validation also measures, or a place for each, which fairseq reads early.

        ``fairseq-validate`` calls this once, at the end of a split, and :meth:`post_validate` never.
        """
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            return
        found = self._measure_split() if self.of_checkpoint else {}
        for name, value in found.items():
            metrics.log_scalar(name, value, round=6)
        for name in self.measures.keys() - found.keys():
            metrics.log_derived(name, lambda meters: math.nan)

    def post_validate(self, model: nn.Module, stats: Values, agg: MetersDict) -> None:
        """Add the measures of the whole split to what fairseq prints and compares checkpoints by."""
        found = self._measure_split()
        stats.update(found)
        metric, better = self.cfg.best_checkpoint_metric, max if self.cfg.maximize_best_checkpoint_metric else min
        if metric in found and (best := f"best_{metric}") in stats:  # the best of the earlier validations
            stats[best] = better(stats[best], stats[metric])

    def _measure_split(self) -> Mapping[str, float]:
        """Measure what was scored on all devices, which must call this together; each clip counts once."""
        parts, self._scored = self._scored, []
        if torch.distributed.is_initialized():
            everywhere: List[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, parts)
            parts = [part for device in everywhere for part in device]
        if not parts:
            return {}
        ids, *columns = (np.concatenate(arrays) for arrays in zip(*parts))
        once = np.unique(ids, return_index=True)[1]
        return self.measure(*(column[once] for column in columns))


@dataclass
class TrainedDownstreamConfig(FairseqDataclass):
    """What training adds to the settings of a downstream model: initial weights and learning rates."""

    pretrained: Optional[str] = setting(None, "checkpoint that gives the encoder; null: model.encoder from scratch")
    imagenet: Optional[str] = setting(None, "file of timm's ViT or DeiT weights to start from, if the system can")
    layer_decay: float = setting(0.75, "learning rate of a layer over that of the one above it")
    head_lr: float = setting(1.0, "learning rate of what follows the encoder over that of the encoder's last layer")


class TrainedDownstreamModel(TrainedModel):
    """A downstream model as fairseq trains it, see :class:`TrainedModel`."""

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "TrainedDownstreamModel":
        """Build the model from a config whose interpolations are resolved; the task loads pretrained weights."""
        if not 0 < cfg.layer_decay <= 1:
            raise UserError(f"model.layer_decay={cfg.layer_decay}: must be above 0 and at most 1")
        if not 0 < cfg.head_lr < math.inf:
            raise UserError(f"model.head_lr={cfg.head_lr}: must be above 0")
        model = super().build_model(cfg, task)
        depth = len(model.encoder.blocks) + 1

        def lr_scale(name: str) -> float:
            own = 1.0 if name.startswith("encoder.") else cfg.head_lr  # AST, CAV-MAE
            return own * cfg.layer_decay ** (depth - model.layer_index(name))  # BEiT, MAE

        set_overrides(model, lr_scale)
        return model
