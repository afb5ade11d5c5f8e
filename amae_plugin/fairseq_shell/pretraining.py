"""Pretraining on the audio of a manifest."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from tensorboardX import SummaryWriter
from torch import nn

from amae_plugin.data.augment import Augmentation, Magnitude, Roll
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.features import LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_shell.checkpoints import make_copies_atomic, remove_partial_files
from amae_plugin.fairseq_shell.data import FairseqAudioDataset, Stopwatch
from amae_plugin.fairseq_shell.hydra import user_path
from amae_plugin.fairseq_shell.models import plain_module

AUGMENTATIONS: Dict[str, Augmentation] = {"roll": Roll(), "magnitude": Magnitude()}


@dataclass
class AmaePretrainingConfig(FairseqDataclass):
    """Data and features of pretraining; the defaults are Audio-MAE's for AudioSet."""

    data: str = field(default=MISSING, metadata={"help": "folder of manifests: train.tsv, valid.tsv, ..."})
    target_length: int = field(default=1024, metadata={"help": "frames of a spectrogram (10 ms each)"})
    num_mel_bins: int = field(default=128, metadata={"help": "mel bands"})
    mean: float = field(default=-4.2677393, metadata={"help": "mean of the corpus's log-mel values (amae stats)"})
    std: float = field(default=4.5689974, metadata={"help": "their standard deviation"})
    augmentations: List[str] = field(
        default_factory=lambda: ["roll", "magnitude"],
        metadata={"help": "of the training waveforms, in order: roll, magnitude"},
    )
    on_bad_audio: str = field(
        default="raise", metadata={"help": "a clip that cannot be decoded: raise stops, skip counts and logs it"}
    )
    max_bad_audio: int = field(default=100, metadata={"help": "clips that may be skipped, on each device"})
    score_padding: bool = field(
        default=True, metadata={"help": "hidden patches beyond a clip's end count in the loss (as published)"}
    )
    clips_per_update: Optional[int] = field(
        default=None, metadata={"help": "global batch; recipes compute update_freq, lr and updates from it"}
    )
    picture_interval: int = field(default=0, metadata={"help": "updates between TensorBoard pictures, 0: none"})
    pictures: int = field(default=4, metadata={"help": "validation clips on a picture"})
    seed: int = II("common.seed")
    valid_subset: str = II("dataset.valid_subset")
    save_dir: str = II("checkpoint.save_dir")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")
    # Read by fairseq: batches are drawn anew in each epoch, and workers start anew, since they must see the epoch.
    rebuild_batches: bool = True
    reuse_dataloader: bool = False
    persistent_workers: bool = False


@register_task("amae_pretraining", dataclass=AmaePretrainingConfig)
class AmaePretraining(FairseqTask):
    """Masked-autoencoder pretraining on unlabelled audio."""

    def __init__(self, cfg: AmaePretrainingConfig):
        super().__init__(cfg)
        unknown = [name for name in cfg.augmentations if name not in AUGMENTATIONS]
        if unknown:
            raise UserError(f"task.augmentations: no {', '.join(unknown)}; there are {', '.join(AUGMENTATIONS)}")
        self.data = user_path(cfg.data)
        if not self.data.is_dir():
            raise UserError(f"task.data={cfg.data}: there is no folder {self.data}; amae manifest makes one")
        self.stopwatch = Stopwatch()
        self._writer: Optional[SummaryWriter] = None

    @classmethod
    def setup_task(cls, cfg: AmaePretrainingConfig, from_checkpoint: bool = False) -> "AmaePretraining":
        """Build the task; unless a checkpoint is only being read, make the run's own checkpoints safe from a kill."""
        if not from_checkpoint:
            make_copies_atomic()
            if distributed_utils.get_global_rank() == 0:
                remove_partial_files(cfg.save_dir)
        return cls(cfg)

    @property
    def source_dictionary(self) -> None:
        """Audio has no dictionary."""
        return None

    @property
    def target_dictionary(self) -> None:
        """Audio has no dictionary."""
        return None

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Load ``<split>.tsv``; the split ``train`` is shuffled, cropped at random and augmented."""
        train = split.startswith("train")
        cfg = self.cfg
        dataset = AudioDataset(
            Manifest.read(self.data / f"{split}.tsv"),
            target_length=cfg.target_length,
            mean=cfg.mean,
            std=cfg.std,
            features=LogMel(num_mel_bins=cfg.num_mel_bins),
            augmentations=[AUGMENTATIONS[name] for name in cfg.augmentations],
            train=train,
            seed=cfg.seed,
            on_bad_audio=cfg.on_bad_audio,
            max_bad_audio=cfg.max_bad_audio,
        )
        self.datasets[split] = FairseqAudioDataset(dataset, shuffle=train)

    def get_batch_iterator(
        self, dataset: FairseqAudioDataset, *args: Any, **kwargs: Any
    ) -> iterators.EpochBatchIterator:
        """fairseq's iterator over the order that the data set gives, with the time that training waits for it added up.

        fairseq would shuffle the batches once more. Without that, an update's clips are a run of the epoch's order,
        the same for every batch size, number of devices and number of accumulation steps that make up its global batch.
        """
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        iterator.disable_shuffling = True
        if dataset.shuffle:  # training, not validation
            # fairseq builds its iterator deep inside that method, and may return one it built before.
            self.stopwatch.attach(iterator)
        return iterator

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: FairseqCriterion) -> None:
        """Log what the criterion and fairseq log, and in training the clips per second of all devices."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            clips = sum(log["nsentences"] for log in logging_outputs)
            metrics.log_speed("clips_per_second", clips, priority=90, round=1)

    def valid_step(self, sample: Dict[str, Any], model: nn.Module, criterion: nn.Module) -> Any:
        """fairseq's step, never compiled: that would cost more than a validation's few batches take."""
        with torch.compiler.set_stance("force_eager"):
            return super().valid_step(sample, model, criterion)

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step, log the seconds waited for data since the last one, and draw a picture when it is time."""
        super().optimizer_step(optimizer, model, update_num)
        metrics.log_scalar("data_wait", self.stopwatch.lap(), priority=850, round=3)
        interval = self.cfg.picture_interval
        if interval and (update_num + 1) % interval == 0 and distributed_utils.get_global_rank() == 0:
            self.draw_pictures(plain_module(model), update_num + 1)

    def draw_pictures(self, model: nn.Module, update: int) -> None:
        """Write a picture of fixed validation clips, reconstructed, to TensorBoard."""
        if not self.cfg.tensorboard_logdir:
            return
        # matplotlib takes a second to import: only runs that draw pay for it.
        from amae_plugin.visual.clips import draw_clips

        dataset = self.datasets[self.cfg.valid_subset.split(",")[0]].dataset
        step = max(1, len(dataset) // self.cfg.pictures)
        clips = list(range(0, len(dataset), step))[: self.cfg.pictures]
        if self._writer is None:
            self._writer = SummaryWriter(str(Path(self.cfg.tensorboard_logdir) / "pictures"))
        with torch.compiler.set_stance("force_eager"):
            figure = draw_clips(model, dataset, clips)
        self._writer.add_figure("reconstruction", figure, global_step=update, close=False)
        self._writer.flush()
