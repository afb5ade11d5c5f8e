"""Base of the tasks: clips of a manifest in fairseq's batches."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Type

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import data_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING, DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.augment import AUGMENTATIONS, Augmentation, build_augmentations, read_choice
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.features import Features
from amae_plugin.data.log_mel import NORMALIZATIONS, ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import read_or_measure
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import FairseqAudioDataset, Values
from amae_plugin.fairseq_plugin.batches import STAND_IN, EpochBatches
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.fairseq_plugin.pace import FirstLine
from amae_plugin.models.base import Model
from amae_plugin.models.published import PublishedFile
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import Settings, setting
from amae_plugin.modules.compute import is_out_of_memory

logger = logging.getLogger(__name__)

AUTO = "auto"
"""Value of ``task.mean`` and ``task.std``: that of the training clips."""
_STATISTICS = ("mean", "std")


@dataclass
class AudioTaskConfig(FairseqDataclass):
    """Data and features; the defaults are Audio-MAE's for AudioSet."""

    data: str = setting(MISSING, "folder of manifests: train.tsv, valid.tsv, ...")
    recipe: Optional[str] = setting(None, "name of the recipe, which checkpoints keep")
    target_length: int = setting(1024, "frames of a spectrogram at most (10 ms each)")
    num_mel_bins: Optional[int] = setting(None, "mel bands; null: the system's (128, M2D's: 80)")
    mean: Any = setting(
        ModelInput.mean, "mean of the corpus's log-mel values, or auto: of the training clips; MAE-AST finds its own"
    )
    std: Any = setting(ModelInput.std, "their standard deviation, or auto")
    front_end: Optional[str] = setting(None, "log-mel front end: kaldi, slaney; null: the system's (M2D's: slaney)")
    window_type: Optional[str] = setting(
        None, "analysis window: hanning, povey, with slaney hann; null: the system's (MAE-AST's: povey)"
    )
    normalization: Optional[str] = setting(
        None, "two_std: (x - mean) / (2 std); one_std; model: by the model itself; null: the system's"
    )
    modalities: Any = setting(
        None, "of a clip, what the model takes: audio, image; null: all that it can, in downstream tasks audio"
    )
    image_size: Optional[int] = setting(None, "side in pixels of the pictures; null: the system's (224)")
    image_crop: Optional[str] = setting(None, "part of a picture in training: center, random; null: the system's")
    image_flip: Optional[bool] = setting(None, "mirror half of the pictures in training; null: the system's (false)")
    image_frames: Optional[int] = setting(None, "equidistant frames of a video, one of which training draws; null: 10")
    batch_length: str = setting(
        "fixed", "clips of a batch: fixed (padded to target_length), longest (padded to it) or shortest (cropped to it)"
    )
    length_multiple: int = setting(16, "longest, shortest: the length of a batch is a multiple of this, as patches ask")
    sample_rate: Optional[int] = setting(
        None, "longest, shortest: sample rate of all files in Hz, which saves reading it from each; null: read it"
    )
    augmentations: Any = setting(
        "roll,magnitude", f"names ({', '.join(AUGMENTATIONS)}) or {{name: parameters}}, in order; or null"
    )
    features: str = setting(
        "workers", "log-mel spectrograms are computed by the workers that decode, or in batches on the training device"
    )
    on_bad_audio: str = setting("raise", "a clip that cannot be decoded: raise stops, skip counts and logs it")
    max_bad_audio: int = setting(100, "number of clips that may be skipped, on each device, in all epochs together")
    clips_per_update: Optional[int] = setting(None, "global batch; recipes compute update_freq, lr and updates from it")
    frames_per_update: Optional[int] = setting(None, "the same in frames, for batches by dataset.max_tokens")
    clips_per_epoch: Optional[int] = setting(None, "clips of an epoch; recipes compute the number of updates from it")
    epochs: Optional[float] = setting(None, "length of the training, if a recipe reads it")
    warmup_epochs: Optional[float] = setting(None, "length of the warm-up, likewise")
    seed: int = II("common.seed")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    train_subset: str = II("oc.select:dataset.train_subset,train")
    bf16: bool = II("common.bf16")
    fp16: bool = II("common.fp16")


class AudioTask(FairseqTask):
    """Base of the tasks of this plugin.

    Attributes:
        of_checkpoint: whether the task only reads a checkpoint, and trains nothing.
        first_line: what looks at the time of the first batches; None: nothing does.
    """

    of_checkpoint = False
    first_line: Optional[FirstLine] = None
    source_dictionary = target_dictionary = None  # audio has none
    takes: Tuple[str, ...] = ("audio",)
    """What models of this task can take of a clip, if their system can."""

    def __init__(self, cfg: AudioTaskConfig):
        super().__init__(cfg)
        for key in _STATISTICS:
            value = cfg[key]
            if value != AUTO and (isinstance(value, bool) or not isinstance(value, (int, float))):
                given = "null" if value is None else value
                raise UserError(f"task.{key}={given}: must be a number, or {AUTO} for that of the training clips")
        self.data = user_path(cfg.data)
        self.data_wait = meters.StopwatchMeter()
        self.chain = Features(ModelInput(), (), "fixed")  # that of the data sets, once they are made
        self.default_input = ModelInput()  # the system's; fairseq builds the model before it loads data

    @classmethod
    def setup_task(cls, cfg: AudioTaskConfig, from_checkpoint: bool = False) -> "AudioTask":
        """Build the task.

        Raises:
            UserError: a setting cannot be used, or, for a run, there is no folder of manifests.
        """
        if from_checkpoint and OmegaConf.is_missing(cfg, "data"):
            cfg.data = "."  # nothing is read there
        task = cls(cfg)
        task.of_checkpoint = from_checkpoint
        if not (from_checkpoint or task.data.is_dir()):
            raise UserError(f"task.data={cfg.data}: there is no folder {task.data}; amae manifest makes one")
        if not from_checkpoint and (cfg.bf16 or cfg.fp16):
            raise UserError("common.bf16 and common.fp16 do not work with these models: set model.bf16=true instead")
        return task

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> Any:
        """Build the model, once mean and standard deviation of its input are known: they may be ``auto``.

        Raises:
            UserError: the training clips cannot be measured, or batches cannot be cut into the model's patches.
        """
        if not from_checkpoint:
            self._find_statistics()
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and self.cfg.batch_length != "fixed":
            multiple, encoder = self.cfg.length_multiple, model.encoder
            try:
                encoder.grid(multiple, encoder.num_mel_bins)
            except ValueError as error:
                remedy = f"set it to a multiple of {encoder.patch_size[0]}"
                raise UserError(f"task.length_multiple={multiple}: {error}; {remedy}") from None
        return model

    def _find_statistics(self) -> None:
        """Put numbers into the task's settings and into the run's, which checkpoints keep, in place of ``auto``.

        The first process measures, and the others wait for it.
        """
        wanted = [key for key in _STATISTICS if self.cfg[key] == AUTO]
        if not wanted:
            return
        for key in set(_STATISTICS).difference(wanted):
            logger.warning(f"task.{key}={self.cfg[key]} stays as it is: task.{key}={AUTO} would measure it too")
        found: List[Any] = [None]
        if distributed_utils.get_global_rank() == 0:
            try:
                found = [self._continued_statistics() or self._measured_statistics()]
            except UserError as error:
                found = [str(error)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found, src=0)
        if isinstance(found[0], str):
            raise UserError(found[0])
        run = getattr(self.cfg, "_parent", None)
        for settings in [self.cfg] if run is None else [self.cfg, run.task]:
            with open_dict(settings):
                settings.update({key: found[0][key] for key in wanted})
        logger.info(" ".join(f"task.{key}={self.cfg[key]}" for key in wanted))

    @property
    def continued(self) -> Optional[Path]:
        """The checkpoint that the run continues; None if it begins."""
        from amae_plugin.fairseq_plugin import resuming  # which imports this module

        checkpoint = self._section_of_run("checkpoint")
        return None if checkpoint is None else resuming.continued_checkpoint(checkpoint)

    def _section_of_run(self, name: str) -> Optional[DictConfig]:
        """Return another section of the settings than this task's; None where the task has no run around it."""
        run = getattr(self.cfg, "_parent", None)
        return run[name] if run is not None and name in run else None

    def _continued_statistics(self) -> Optional[Dict[str, float]]:
        """Return those of the checkpoint that the run continues, whose weights mean nothing with others."""
        path = self.continued
        if path is None:
            return None
        try:
            checkpoint = Checkpoint.read(path)
            found = {key: checkpoint.setting("task", key, int, float) for key in _STATISTICS}
        except UserError:
            return None  # fairseq will load it, and say what is wrong with it
        return None if None in found.values() else found

    def _measured_statistics(self) -> Dict[str, float]:
        """Measure the training clips as ``amae stats`` does; ``stats.json`` beside their manifest keeps the result."""
        try:
            numbers = OmegaConf.merge(self.cfg, dict.fromkeys(_STATISTICS, 1.0))
            model_input = ModelInput.from_settings(numbers, self.default_input)
        except ValueError as error:
            raise UserError(f"task: {error}") from None
        if NORMALIZATIONS[model_input.normalization] is None:
            return {"mean": ModelInput.mean, "std": ModelInput.std}  # without effect
        manifest = self.data / f"{self.cfg.train_subset}.tsv"
        measured = read_or_measure(manifest, model_input.front_end, model_input.target_length, self.data / "stats.json")
        return {key: float(f"{value:.7g}") for key, value in zip(_STATISTICS, measured)}  # as amae stats prints them

    def choose_modalities(self, settings: Settings, default: Sequence[str]) -> Tuple[str, ...]:
        """Return what an encoder takes of a clip, as ``task.modalities`` says.

        Args:
            settings: section of the encoder.
            default: what it takes if the setting is null.

        Raises:
            UserError: the system or the task cannot take it, or there is no such thing.
        """
        chosen = self.cfg.modalities
        if chosen is None:
            return tuple(default)
        names = tuple(chosen.split(",") if isinstance(chosen, str) else chosen)
        system = find_system(settings)
        can = [name for name in system.encoder_class.modalities if name in self.takes]
        if not names or len(set(names)) < len(names) or not set(names) <= set(can):
            which = f"{system.title} takes {' and '.join(can)} of a clip here"
            raise UserError(
                f"task.modalities={','.join(map(str, names))}: {which}, so it must be some of {', '.join(can)}"
            )
        return tuple(name for name in can if name in names)

    def load_image_weights(self, model: Model, settings: DictConfig, path: str) -> None:
        """Load the weights of an image model into the encoder of a new model; a run that continues needs no file.

        Args:
            model: the model.
            settings: its encoder's section.
            path: file of the weights, from ``model.imagenet``.

        Raises:
            UserError: the system never starts from images, or the file cannot be read or does not fit.
        """
        load = find_system(settings).load_image_weights
        if load is None:
            raise UserError(f"model.imagenet={path}: {settings._name} cannot start from an image model")
        if not user_path(path).exists() and self.continued is not None:
            return
        try:
            load(model.encoder, PublishedFile.read(user_path(path)).state)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"model.imagenet={path}: no ViT/DeiT of the encoder's sizes: {error}") from None
        logger.info(f"encoder: {path}")

    def check_best_metric(self, measures: Mapping[str, bool], condition: str) -> None:
        """Check by what fairseq chooses the best checkpoint.

        Args:
            measures: names of what a validation measures; True if more of it is better.
            condition: beginning of the message "..., it must be one of".

        Raises:
            UserError: nothing of that name is measured, or the worst checkpoint would be kept.
        """
        metric, maximize = self.cfg.best_checkpoint_metric, self.cfg.maximize_best_checkpoint_metric
        if metric not in measures:
            raise UserError(
                f"checkpoint.best_checkpoint_metric={metric}: {condition} it must be one of {', '.join(measures)}"
            )
        if maximize != measures[metric]:
            key, value = "checkpoint.maximize_best_checkpoint_metric", str(not maximize).lower()
            raise UserError(
                f"{key}: with best_checkpoint_metric={metric} it must be {value}, or the worst checkpoint is kept"
            )

    def read_manifest(self, split: str) -> Manifest:
        """Read ``<split>.tsv``.

        Raises:
            UserError: it cannot be read, or holds no clips.
        """
        return Manifest.read(self.data / f"{split}.tsv").require_clips()

    def make_dataset(
        self, manifest: Manifest, split: str, kind: Type[AudioDataset] = AudioDataset, **settings: Any
    ) -> None:
        """Make the data set of a split; that of a run's training is shuffled, cropped at random and augmented."""
        same = ("seed", "batch_length", "length_multiple", "on_bad_audio", "max_bad_audio", "features")
        settings.update({name: self.cfg[name] for name in same}, manifest_rate=self.cfg.sample_rate)
        settings.update(augmentations=self.augmentations, train=self.trains_on(split))
        try:
            model_input = ModelInput.from_settings(self.cfg, self.default_input)
            dataset = kind(manifest, model_input, **settings)
            self.datasets[split], self.chain = FairseqAudioDataset(dataset), dataset.chain
        except ValueError as error:
            raise UserError(f"task: {error}") from None

    def trains_on(self, split: str) -> bool:
        """Tell whether a run of this task trains on a split."""
        return split == self.cfg.train_subset and not self.of_checkpoint

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
        self,
        dataset: FairseqAudioDataset,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        max_positions: Optional[int] = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        disable_iterator_cache: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        update_epoch_batch_itr: bool = False,
    ) -> EpochBatches:
        """Make the batches of an epoch; in training the iterator adds up the time of waiting.

        fairseq would leave out clips that are too long, of which there are none, and a last batch whose size is no
        multiple of *required_batch_size_multiple*, which is 8 in ``fairseq-train`` and ``fairseq-validate``. It would
        reuse an iterator in the next epoch.

        Raises:
            UserError: a clip is longer than a batch may be.
        """
        longest = int(dataset.sizes.max(initial=0))
        if max_tokens is not None and longest > max_tokens:
            remedy = "allow as many, or crop clips by task.target_length"
            raise UserError(f"dataset.max_tokens={max_tokens}: the longest clip has {longest} frames; {remedy}")

        def make_batches(dataset: FairseqAudioDataset, epoch: int) -> Sequence[np.ndarray]:
            with data_utils.numpy_seed(seed + epoch):
                order = dataset.ordered_indices()
            batches = dataset.batch_by_size(order, max_tokens, max_sentences, required_batch_size_multiple)
            batched = sum(map(len, batches))
            return batches if batched == len(order) else [*batches, order[batched:]]

        dataset.set_epoch(epoch)
        optimization = self._section_of_run("optimization")
        update_freq = [1] if optimization is None else optimization.update_freq
        stopwatch = self.data_wait if dataset.dataset.train else meters.StopwatchMeter()
        options = {"seed": seed, "num_shards": num_shards, "shard_id": shard_id, "num_workers": num_workers}
        options |= {"epoch": epoch, "buffer_size": data_buffer_size, "grouped_shuffling": grouped_shuffling}
        # Workers start anew in each epoch, since they must see it.
        options |= {"skip_remainder_batch": skip_remainder_batch, "persistent_workers": False}
        return EpochBatches(dataset, make_batches, stopwatch, update_freq, **options)

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        """Have checkpoints keep how long fairseq's early stopping has waited for a better result."""
        from fairseq_cli.train import should_stop_early  # imports all of fairseq, which imports this module

        return {type(self).__name__: {name: float(value) for name, value in vars(should_stop_early).items()}}

    def set_checkpoint_dict(self, state: Dict[str, float]) -> None:
        """Continue early stopping from a checkpoint."""
        from fairseq_cli.train import should_stop_early

        vars(should_stop_early).update(state)

    def reduce_metrics(self, logging_outputs: List[Values], criterion: FairseqCriterion) -> None:
        """Log what the criterion and fairseq log, and in training the clips per second of all devices."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            clips = sum(log["nsentences"] for log in logging_outputs)
            metrics.log_speed("clips_per_second", clips, priority=90, round=1)

    def train_step(
        self,
        sample: Values,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: FairseqOptimizer,
        update_num: int,
        ignore_grad: bool = False,
    ) -> Any:
        """Run fairseq's step; a stand-in gives no gradient.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        stand_in = sample.get(STAND_IN, False)
        with naming_memory("dataset.batch_size"):
            sample = self._with_source(sample)
            step = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad or stand_in)
        if self.first_line is not None:
            self.first_line.after_batch()
        return _without_count(*step) if stand_in else step

    def valid_step(self, sample: Values, model: nn.Module, criterion: nn.Module) -> Any:
        """Run fairseq's step without compilation, which would cost more time than a validation's few batches.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        stand_in = sample.get(STAND_IN, False)
        with torch.compiler.set_stance("force_eager"), naming_memory("dataset.batch_size_valid"):
            step = super().valid_step(self._with_source(sample), model, criterion)
        return _without_count(*step) if stand_in else step

    def _with_source(self, sample: Values) -> Values:
        """Return the batch with the model's input, computed on its device if it holds waveforms."""
        if "waveforms" not in sample:
            return sample
        with torch.no_grad():
            source = self.chain.batch(sample["waveforms"], sample["samples"], sample["pending"])
        return {**sample, "net_input": {**sample["net_input"], "source": source}}

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step, and log the seconds waited for data since the last one."""
        with naming_memory("dataset.batch_size"):
            super().optimizer_step(optimizer, model, update_num)
        metrics.log_scalar("data_wait", self.data_wait.sum, priority=850, round=3)
        self.data_wait.reset()


class OutOfMemory(UserError, RuntimeError):  # noqa: N818
    """The memory of the processor or the GPU does not suffice for a batch.

    fairseq leaves out such a batch at an error whose text has its three words for it, and trains on.
    """


@contextmanager
def naming_memory(setting: str) -> Iterator[None]:
    """Turn PyTorch's error into a message that names the setting to lower.

    Raises:
        OutOfMemory: memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "accumulation steps make up for it where a recipe sets task.clips_per_update"
        raise OutOfMemory(f"memory does not suffice for a batch of {setting} clips: lower it; {remedy}") from error


def _without_count(loss: Tensor, sample_size: Any, log: Values) -> Tuple[Tensor, Any, Values]:
    """Return the result of a step with 0 in all that is added up."""
    numbers = {"": sample_size, **log}
    zeros = {name: torch.zeros_like(value) if isinstance(value, Tensor) else 0 for name, value in numbers.items()}
    return loss, zeros.pop(""), zeros
