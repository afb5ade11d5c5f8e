"""The way of a clip from its manifest row to a batch of normalised log-mel spectrograms and images."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amae_plugin.data.audio import AudioError, Crop, load_clip, read_rates, resampled_length
from amae_plugin.data.augment import Augmentation
from amae_plugin.data.features import BATCH_LENGTHS, FEATURES, Features, Pending
from amae_plugin.data.images import require_torchvision
from amae_plugin.data.labels import Labels
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.pictures import Window, load_picture

logger = logging.getLogger(__name__)

# Streams of random numbers: the second one of a clip, that of an epoch's draws, of a part of the clips, and of a clip's
# picture.
_BATCH_CROP, _DRAWS, SUBSET, _PICTURE = 1, 2, 3, 4


class Item(TypedDict, total=False):
    """A clip as the model takes it.

    Attributes:
        id: index of the item.
        source: (frames, num_mel_bins) float32, normalised; with ``batch_length="fixed"`` padded to target_length.
        waveform: (samples,) float32 in place of *source* with ``features="device"``.
        generator: with it, the state in which the random generator of a training clip is left; None otherwise.
        length: frames before the padding begins.
        seed: seed in [0, 2**63) of everything else that is random about the item, such as its mask.
        target: (C,) float32, only with labels: 1 for the clip's classes, 0 for others, in between after mixup.
        image: (3, S, S) float32, normalised, only where the model's input has an image.
    """

    id: int
    source: Tensor
    waveform: Tensor
    generator: dict[str, Any] | None
    length: int
    seed: int
    target: Tensor
    image: Tensor


def clip_seed(seed: int, epoch: int, index: int, stream: int = 0) -> int:
    """Derive the seed of one clip in one epoch: a well-mixed integer in [0, 2**63), the range of PyTorch and NumPy.

    It depends on nothing else, so a run gives the same crops, augmentations and masks whatever the number of workers
    and ranks, and after it was resumed. Any integers are accepted, negative ones too (taken modulo 2**64). Random
    numbers for different purposes come from different streams.
    """
    numbers = np.array([number % 2**64 for number in (seed, epoch, index, stream)], np.uint64)
    return int(np.random.SeedSequence(numbers.view(np.uint32)).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Sampling:
    """The clips of each epoch.

    Attributes:
        pool: (M,) int64, the clips to draw from, without repetition.
        weights: (M,) relative frequencies of the draws; None: every clip once an epoch.
        samples: draws in an epoch; None without *weights*.
        seed: random seed of the draws.
        repeats: whether an epoch may draw a clip again; otherwise *samples* clips with a weight above 0 must be there.
    """

    pool: np.ndarray
    weights: np.ndarray | None = None
    samples: int | None = None
    seed: int = 1
    repeats: bool = True

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.samples is None):
            raise ValueError("weights and a number of samples belong together")
        if self.weights is not None and self.weights.shape != self.pool.shape:
            raise ValueError(f"{self.weights.shape} weights do not fit {self.pool.shape} clips")

    def draw(self, epoch: int) -> np.ndarray:
        """Draw the clips of an epoch, int64, which depend on seed and epoch alone."""
        if self.weights is None:
            return self.pool
        rng = np.random.default_rng(clip_seed(self.seed, epoch, 0, _DRAWS))
        shares = self.weights.astype(np.float64)
        if not self.repeats:
            # The first of exponential arrivals at these rates: draws without replacement, without a loop.
            with np.errstate(divide="ignore"):
                arrivals = rng.standard_exponential(len(shares)) / shares
            return self.pool[np.argsort(arrivals)[: self.samples]]
        # What rng.choice() does, but with the numbers looked up in their order, which takes a quarter of the time.
        bounds = np.cumsum(shares / shares.sum())
        bounds /= bounds[-1]
        numbers = rng.random(self.samples)
        order = np.argsort(numbers)
        drawn = np.empty(len(numbers), np.int64)
        drawn[order] = np.searchsorted(bounds, numbers[order], side="right")
        return self.pool[drawn]


@dataclass(eq=False)
class AudioDataset(torch.utils.data.Dataset):
    """Clips of a manifest as log-mel spectrograms, with their images and labels if they have any.

    In training, a longer clip is cropped at random and augmented, anew in each epoch; otherwise the piece at
    *crop_position* is taken, without augmentation, and nothing depends on the epoch. Everything random about an item
    comes from ``clip_seed(seed, epoch, index)``, so the number of workers does not matter. A picture has a stream of
    its own, so the sound is the same with and without it.

    The picture of a video is a frame of the piece that is heard: in training one at random of
    ``input.image.training_frames``, otherwise the one at *image_position*. A mixture mixes the images as the sounds.

    Attributes:
        manifest: the clips.
        input: the model's input.
        labels: labels of the manifest's clips.
        augmentations: augmentations in order, in training only.
        sampling: clips of each epoch; every clip of the manifest once if None.
        train: training or validation.
        seed: random seed of the run.
        crop_position: place of the piece taken of a longer clip when not training, in [0, 1]: 0 is its beginning, 1 its
            end.
        image_position: place in time of the frame taken of a video when not training, in [0, 1].
        batch_length: frames of the clips of a batch: ``"fixed"``: target_length, shorter clips are padded;
            ``"longest"``: as many as its longest clip has, the others are padded; ``"shortest"``: as many as its
            shortest clip has, the others are cropped once more.
        length_multiple: divisor of the length of a batch, so that patches fit it.
        manifest_rate: sample rate of all files in Hz, which saves reading it from each of them for :attr:`frames`.
        on_bad_audio: ``"raise"`` stops at a clip whose sound or picture cannot be decoded; ``"skip"`` logs it and
            leaves it out.
        max_bad_audio: number of clips that may be skipped, by all workers of this process and in all epochs together.
        features: ``"workers"``: items are spectrograms; ``"device"``: they are waveforms, which :attr:`chain` turns
            into the same spectrograms a batch at a time, where the model is.
        epoch: current epoch.

    Raises:
        ValueError: a setting cannot be used, or the labels are not those of the manifest.
        UserError: the model takes images, but the manifest lists no pictures or torchvision is not installed.
    """

    manifest: Manifest
    input: ModelInput
    labels: Labels | None = None
    augmentations: Sequence[Augmentation] = ()
    sampling: Sampling | None = None
    train: bool = False
    seed: int = 1
    crop_position: float = 0.5
    image_position: float = 0.5
    batch_length: str = "fixed"
    length_multiple: int = 16
    manifest_rate: int | None = None
    on_bad_audio: str = "raise"
    max_bad_audio: int = 100
    features: str = "workers"
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.batch_length not in BATCH_LENGTHS:
            raise ValueError(f"batch_length is '{self.batch_length}', must be one of {', '.join(BATCH_LENGTHS)}")
        multiple, frames = self.length_multiple, self.input.target_length
        if multiple < 1 or (self.batch_length != "fixed" and frames % multiple):
            raise ValueError(f"target_length={frames} is not a multiple of length_multiple={multiple}")
        if self.on_bad_audio not in ("raise", "skip"):
            raise ValueError(f"on_bad_audio is '{self.on_bad_audio}', must be 'raise' or 'skip'")
        if self.features not in FEATURES:
            raise ValueError(f"features is '{self.features}', must be one of {', '.join(FEATURES)}")
        if self.labels is not None and len(self.labels) != len(self.manifest):
            raise ValueError(f"{len(self.labels)} labels do not fit {len(self.manifest)} clips")
        if self.input.image is not None:
            self.manifest.require_pictures("task.modalities=[audio]")
            require_torchvision()
        self._augmentations = self.augmentations if self.train else ()
        self._drawn: np.ndarray | None = None
        # Clips of the manifest that were skipped, in memory that all workers share.
        self._skipped = torch.zeros(len(self.manifest), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        sampling = self.sampling
        return len(self.manifest) if sampling is None else sampling.samples or len(sampling.pool)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's clips, crops and augmentations; workers see it if they are started afterwards."""
        self.epoch = epoch
        self._drawn = None if self.sampling is None else self.sampling.draw(epoch)

    @property
    def _clips(self) -> np.ndarray | None:
        """Clips of the manifest that the items of this epoch are made of; None for all of them in order."""
        if self._drawn is None:
            self.set_epoch(self.epoch)
        return self._drawn

    @property
    def chain(self) -> Features:
        """What happens to a clip's log-mel spectrogram."""
        return Features(self.input, self.augmentations, self.batch_length)

    @property
    def frames(self) -> np.ndarray:
        """Frames that the items of this epoch take up in a batch, (N,) int64, by the samples in the manifest."""
        if self.batch_length == "fixed":
            return np.full(len(self), self.input.target_length, dtype=np.int64)
        frames = self.clip_frames.clip(max=self.input.target_length)
        return frames if self._clips is None else frames[self._clips]

    @functools.cached_property
    def clip_frames(self) -> np.ndarray:
        """Frames of each clip of the manifest before it is cropped, (N,) int64, by the samples in the manifest."""
        rate = self.input.sample_rate
        # The manifest counts samples at the rate of each file.
        rates = np.broadcast_to(self.manifest_rate or read_rates(self.manifest, rate), len(self.manifest))
        samples = self.manifest.sizes.copy()
        for source in np.unique(rates):
            samples[rates == source] = resampled_length(samples[rates == source], int(source), rate)
        return self.input.front_end.frames_in(samples)

    def __getitem__(self, index: int) -> Item | None:
        """Load one item; None if its clip was skipped.

        Raises:
            AudioError: a clip cannot be decoded and ``on_bad_audio`` is ``"raise"``, or too many could not.
        """
        seed = self._seed(index)
        rng, image_rng = np.random.default_rng(seed), None
        if self.input.image is not None:
            image_rng = np.random.default_rng(self._seed(index, _PICTURE))
        clip = self.clip(index)
        waveform, image = self._load(clip, rng, image_rng)
        target = None if self.labels is None else self.labels.multi_hot(clip)
        for augmentation in self._augmentations:
            weight = augmentation.draw_weight(rng)
            if waveform is not None and weight < 1:
                other = self._draw_partner(rng)
                partner, partner_image = self._load(other, rng, image_rng)
                if partner is None:  # it is skipped, and this clip stays as it is
                    continue
                waveform = augmentation.mix(waveform, partner, weight)
                if image is not None and partner_image is not None:
                    image = weight * image + (1 - weight) * partner_image
                if target is not None and self.labels is not None:
                    target = weight * target + (1 - weight) * self.labels.multi_hot(other)
        if waveform is None:
            return None
        length = min(int(self.input.front_end.frames_in(np.array(len(waveform)))), self.input.target_length)
        item = Item(id=index, length=length, seed=seed)
        if self.features == "device":
            item["waveform"], item["generator"] = waveform, dict(rng.bit_generator.state) if self.train else None
        else:
            item["source"] = self.chain.source(self.input.front_end(waveform), rng if self.train else None)
        if target is not None:
            item["target"] = target
        if image is not None:
            item["image"] = image
        return item

    def clip(self, index: int) -> int:
        """Return the clip of the manifest that an item of this epoch is made of."""
        return index if self._clips is None else int(self._clips[index])

    def _seed(self, index: int, stream: int = 0) -> int:
        return clip_seed(self.seed, self.epoch if self.train else 0, index, stream)

    def _load(
        self, clip: int, rng: np.random.Generator, image_rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor | None] | tuple[None, None]:
        """Decode sound and image of a clip of the manifest, and in training augment them; None if it is skipped."""
        position = rng.random() if self.train else self.crop_position
        try:
            waveform = self._decode(clip, position)
            image = self._load_image(clip, position, image_rng)
        except AudioError as error:
            if self.on_bad_audio == "raise":
                raise
            self._skip(clip, error)
            return None, None
        for augmentation in self._augmentations:
            waveform = augmentation.waveform(waveform, rng)
        return waveform, image

    def _load_image(self, clip: int, crop_position: float, rng: np.random.Generator | None) -> Tensor | None:
        """Make the image of a clip of the manifest, of which the piece at a position in [0, 1] is heard."""
        wanted = self.input.image
        if wanted is None or rng is None:
            return None
        position = wanted.draw_position(rng) if self.train else self.image_position
        window = Window(self.input.samples / self.input.sample_rate, crop_position)
        return wanted(load_picture(self.manifest.picture(clip), position, window), rng if self.train else None)

    def _decode(self, clip: int, position: float) -> Tensor:
        """Decode a clip of the manifest, or the piece of a longer one at a position in [0, 1]."""
        return load_clip(self.manifest[clip], self.input.sample_rate, Crop(self.input.samples, position))

    def _draw_partner(self, rng: np.random.Generator) -> int:
        """Draw a clip for a mixture, each with the same probability."""
        return int(rng.integers(len(self.manifest)) if self.sampling is None else rng.choice(self.sampling.pool))

    def _skip(self, clip: int, error: AudioError) -> None:
        """Log and count a clip that cannot be decoded, once in all epochs."""
        if self._skipped[clip]:
            return
        self._skipped[clip] = True
        count = int(self._skipped.sum())
        logger.warning("skipped clip %d: %s", count, error)
        if count > self.max_bad_audio:
            more = f"{count} clips could not be decoded, more than task.max_bad_audio={self.max_bad_audio} allows"
            raise AudioError(f"{more}; the last one: {error}")

    def collate(self, items: Sequence[Item | None]) -> dict[str, Any]:
        """Make a batch of B clips of one length T.

        Returns:
            ``id`` (B,) int64, ``source`` (B, T, F) float32, ``lengths`` (B,) int64, ``padding_mask`` (B, T) bool, True
            from the end of a clip on, ``seed`` (B,) int64, with labels ``target`` (B, C) float32, and with images
            ``image`` (B, 3, S, S) float32; an empty dict if no clip could be decoded. With ``features="device"``, the
            arguments of :meth:`Features.batch` take the place of ``source``: ``waveforms`` (B, S) float32, ``samples``
            (B,) int64 and ``pending``.
        """
        good = [item for item in items if item is not None]
        if not good:
            return {}
        frames = self._frames_of_batch([item["length"] for item in good])
        lengths = torch.tensor([min(item["length"], frames) for item in good])
        batch: dict[str, Any] = {key: torch.tensor([item[key] for item in good]) for key in ("id", "seed")}
        batch |= {"lengths": lengths, "padding_mask": torch.arange(frames) >= lengths[:, None]}
        positions = [self._batch_position(item, frames) for item in good]
        if self.features == "device":
            waveforms = [item["waveform"] for item in good]
            batch["waveforms"] = pad_sequence(waveforms, batch_first=True)
            batch["samples"] = torch.tensor([len(waveform) for waveform in waveforms])
            generators = [item["generator"] for item in good]
            batch["pending"] = Pending([item["length"] for item in good], frames, positions, generators)
        else:
            fitted = (self.chain.fit(item["source"], frames, position) for item, position in zip(good, positions))
            batch["source"] = torch.stack(list(fitted))
        if self.labels is not None:
            batch["target"] = torch.stack([item["target"] for item in good])
        if self.input.image is not None:
            batch["image"] = torch.stack([item["image"] for item in good])
        return batch

    def _frames_of_batch(self, lengths: Sequence[int]) -> int:
        if self.batch_length == "fixed":
            return self.input.target_length
        if self.batch_length == "longest":
            return -(-max(lengths) // self.length_multiple) * self.length_multiple
        return max(1, min(lengths) // self.length_multiple) * self.length_multiple

    def _batch_position(self, item: Item, frames: int) -> float:
        """Choose the piece of a clip that is longer than its batch."""
        if not self.train or item["length"] <= frames:
            return self.crop_position
        return float(np.random.default_rng(self._seed(item["id"], _BATCH_CROP)).random())
