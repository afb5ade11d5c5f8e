"""Pretraining on the audio of a manifest."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import register_task
from omegaconf import II, DictConfig
from tensorboardX import SummaryWriter
from torch import nn

from amae_plugin.fairseq_plugin.audio_task import AudioTask, AudioTaskConfig
from amae_plugin.fairseq_plugin.models import plain_module
from amae_plugin.models.base import PretrainingModel


@dataclass
class AmaePretrainingConfig(AudioTaskConfig):
    """Data and features of pretraining."""

    score_padding: bool = field(
        default=True, metadata={"help": "hidden patches beyond a clip's end count in the loss (as published)"}
    )
    picture_interval: int = field(default=0, metadata={"help": "updates between TensorBoard pictures, 0: none"})
    pictures: int = field(default=4, metadata={"help": "validation clips on a picture"})
    valid_subset: str = II("dataset.valid_subset")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")


@register_task("amae_pretraining", dataclass=AmaePretrainingConfig)
class AmaePretraining(AudioTask):
    """Masked-autoencoder pretraining on unlabelled audio."""

    def __init__(self, cfg: AmaePretrainingConfig):
        super().__init__(cfg)
        self._writer: Optional[SummaryWriter] = None

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the model, and note what input it expects."""
        self.encoder_settings = cfg
        return super().build_model(cfg, from_checkpoint)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Load ``<split>.tsv``."""
        self.make_dataset(self.read_manifest(split), split)

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step, and draw a picture when it is time."""
        super().optimizer_step(optimizer, model, update_num)
        interval = self.cfg.picture_interval
        if interval and (update_num + 1) % interval == 0 and distributed_utils.get_global_rank() == 0:
            self.draw_pictures(plain_module(model), update_num + 1)

    def draw_pictures(self, model: PretrainingModel, update: int) -> None:
        """Write a picture of fixed validation clips, reconstructed, to TensorBoard."""
        if not self.cfg.tensorboard_logdir:
            return
        # matplotlib takes a second to import: only runs that draw pay for it.
        from amae_plugin.visual.pictures import draw_clips

        dataset = self.datasets[self.cfg.valid_subset.split(",")[0]].dataset
        step = max(1, len(dataset) // self.cfg.pictures)
        clips = list(range(0, len(dataset), step))[: self.cfg.pictures]
        if self._writer is None:
            self._writer = SummaryWriter(str(Path(self.cfg.tensorboard_logdir) / "pictures"))
        with torch.compiler.set_stance("force_eager"):
            figure = draw_clips(model, dataset, clips)
        self._writer.add_figure("reconstruction", figure, global_step=update, close=False)
        self._writer.flush()
