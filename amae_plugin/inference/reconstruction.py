"""Reconstruction: a pretrained model fills in hidden parts of clips of any length, and of their pictures."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.dataset import clip_seed
from amae_plugin.data.inversion import invert
from amae_plugin.data.log_mel import FLOOR, FrontEnd, ModelInput, fit_length
from amae_plugin.errors import UserError
from amae_plugin.inference.windows import Windows
from amae_plugin.metrics.band_errors import BandErrors, join_visible
from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.settings import PretrainingConfig
from amae_plugin.modules.compute import choose_device, enough_memory

_LOUDEST = 0.9  # largest sample, full scale being 1


@dataclass(frozen=True)
class FilledPicture:
    """Reconstructed picture; its values are red, green and blue from 0 to 1.

    Attributes:
        original: (3, S, S), as the model takes it.
        hidden: (S, S) bool, True = hidden from the model.
        reconstructed: (3, S, S) original with the predicted hidden part.
    """

    original: Tensor
    hidden: Tensor
    reconstructed: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructed clip of T frames and F mel bands; its log-mel values are natural logarithms.

    Attributes:
        original: (T, F) output of the front end.
        hidden: (T, F) bool, True = hidden from the model.
        reconstructed: (T, F) original with the predicted hidden part.
        windows: number of windows of the clip.
        picture: the clip's picture, filled in together with the first window; None if the model was given none.
    """

    original: Tensor
    hidden: Tensor
    reconstructed: Tensor
    windows: int
    picture: FilledPicture | None = None

    @property
    def error(self) -> BandErrors:
        """Error of the reconstruction in the hidden part."""
        return BandErrors.of(self.original, self.reconstructed, self.hidden)

    @property
    def reference(self) -> BandErrors:
        """Error of straight lines in place of the model, see :func:`join_visible`."""
        return BandErrors.of(self.original, join_visible(self.original, self.hidden), self.hidden)

    @property
    def masked(self) -> Tensor:
        """Original (T, F) with silence in the hidden part."""
        return self.original.masked_fill(self.hidden, FLOOR)


class Reconstructor:
    """Function that hides parts of a clip and lets a pretraining model fill them in.

    A clip longer than the model's input is cut into adjacent windows. The last one ends with the clip and contributes
    only the remaining frames, so every frame is reconstructed once. A shorter clip is padded as in training. The hidden
    part of a window depends only on the seed and the window's number in the clip.

    Args:
        checkpoint: checkpoint of a pretraining model.
        strategy: masking strategy by name (``modules.masking``); the model's own if None.
        mask_ratio: hidden share in (0, 1), for ``time_frequency`` the share of the time steps and of the bands; the
            model's own if None.
        seed: random seed of the masks.
        batch_size: windows at a time.
        device: device of the model, see :func:`~amae_plugin.modules.compute.choose_device`.

    Attributes:
        input: input of the model.
        masking: strategy and hidden share in words.
        normalizes_targets: whether the model predicts patches without their level and spread.

    Raises:
        UserError: the model has no decoder, a decoder that was never trained, or no objective that predicts a
            spectrogram; a setting of the checkpoint is missing; the strategy does not exist; the ratio is not in (0,
            1).
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
        model = checkpoint.load(
            PretrainingModel, "it has no decoder to reconstruct with; give the checkpoint of a pretraining run"
        )
        if checkpoint.untrained:
            first, *others = checkpoint.untrained
            more = f" and {len(others):,} more tensors" if others else ""
            raise UserError(
                f"{checkpoint.path}: would draw noise, since the published file lacks {first}{more}, so these are "
                "untrained; pretrain it first (checkpoint.finetune_from_model)"
            )
        if not model.draws:
            raise UserError(
                f"{checkpoint.path}: the model was trained without reconstruction (its objectives: "
                f"{', '.join(model.loss_weights)}), so it predicts no spectrogram to draw"
            )
        self.checkpoint = checkpoint
        self.input = checkpoint.input
        self.seed = seed
        self.batch_size = batch_size
        self.device = choose_device(device)
        self.normalizes_targets = model.normalizes_targets
        config = _masking_settings(model.config, strategy, mask_ratio)
        try:
            model.masking = config.build_masking()
        except ValueError as error:
            raise UserError(f"--strategy {config.masking}: {error}") from None
        self.masking = f"{config.masking}, {model.masking.hidden_share}"
        with enough_memory(self.device, "the model: use another device"):
            self.model = model.to(self.device)

    def __call__(
        self, waveform: Tensor, advance: Callable[[int], object] = int, image: Tensor | None = None
    ) -> Reconstruction:
        """Hide parts of a clip (samples,) at the front end's sample rate and fill them in.

        Args:
            waveform: the clip.
            advance: called with the number of windows after each batch of them, to show progress.
            image: (3, S, S), the picture that goes with every window of the clip, for a model that takes one.

        Raises:
            UserError: the model gives values that are not finite.
        """
        original = self.input.front_end(waveform)
        width = self.input.target_length
        windows = Windows.cover(len(original), width, hop=width)
        parts, pictures = [], []
        for at in range(0, len(windows.starts), self.batch_size):
            with enough_memory(self.device, f"{self.batch_size} windows at a time: lower --batch-size"):
                *part, filled = self._fill_in(original, windows, at, image)
            parts.append(part)
            pictures.extend(filled)
            advance(len(parts[-1][0]))
        hidden, reconstructed = (windows.first(torch.cat(values)) for values in zip(*parts))
        self.checkpoint.require_finite(reconstructed[None])
        # Visible values stay as they were: normalising them and back would round them.
        merged = torch.where(hidden, reconstructed, original)
        return Reconstruction(original, hidden, merged, len(windows.starts), next(iter(pictures), None))

    def _fill_in(
        self, original: Tensor, windows: Windows, at: int, image: Tensor | None
    ) -> tuple[Tensor, Tensor, list[FilledPicture]]:
        """Fill in a batch of windows from number *at* on.

        Returns:
            Hidden places and spectrograms, each (B, W, F), and the pictures, none without an image.
        """
        width = windows.width
        numbers = range(at, min(at + self.batch_size, len(windows.starts)))
        pieces = [original[windows.starts[number] :][:width] for number in numbers]
        lengths = torch.tensor([len(piece) for piece in pieces], device=self.device)
        source = self.input.normalize(torch.stack([fit_length(piece, width) for piece in pieces]).to(self.device))
        seeds = torch.tensor([clip_seed(self.seed, 0, number) for number in numbers], device=self.device)
        padding = torch.arange(width, device=self.device) >= lengths[:, None]
        inputs = {"source": source, "seed": seeds, "padding_mask": padding}
        if image is not None:
            inputs["image"] = image.to(self.device).expand(len(source), *image.shape)
        with torch.inference_mode():
            output = self.model(**inputs)
            drawn = self.model.reconstruct(source, output["prediction"], output["mask"], padding)
        hidden = self.model.encoder.expand_mask(output["mask"], width)
        pictures = fill_pictures(self.model, self.input, inputs, output)
        return hidden.cpu(), self.input.denormalize(drawn.float()).cpu(), pictures


def fill_pictures(
    model: PretrainingModel, model_input: ModelInput, inputs: Mapping[str, Tensor], output: Mapping[str, Tensor]
) -> list[FilledPicture]:
    """Return the pictures of a batch as a model fills them in; none if it has none.

    Args:
        model: pretraining model.
        model_input: its input.
        inputs: arguments of the model's ``forward`` by name.
        output: result of ``forward``, in evaluation mode.
    """
    if "image" not in inputs or model_input.image is None:
        return []
    image, mask = inputs["image"], output["image_mask"]
    filled = model.reconstruct_image(image, output["image_prediction"], mask)
    side = math.isqrt(mask.shape[1])  # of a square of patches
    pixels = image.shape[-1] // side
    hidden = mask.unflatten(1, (side, side)).repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
    shown = [model_input.image.denormalize(values.float().cpu()).clamp(0, 1) for values in (image, filled)]
    return [FilledPicture(*each) for each in zip(shown[0], hidden.cpu(), shown[1])]


def make_audible(
    reconstruction: Reconstruction, features: FrontEnd, samples: int, advance: Callable[[int], object] = int
) -> list[Tensor]:
    """Turn the original, the masked and the reconstructed clip into sounds (samples,) in [-1, 1] with one gain.

    Even the original is resynthesised from its log-mel values, so the sounds differ only where these differ.

    Args:
        reconstruction: reconstruction of the clip.
        features: front end.
        samples: length of the clip.
        advance: called with 1 after each sound, to show progress.
    """
    sounds = []
    for log_mel in (reconstruction.original, reconstruction.masked, reconstruction.reconstructed):
        sounds.append(invert(log_mel, features, samples))
        advance(1)
    gain = _LOUDEST / max(float(sound.abs().max()) for sound in sounds)
    return [sound * gain for sound in sounds]


def _masking_settings(config: PretrainingConfig, strategy: str | None, ratio: float | None) -> PretrainingConfig:
    """Replace the mask in a model's settings; None keeps the model's own."""
    if ratio is not None and not 0 < ratio < 1:
        raise UserError(f"--mask-ratio {ratio:g}: the hidden share must be above 0 and below 1")
    if strategy is not None and strategy != config.masking:
        config = replace(config, masking=strategy, mask_options=None)
    if ratio is not None:
        config = replace(config, mask_ratio=ratio, mask_ratio_time=ratio, mask_ratio_frequency=ratio)
    return config
