"""Base of the tasks: clips of a manifest in fairseq's batches."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import meters, metrics
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING
from torch import nn

from amae_plugin.data.augment import Augmentation, build_augmentations, read_choice
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import FairseqAudioDataset, TimedBatches, Values
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.models.settings import setting


@dataclass
class AudioTaskConfig(FairseqDataclass):
    """Data and features; the defaults are Audio-MAE's for AudioSet."""

    data: str = setting(MISSING, "folder of manifests: train.tsv, valid.tsv, ...")
    recipe: Optional[str] = setting(None, "name of the recipe, which checkpoints keep")
    target_length: int = setting(1024, "frames of a spectrogram at most (10 ms each)")
    num_mel_bins: Optional[int] = setting(None, "mel bands; null: the system's (128, M2D's: 80)")
    mean: float = setting(ModelInput.mean, "mean of the corpus's log-mel values (amae stats); MAE-AST finds its own")
    std: float = setting(ModelInput.std, "their standard deviation")
    front_end: Optional[str] = setting(None, "log-mel front end: kaldi, slaney; null: the system's (M2D's: slaney)")
    window_type: Optional[str] = setting(
        None, "analysis window: hanning, povey, with slaney hann; null: the system's (MAE-AST's: povey)"
    )
    normalization: Optional[str] = setting(
        None, "two_std: (x - mean) / (2 std); one_std; model: by the model itself; null: the system's"
    )
    batch_length: str = setting(
        "fixed", "clips of a batch: fixed (padded to target_length), longest (padded to it) or shortest (cropped to it)"
    )
    length_multiple: int = setting(16, "longest, shortest: the length of a batch is a multiple of this, as patches ask")
    sample_rate: int = setting(16_000, "longest, shortest: rate in Hz at which the manifest counts samples")
    augmentations: Any = setting(
        "roll,magnitude", "names (roll, magnitude, mixup, spec_augment, noise) or {name: parameters}, in order; or null"
    )
    on_bad_audio: str = setting("raise", "a clip that cannot be decoded: raise stops, skip counts and logs it")
    max_bad_audio: int = setting(100, "number of clips that may be skipped, on each device, in all epochs together")
    clips_per_update: Optional[int] = setting(None, "global batch; recipes compute update_freq, lr and updates from it")
    frames_per_update: Optional[int] = setting(None, "the same in frames, for batches by dataset.max_tokens")
    clips_per_epoch: Optional[int] = setting(None, "clips of an epoch; recipes compute the number of updates from it")
    epochs: Optional[float] = setting(None, "length of the training, if a recipe reads it")
    warmup_epochs: Optional[float] = setting(None, "length of the warm-up, likewise")
    seed: int = II("common.seed")
    bf16: bool = II("common.bf16")
    fp16: bool = II("common.fp16")
    # Read by fairseq: batches are drawn anew in each epoch, and workers start anew, since they must see the epoch.
    rebuild_batches: bool = True
    reuse_dataloader: bool = False
    persistent_workers: bool = False


class AudioTask(FairseqTask):
    """Base of the tasks of this plugin."""

    source_dictionary = target_dictionary = None  # audio has none

    def __init__(self, cfg: AudioTaskConfig):
        super().__init__(cfg)
        self.data = user_path(cfg.data)
        self.data_wait = meters.StopwatchMeter()
        self.default_input = ModelInput()  # the system's; fairseq builds the model before it loads data

    @classmethod
    def setup_task(cls, cfg: AudioTaskConfig, from_checkpoint: bool = False) -> "AudioTask":
        """Build the task.

        Raises:
            UserError: a setting cannot be used, or, for a run, there is no folder of manifests.
        """
        task = cls(cfg)
        if not (from_checkpoint or task.data.is_dir()):
            raise UserError(f"task.data={cfg.data}: there is no folder {task.data}; amae manifest makes one")
        if not from_checkpoint and (cfg.bf16 or cfg.fp16):
            raise UserError("common.bf16 and common.fp16 do not work with these models: set model.bf16=true instead")
        return task

    def read_manifest(self, split: str) -> Manifest:
        """Read ``<split>.tsv``."""
        return Manifest.read(self.data / f"{split}.tsv")

    def make_dataset(self, manifest: Manifest, split: str, **settings: Any) -> None:
        """Make the data set of a split; the split ``train`` is shuffled, cropped at random and augmented."""
        same = ("seed", "batch_length", "length_multiple", "on_bad_audio", "max_bad_audio")
        settings.update({name: self.cfg[name] for name in same}, manifest_rate=self.cfg.sample_rate)
        settings.update(augmentations=self.augmentations, train=split.startswith("train"))
        try:
            model_input = ModelInput.from_settings(self.cfg, self.default_input)
            self.datasets[split] = FairseqAudioDataset(AudioDataset(manifest, model_input, **settings))
        except ValueError as error:
            raise UserError(f"task: {error}") from None

    @functools.cached_property
    def augmentations(self) -> Tuple[Augmentation, ...]:
        """Augmentations of training clips.

        Raises:
            UserError: there is no augmentation or parameter of that name, or a parameter is out of range.
        """
        try:
            return build_augmentations(self.chosen_augmentations())
        except ValueError as error:
            raise UserError(f"task.augmentations: {error}") from None

    def chosen_augmentations(self) -> Dict[str, Dict[str, Any]]:
        """Return the parameters of the chosen augmentations, by name and in order."""
        return read_choice(self.cfg.augmentations)

    def get_batch_iterator(
        self, dataset: FairseqAudioDataset, max_tokens: Optional[int] = None, **kwargs: Any
    ) -> iterators.EpochBatchIterator:
        """Make fairseq's iterator over the order that the data set gives; in training it adds up the time of waiting.

        fairseq would shuffle the batches once more. Without that, an update's clips are a run of the epoch's order,
        the same for every batch size, number of devices and number of accumulation steps that make up its global batch.
        Batches of clips of one length must be shuffled, since they come in the order of the length.

        Raises:
            UserError: a clip is longer than a batch may be.
        """
        longest = int(dataset.sizes.max(initial=0))
        if max_tokens is not None and longest > max_tokens:
            remedy = "allow as many, or crop clips by task.target_length"
            raise UserError(f"dataset.max_tokens={max_tokens}: the longest clip has {longest} frames; {remedy}")
        iterator = super().get_batch_iterator(dataset, max_tokens=max_tokens, **kwargs)
        iterator.disable_shuffling = not dataset.by_length
        if dataset.dataset.train:
            # Of the class, since fairseq may return an iterator that it returned before, with this method replaced.
            next_epoch = functools.partial(iterators.EpochBatchIterator.next_epoch_itr, iterator)
            iterator.next_epoch_itr = lambda **options: TimedBatches(next_epoch(**options), self.data_wait)
        return iterator

    def reduce_metrics(self, logging_outputs: List[Values], criterion: FairseqCriterion) -> None:
        """Log what the criterion and fairseq log, and in training the clips per second of all devices."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            clips = sum(log["nsentences"] for log in logging_outputs)
            metrics.log_speed("clips_per_second", clips, priority=90, round=1)

    def valid_step(self, sample: Values, model: nn.Module, criterion: nn.Module) -> Any:
        """Run fairseq's step without compilation, which would cost more time than a validation's few batches."""
        with torch.compiler.set_stance("force_eager"):
            return super().valid_step(sample, model, criterion)

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step, and log the seconds waited for data since the last one."""
        super().optimizer_step(optimizer, model, update_num)
        metrics.log_scalar("data_wait", self.data_wait.sum, priority=850, round=3)
        self.data_wait.reset()
