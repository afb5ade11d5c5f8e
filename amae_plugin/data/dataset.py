"""From a manifest row to a normalised log-mel spectrogram: the rooms of this package in the order a clip meets them."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data

from amae_plugin.data.audio import AudioError, Crop, load_clip
from amae_plugin.data.augment import Augmentation
from amae_plugin.data.features import LogMel, fit_length, normalize
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.seeding import clip_seed

logger = logging.getLogger(__name__)


class AudioDataset(torch.utils.data.Dataset):
    """Clips of a manifest as log-mel spectrograms of one length.

    In training, a longer clip is cropped at random and augmented, anew in each epoch; otherwise its centre is taken,
    without augmentation, and nothing depends on the epoch. Everything random about a clip comes from
    ``clip_seed(seed, epoch, index)``, so the number of workers does not matter.

    Args:
        manifest: the clips.
        target_length: frames of every spectrogram; shorter clips are padded.
        mean: of the log-mel values of this corpus (``amae stats``).
        std: their standard deviation.
        features: the front end.
        augmentations: applied to the waveform in this order, in training only.
        train: training or validation.
        seed: of the run.
        on_bad_audio: ``"raise"`` stops at a clip that cannot be decoded; ``"skip"`` logs it and goes on without it.
        max_bad_audio: how many clips may be skipped, by all workers of this process together.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        target_length: int,
        mean: float,
        std: float,
        features: LogMel | None = None,
        augmentations: Sequence[Augmentation] = (),
        train: bool = False,
        seed: int = 1,
        on_bad_audio: str = "raise",
        max_bad_audio: int = 100,
    ):
        if on_bad_audio not in ("raise", "skip"):
            raise ValueError(f"on_bad_audio is '{on_bad_audio}', must be 'raise' or 'skip'")
        self.manifest = manifest
        self.target_length = target_length
        self.mean = mean
        self.std = std
        self.features = features or LogMel()
        self.augmentations = tuple(augmentations)
        self.train = train
        self.seed = seed
        self.on_bad_audio = on_bad_audio
        self.max_bad_audio = max_bad_audio
        self.epoch = 0
        # A counter of the "spawn" context works in forked workers as well; the other way round it does not.
        self._bad_audio = multiprocessing.get_context("spawn").Value("q", 0)

    def __len__(self) -> int:
        return len(self.manifest)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's crops and augmentations; workers see it if they are started afterwards."""
        self.epoch = epoch

    @property
    def bad_audio(self) -> int:
        """Clips skipped so far, by all workers."""
        return self._bad_audio.value

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """One clip.

        Returns:
            ``id`` (the index), ``source`` (target_length, num_mel_bins) float32 normalised, ``length`` (frames before
            the padding begins) and ``seed`` (in [0, 2**63), for whatever else is random about this clip, such as its
            mask); None for a clip that was skipped.

        Raises:
            AudioError: a clip cannot be decoded and ``on_bad_audio`` is ``"raise"``, or too many could not.
        """
        seed = clip_seed(self.seed, self.epoch if self.train else 0, index)
        rng = np.random.default_rng(seed)
        position = rng.random() if self.train else 0.5
        crop = Crop(self.features.samples_for(self.target_length), position)
        try:
            waveform = load_clip(self.manifest[index], self.features.sample_rate, crop)
        except AudioError as error:
            if self.on_bad_audio == "raise":
                raise
            self._count_bad(error)
            return None
        if self.train:
            for augmentation in self.augmentations:
                waveform = augmentation(waveform, rng)
        log_mel = self.features(waveform)
        source = normalize(fit_length(log_mel, self.target_length), self.mean, self.std)
        return {"id": index, "source": source, "length": min(len(log_mel), self.target_length), "seed": seed}

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

    @staticmethod
    def collate(items: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """Stack clips to a batch of B.

        Returns:
            ``id`` (B,) int64, ``source`` (B, T, F) float32, ``lengths`` (B,) int64, ``seed`` (B,) int64, and
            ``skipped``, the number of clips that could not be decoded; an empty dict if none could.
        """
        good = [item for item in items if item is not None]
        if not good:
            return {}
        return {
            "id": torch.tensor([item["id"] for item in good]),
            "source": torch.stack([item["source"] for item in good]),
            "lengths": torch.tensor([item["length"] for item in good]),
            "seed": torch.tensor([item["seed"] for item in good]),
            "skipped": len(items) - len(good),
        }
