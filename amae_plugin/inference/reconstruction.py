"""Clips of any length with a part hidden, and what a pretrained model puts there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.inversion import invert
from amae_plugin.data.log_mel import FLOOR, FrontEnd, fit_length
from amae_plugin.data.sampling import clip_seed
from amae_plugin.errors import UserError
from amae_plugin.metrics.band_errors import BandErrors, join_visible
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.modules.masking import Masking, build_masking
from amae_plugin.modules.patching import unpatchify

_LOUDEST = 0.9  # of full scale


@dataclass(frozen=True)
class Reconstruction:
    """A clip of T frames and F mel bands: log-mel values, natural logarithms.

    Attributes:
        original: (T, F), what the front end gives.
        hidden: (T, F) bool, what the model did not see.
        reconstructed: (T, F), the original with the hidden part as the model predicted it.
        windows: how many inputs of the model the clip was cut into.
    """

    original: Tensor
    hidden: Tensor
    reconstructed: Tensor
    windows: int

    @property
    def error(self) -> BandErrors:
        """How far the reconstruction is off where something was hidden."""
        return BandErrors.of(self.original, self.reconstructed, self.hidden)

    @property
    def reference(self) -> BandErrors:
        """The same of straight lines in place of the model, see :func:`join_visible`."""
        return BandErrors.of(self.original, join_visible(self.original, self.hidden), self.hidden)

    @property
    def masked(self) -> Tensor:
        """The original with silence where something is hidden: (T, F)."""
        return self.original.masked_fill(self.hidden, FLOOR)


class Reconstructor:
    """Hides parts of clips and has a pretraining model fill them in.

    A clip that is longer than the model's input is cut into windows one after the other, of which the last ends with
    the clip and gives only those frames that the others left, so that every frame is reconstructed once. A shorter one
    is padded as in training. What is hidden of a window depends on the seed and on its number in the clip alone.

    Args:
        checkpoint: of a pretraining model.
        strategy: how to choose what is hidden, by name (``modules.masking``); the model's own if None.
        mask_ratio: hidden share, in (0, 1), of ``time_frequency`` that of the time steps and that of the bands; the
            model's own if None.
        seed: of the masks.
        batch_size: windows at a time.
        device: where the model computes.

    Attributes:
        features: the front end.
        input_length: frames of a window.
        masking: what is hidden, in words.
        normalizes_targets: whether the model predicts patches without their level and spread.

    Raises:
        UserError: the model has no decoder, or none that draws; a setting of the checkpoint is missing; there is no
            such strategy, or the ratio is no share.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        strategy: str | None = None,
        mask_ratio: float | None = None,
        seed: int = 1,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ):
        if checkpoint.is_classifier:
            raise UserError(
                f"{checkpoint.path}: a classifier has no decoder to reconstruct with; give the checkpoint of a "
                "pretraining run"
            )
        if checkpoint.untrained:
            first, *others = checkpoint.untrained
            more = f" and {len(others):,} more tensors" if others else ""
            raise UserError(
                f"{checkpoint.path}: would draw noise, since the file that it was converted from lacks {first}{more}, "
                "which no training has touched; pretrain it first (checkpoint.finetune_from_model)"
            )
        model = checkpoint.model()
        assert isinstance(model, PretrainingModel)
        if "reconstruction" not in model.loss_weights:
            raise UserError(
                f"{checkpoint.path}: the model was trained without reconstruction (model.reconstruction_weight=0), so "
                "it has no head that draws"
            )
        self.checkpoint = checkpoint
        self.input = checkpoint.input
        self.features = self.input.front_end
        self.input_length = self.input.target_length
        self.seed = seed
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.normalizes_targets = model.normalizes_targets
        model.masking, self.masking = _masking(model.config, strategy, mask_ratio)
        self.model = model.to(self.device)

    def __call__(self, waveform: Tensor) -> Reconstruction:
        """Hide parts of a clip (samples,) at the front end's sample rate, and fill them in.

        Raises:
            UserError: the model gives values that are not finite.
        """
        original = self.features(waveform)
        starts = window_starts(len(original), self.input_length)
        parts = [self._fill_in(original, starts, at) for at in range(0, len(starts), self.batch_size)]
        hidden, reconstructed = (stitch(torch.cat(values), starts, len(original)) for values in zip(*parts))
        if not bool(reconstructed.isfinite().all()):
            raise UserError(
                f"{self.checkpoint.path}: the model gives values that are not finite numbers; its training diverged, "
                "so take an earlier checkpoint"
            )
        # As it was, not as it comes back from the normalisation.
        return Reconstruction(original, hidden, torch.where(hidden, reconstructed, original), len(starts))

    def _fill_in(self, original: Tensor, starts: list[int], at: int) -> tuple[Tensor, Tensor]:
        """What is hidden and what is put there, each (B, W, F), of the windows of a batch."""
        numbers = range(at, min(at + self.batch_size, len(starts)))
        windows = [original[starts[number] :][: self.input_length] for number in numbers]
        lengths = torch.tensor([len(window) for window in windows], device=self.device)
        source = torch.stack([fit_length(window, self.input_length) for window in windows]).to(self.device)
        source = self.input.normalize(source)
        seeds = torch.tensor([clip_seed(self.seed, 0, number) for number in numbers], device=self.device)
        padding = torch.arange(self.input_length, device=self.device) >= lengths[:, None]
        with torch.inference_mode():
            output = self.model(source, seed=seeds, padding_mask=padding)
            drawn = self.model.reconstruct(source, output["prediction"], output["mask"], padding)
        hidden = self._hidden_values(output["mask"])
        return hidden.cpu(), self.input.denormalize(drawn.float()).cpu()

    def _hidden_values(self, mask: Tensor) -> Tensor:
        """A mask over the encoder's tokens (B, L) as one over the spectrogram (B, W, F)."""
        encoder = self.model.encoder
        grid = encoder.grid(self.input_length, self.features.num_mel_bins)
        values = encoder.patch_size[0] * encoder.patch_size[1]
        return unpatchify(encoder.in_grid_order(mask, grid)[..., None].expand(-1, -1, values), grid, encoder.patch_size)


def make_audible(reconstruction: Reconstruction, features: FrontEnd, samples: int) -> list[Tensor]:
    """The original, the masked and the reconstructed clip as sounds of one gain, each (samples,) in [-1, 1].

    All of them come from the log-mel values, the original too, so that what differs between them is in these.

    Args:
        reconstruction: of the clip.
        features: its front end.
        samples: length of the clip.
    """
    spectrograms = (reconstruction.original, reconstruction.masked, reconstruction.reconstructed)
    sounds = [invert(log_mel, features, samples) for log_mel in spectrograms]
    gain = _LOUDEST / max(float(sound.abs().max()) for sound in sounds)
    return [sound * gain for sound in sounds]


def window_starts(frames: int, length: int) -> list[int]:
    """First frames of the windows of a clip: one after the other, the last one as late as the clip's end allows."""
    return [*range(0, frames - length, length), max(frames - length, 0)]


def stitch(windows: Tensor, starts: list[int], frames: int) -> Tensor:
    """Windows (N, W, F) that begin at these frames as one clip (frames, F), each frame from the first that has it."""
    length = windows.shape[1]
    covered = 0
    pieces = []
    for window, start in zip(windows, starts):
        pieces.append(window[covered - start :])
        covered = start + length
    return torch.cat(pieces)[:frames]


def _masking(config: Any, strategy: str | None, ratio: float | None) -> tuple[Masking, str]:
    """A strategy, and what it hides in words; what is None is as in a model's config."""
    if ratio is not None and not 0 < ratio < 1:
        raise UserError(f"--mask-ratio {ratio:g}: the hidden share must be above 0 and below 1")
    name = config.masking if strategy is None else strategy
    keys = ("mask_ratio", "mask_ratio_time", "mask_ratio_frequency")
    share, time, frequency = (getattr(config, key, config.mask_ratio) if ratio is None else ratio for key in keys)
    try:
        masking = build_masking(name, share, time, frequency, getattr(config, "mask_length", 10))
    except ValueError as error:
        raise UserError(f"--strategy {name}: {error}") from None
    if name == "time_frequency":
        return masking, f"{name}, {time:.0%} of the time steps and {frequency:.0%} of the bands"
    return masking, f"{name}, {share:.0%}"
