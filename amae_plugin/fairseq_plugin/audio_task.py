"""What the tasks share: clips of a manifest in fairseq's batches."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING
from torch import nn

from amae_plugin.data.augment import Augmentation, Augmentations, Magnitude, Roll
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.checkpoints import make_writing_atomic, remove_partial_files
from amae_plugin.fairseq_plugin.dataset import FairseqAudioDataset, Stopwatch, watch
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.models.registry import input_settings

WAVEFORM_AUGMENTATIONS: Dict[str, Augmentation] = {"roll": Roll(), "magnitude": Magnitude()}


@dataclass
class AudioTaskConfig(FairseqDataclass):
    """Data and features; the defaults are Audio-MAE's for AudioSet."""

    data: str = field(default=MISSING, metadata={"help": "folder of manifests: train.tsv, valid.tsv, ..."})
    recipe: Optional[str] = field(default=None, metadata={"help": "name of the recipe, which checkpoints keep"})
    target_length: int = field(default=1024, metadata={"help": "frames of a spectrogram at most (10 ms each)"})
    num_mel_bins: int = field(default=128, metadata={"help": "mel bands"})
    mean: float = field(
        default=-4.2677393,
        metadata={"help": "mean of the corpus's log-mel values (amae stats); MAE-AST finds its own"},
    )
    std: float = field(default=4.5689974, metadata={"help": "their standard deviation"})
    window_type: Optional[str] = field(
        default=None, metadata={"help": "of the analysis: hanning or povey; null: as the system has it (MAE-AST povey)"}
    )
    remove_mean: Optional[bool] = field(
        default=None,
        metadata={"help": "subtract the mean of a clip's waveform first; null: as the system has it (MAE-AST not)"},
    )
    batch_length: str = field(
        default="fixed",
        metadata={
            "help": "frames of the clips of a batch: fixed (target_length; shorter clips are padded), longest (of its "
            "longest clip; the others are padded) or shortest (of its shortest clip; the others are cropped)"
        },
    )
    length_multiple: int = field(
        default=16, metadata={"help": "longest, shortest: the length of a batch is a multiple of this, as patches ask"}
    )
    sample_rate: int = field(
        default=16_000,
        metadata={"help": "longest, shortest: rate in Hz at which the manifest counts samples, to tell lengths by"},
    )
    augmentations: List[str] = field(
        default_factory=lambda: ["roll", "magnitude"],
        metadata={"help": "of the training waveforms, in order: roll, magnitude"},
    )
    on_bad_audio: str = field(
        default="raise", metadata={"help": "a clip that cannot be decoded: raise stops, skip counts and logs it"}
    )
    max_bad_audio: int = field(default=100, metadata={"help": "clips that may be skipped, on each device"})
    clips_per_update: Optional[int] = field(
        default=None, metadata={"help": "global batch; recipes compute update_freq, lr and updates from it"}
    )
    frames_per_update: Optional[int] = field(
        default=None, metadata={"help": "the same in frames, for batches by dataset.max_tokens"}
    )
    clips_per_epoch: Optional[int] = field(
        default=None, metadata={"help": "clips of an epoch; recipes compute updates from it"}
    )
    epochs: Optional[float] = field(default=None, metadata={"help": "epochs from which a recipe computes max_update"})
    warmup_epochs: Optional[float] = field(default=None, metadata={"help": "the same for warmup_updates"})
    seed: int = II("common.seed")
    save_dir: str = II("checkpoint.save_dir")
    # Read by fairseq: batches are drawn anew in each epoch, and workers start anew, since they must see the epoch.
    rebuild_batches: bool = True
    reuse_dataloader: bool = False
    persistent_workers: bool = False


class AudioTask(FairseqTask):
    """Base of the tasks of this plugin."""

    def __init__(self, cfg: AudioTaskConfig):
        super().__init__(cfg)
        unknown = [name for name in cfg.augmentations if name not in WAVEFORM_AUGMENTATIONS]
        if unknown:
            raise UserError(
                f"task.augmentations: no {', '.join(unknown)}; there are {', '.join(WAVEFORM_AUGMENTATIONS)}"
            )
        self.data = user_path(cfg.data)
        self.stopwatch = Stopwatch()
        # Of the system whose input the clips become; fairseq builds the model before it loads data.
        self.encoder_settings: Mapping[str, Any] = {"_name": "amae_audio_mae"}

    @classmethod
    def setup_task(cls, cfg: AudioTaskConfig, from_checkpoint: bool = False) -> "AudioTask":
        """Build the task; unless a checkpoint is only being read, make the run's own checkpoints safe from a kill.

        Raises:
            UserError: a setting cannot be used, or, for a run, there is no folder of manifests.
        """
        task = cls(cfg)
        if not from_checkpoint:
            if not task.data.is_dir():
                raise UserError(f"task.data={cfg.data}: there is no folder {task.data}; amae manifest makes one")
            make_writing_atomic()
            if distributed_utils.get_global_rank() == 0:
                remove_partial_files(cfg.save_dir)
        return task

    @property
    def source_dictionary(self) -> None:
        """Audio has no dictionary."""
        return None

    @property
    def target_dictionary(self) -> None:
        """Audio has no dictionary."""
        return None

    def read_manifest(self, split: str) -> Manifest:
        """Read ``<split>.tsv``."""
        return Manifest.read(self.data / f"{split}.tsv")

    def wrap(self, manifest: Manifest, split: str, augmentations: Augmentations, **settings: Any) -> None:
        """Make the data set of a split; the split ``train`` is shuffled, cropped at random and augmented."""
        train = split.startswith("train")
        cfg = self.cfg
        expected = input_settings(cfg, self.encoder_settings)
        try:
            dataset = AudioDataset(
                manifest,
                target_length=cfg.target_length,
                mean=expected["mean"],
                std=expected["std"],
                features=LogMel.from_settings(expected),
                augmentations=augmentations,
                train=train,
                seed=cfg.seed,
                batch_length=cfg.batch_length,
                length_multiple=cfg.length_multiple,
                manifest_rate=cfg.sample_rate,
                on_bad_audio=cfg.on_bad_audio,
                max_bad_audio=cfg.max_bad_audio,
                **settings,
            )
        except ValueError as error:
            raise UserError(f"task: {error}") from None
        self.datasets[split] = FairseqAudioDataset(dataset, shuffle=train)

    def waveform_augmentations(self) -> Tuple[Augmentation, ...]:
        """Those that the settings name, in order."""
        return tuple(WAVEFORM_AUGMENTATIONS[name] for name in self.cfg.augmentations)

    def get_batch_iterator(
        self, dataset: FairseqAudioDataset, max_tokens: Optional[int] = None, **kwargs: Any
    ) -> iterators.EpochBatchIterator:
        """fairseq's iterator over the order that the data set gives, with the time that training waits for it added up.

        fairseq would shuffle the batches once more. Without that, an update's clips are a run of the epoch's order,
        the same for every batch size, number of devices and number of accumulation steps that make up its global batch.
        Batches of clips of one length must be shuffled, since they come in the order of the length.

        Raises:
            UserError: a clip is longer than a batch may be.
        """
        longest = int(dataset.sizes.max(initial=0))
        if max_tokens is not None and longest > max_tokens:
            raise UserError(
                f"dataset.max_tokens={max_tokens}: the longest clip has {longest} frames; allow as many, or crop clips "
                "by task.target_length"
            )
        iterator = super().get_batch_iterator(dataset, max_tokens=max_tokens, **kwargs)
        iterator.disable_shuffling = not dataset.by_length
        # fairseq builds its iterator deep inside that method, and may return one it built before.
        watch(iterator, self.stopwatch if dataset.shuffle else None)  # in training, not in validation
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
        """Step, and log the seconds waited for data since the last one."""
        super().optimizer_step(optimizer, model, update_num)
        metrics.log_scalar("data_wait", self.stopwatch.lap(), priority=850, round=3)
