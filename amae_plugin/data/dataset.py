"""From a manifest row to a normalised log-mel spectrogram: the rooms of this package in the order a clip meets them."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from amae_plugin.data.audio import AudioError, Crop, load_clip
from amae_plugin.data.augment import Augmentations, mix
from amae_plugin.data.labels import Labels
from amae_plugin.data.log_mel import ModelInput, fit_length
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.sampling import Sampling
from amae_plugin.data.seeding import clip_seed

logger = logging.getLogger(__name__)

# Of the Beta distribution that the share of a mixed clip is drawn from (AST, Audio-MAE).
_MIXUP_ALPHA = 10.0


BATCH_LENGTHS = ("fixed", "longest", "shortest")


class AudioDataset(torch.utils.data.Dataset):
    """Clips of a manifest as log-mel spectrograms, with their labels if they have any.

    In training, a longer clip is cropped at random and augmented, anew in each epoch; otherwise the piece at
    *crop_position* is taken, without augmentation, and nothing depends on the epoch. Everything random about an item
    comes from ``clip_seed(seed, epoch, index)``, so the number of workers does not matter.

    Args:
        manifest: the clips.
        target_length: frames of a spectrogram at most.
        mean: of the log-mel values of this corpus (``amae stats``).
        std: their standard deviation.
        features: the front end.
        labels: of the manifest's clips.
        augmentations: in training only; mixup needs labels.
        sampling: which clips the items of an epoch are; every clip of the manifest once if None.
        train: training or validation.
        seed: of the run.
        crop_position: of the piece taken of a longer clip when not training, in [0, 1]: 0 its beginning, 1 its end.
        batch_length: frames of the clips of a batch: ``"fixed"``: target_length, shorter clips are padded;
            ``"longest"``: those of its longest clip, the others are padded; ``"shortest"``: those of its shortest one,
            the others are cropped once more.
        length_multiple: of which the length of a batch is a multiple, so that patches fit it.
        manifest_rate: in Hz, at which the manifest counts samples; for the length of clips that are not yet decoded.
        on_bad_audio: ``"raise"`` stops at a clip that cannot be decoded; ``"skip"`` logs it and goes on without it.
        max_bad_audio: how many clips may be skipped, by all workers of this process together.
    """

    def __init__(
        self,
        manifest: Manifest,
        model_input: ModelInput,
        *,
        labels: Labels | None = None,
        augmentations: Augmentations | None = None,
        sampling: Sampling | None = None,
        train: bool = False,
        seed: int = 1,
        crop_position: float = 0.5,
        batch_length: str = "fixed",
        length_multiple: int = 16,
        manifest_rate: int = 16_000,
        on_bad_audio: str = "raise",
        max_bad_audio: int = 100,
    ):
        target_length = model_input.target_length
        if batch_length not in BATCH_LENGTHS:
            raise ValueError(f"batch_length is '{batch_length}', must be one of {', '.join(BATCH_LENGTHS)}")
        if length_multiple < 1 or (batch_length != "fixed" and target_length % length_multiple):
            raise ValueError(f"target_length={target_length} is not a multiple of length_multiple={length_multiple}")
        if on_bad_audio not in ("raise", "skip"):
            raise ValueError(f"on_bad_audio is '{on_bad_audio}', must be 'raise' or 'skip'")
        if labels is not None and len(labels) != len(manifest):
            raise ValueError(f"{len(labels)} labels do not fit {len(manifest)} clips")
        self.manifest = manifest
        self.input = model_input
        self.target_length = target_length
        self.features = model_input.front_end
        self.labels = labels
        self.augmentations = augmentations or Augmentations()
        if self.augmentations.mixup and labels is None:
            raise ValueError("mixup needs labels")
        self.sampling = sampling
        self.train = train
        self.seed = seed
        self.crop_position = crop_position
        self.batch_length = batch_length
        self.length_multiple = length_multiple
        self.manifest_rate = manifest_rate
        self.on_bad_audio = on_bad_audio
        self.max_bad_audio = max_bad_audio
        self.epoch = 0
        self._clips = None if sampling is None else sampling.draw(0)
        # A counter of the "spawn" context works in forked workers as well; the other way round it does not.
        self._bad_audio = multiprocessing.get_context("spawn").Value("q", 0)

    def __len__(self) -> int:
        return len(self.manifest) if self._clips is None else len(self._clips)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's clips, crops and augmentations; workers see it if they are started afterwards."""
        self.epoch = epoch
        if self.sampling is not None:
            self._clips = self.sampling.draw(epoch)

    @property
    def frames(self) -> np.ndarray:
        """Frames that the items of this epoch take up in a batch, (N,) int64, by the samples in the manifest."""
        if self.batch_length == "fixed":
            return np.full(len(self), self.target_length, dtype=np.int64)
        sizes = self.manifest.sizes if self._clips is None else self.manifest.sizes[self._clips]
        samples = sizes * (self.features.sample_rate / self.manifest_rate)
        frames = 1 + (samples - self.features.window_samples) // self.features.shift_samples
        return np.clip(frames, 1, self.target_length).astype(np.int64)

    @property
    def bad_audio(self) -> int:
        """Clips skipped so far, by all workers."""
        return self._bad_audio.value

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """One item.

        Returns:
            ``id`` (the index), ``source`` (frames, num_mel_bins) float32 normalised, with ``batch_length="fixed"``
            padded to target_length frames, ``length`` (frames before the padding begins), ``seed`` (in [0, 2**63), for
            whatever else is random about this item, such as its mask) and, with labels, ``target`` (C,) float32: 1 for
            the clip's classes, 0 for others, and in between after mixup. None for a clip that was skipped.

        Raises:
            AudioError: a clip cannot be decoded and ``on_bad_audio`` is ``"raise"``, or too many could not.
        """
        seed = clip_seed(self.seed, self.epoch if self.train else 0, index)
        rng = np.random.default_rng(seed)
        clip = index if self._clips is None else int(self._clips[index])
        augment = self.augmentations if self.train else Augmentations()
        target = None if self.labels is None else self.labels.multi_hot(clip)
        try:
            waveform = self._load(clip, rng)
            # Without mixup nothing is drawn for it, so that pretraining does not depend on it.
            if augment.mixup and rng.random() < augment.mixup:
                waveform, target = self._mix(waveform, target, rng)
        except AudioError as error:
            if self.on_bad_audio == "raise":
                raise
            self._count_bad(error)
            return None
        log_mel = self.features(waveform)
        length = min(len(log_mel), self.target_length)
        source = fit_length(log_mel, self.target_length if self.batch_length == "fixed" else length)
        for augmentation in augment.log_mel:
            source = augmentation(source, rng)
        source = self.input.normalize(source)
        for augmentation in augment.normalized:
            source = augmentation(source, rng)
        item = {"id": index, "source": source, "length": length, "seed": seed}
        return item if target is None else {**item, "target": target}

    def _load(self, clip: int, rng: np.random.Generator) -> Tensor:
        position = rng.random() if self.train else self.crop_position
        crop = Crop(self.features.samples_for(self.target_length), position)
        waveform = load_clip(self.manifest[clip], self.features.sample_rate, crop)
        if self.train:
            for augmentation in self.augmentations.waveform:
                waveform = augmentation(waveform, rng)
        return waveform

    def _mix(self, waveform: Tensor, target: Tensor | None, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The clip and its target, mixed with another clip and its."""
        assert target is not None and self.labels is not None
        pool = len(self.manifest) if self.sampling is None else len(self.sampling.pool)
        other = int(rng.integers(pool))
        if self.sampling is not None:
            other = int(self.sampling.pool[other])
        share = rng.beta(_MIXUP_ALPHA, _MIXUP_ALPHA)
        mixed = mix(waveform, self._load(other, rng), share)
        return mixed, share * target + (1 - share) * self.labels.multi_hot(other)

    def _count_bad(self, error: AudioError) -> None:
        with self._bad_audio.get_lock():
            self._bad_audio.value += 1
            count = self._bad_audio.value
        logger.warning("skipped clip %d: %s", count, error)
        if count > self.max_bad_audio:
            raise AudioError(
                f"{count} clips could not be decoded, more than task.max_bad_audio={self.max_bad_audio} allows; "
                f"the last one: {error}"
            )

    def collate(self, items: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """Make a batch of B clips of one length T.

        Returns:
            ``id`` (B,) int64, ``source`` (B, T, F) float32, ``lengths`` (B,) int64, ``padding_mask`` (B, T) bool, True
            from the end of a clip on, ``seed`` (B,) int64, with labels ``target`` (B, C) float32, and ``skipped``, the
            number of clips that could not be decoded; an empty dict if none could.
        """
        good = [item for item in items if item is not None]
        if not good:
            return {}
        frames = self._frames_of_batch([item["length"] for item in good])
        lengths = torch.tensor([min(item["length"], frames) for item in good])
        batch = {
            "id": torch.tensor([item["id"] for item in good]),
            "source": torch.stack([self._fit(item, frames) for item in good]),
            "lengths": lengths,
            "padding_mask": torch.arange(frames) >= lengths[:, None],
            "seed": torch.tensor([item["seed"] for item in good]),
            "skipped": len(items) - len(good),
        }
        if "target" in good[0]:
            batch["target"] = torch.stack([item["target"] for item in good])
        return batch

    def _frames_of_batch(self, lengths: Sequence[int]) -> int:
        if self.batch_length == "fixed":
            return self.target_length
        if self.batch_length == "longest":
            return -(-max(lengths) // self.length_multiple) * self.length_multiple
        return max(1, min(lengths) // self.length_multiple) * self.length_multiple

    def _fit(self, item: dict[str, Any], frames: int) -> Tensor:
        source = item["source"]
        if len(source) == frames:
            return source
        # Another stream of the item's seed than the one that everything before came from.
        position = np.random.default_rng((item["seed"], 1)).random() if self.train else self.crop_position
        return fit_length(source, frames, position, self.input.silence)
