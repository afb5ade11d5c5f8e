"""Recogniser: an encoder with a distribution over units at each step of time, for CTC (Graves et al. 2006)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import DownstreamModel, check_probability, marked_padding
from amae_plugin.models.ctc.config import CTCConfig
from amae_plugin.models.registry import find_system
from amae_plugin.modules.blocks import Dropout
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import Noise, SpanMasking, attention_padding, seeded_noise


@dataclass(frozen=True)
class StepCount:
    """Function from numbers of frames (an integer array or tensor) to numbers of output steps.

    Patches cover all frames unless they overlap: then they leave a few of the last frames aside, fewer than a stride.

    Attributes:
        patch: frames of a patch.
        stride: frames from one patch to the next.
        sub_steps: output steps of each column of patches.
    """

    patch: int
    stride: int
    sub_steps: int

    def columns(self, frames: Tensor) -> Tensor:
        """Return the numbers of columns of patches, at least 1, of numbers of frames."""
        covering = self.stride - 1 if self.stride == self.patch else 0
        return 1 + ((frames - self.patch).clip(min=0) + covering) // self.stride

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the numbers of output steps of numbers of frames."""
        return self.columns(frames) * self.sub_steps


class CTC(DownstreamModel):
    """Recogniser of speech with the encoder of any system.

    The tokens of a column of patches, one a band, stand side by side. A linear layer turns them into ``sub_steps``
    vectors of the encoder's width, and another one turns each of these into a distribution over units. Tokens that
    cover all bands need no first layer if there is one step each.

    Padding is neither attended to nor emitted, and a clip has the same positions in any batch. So in evaluation its
    outputs do not depend on the batch, whatever the system.
    Letters in shapes: B clips, T frames, F mel bands, C columns of tokens, T' = C x sub_steps output steps, V units, D
    width.

    Raises:
        UserError: ``config.encoder`` names no system.
        ValueError: there are no units, or a length, a share or a probability is out of range.
    """

    config: CTCConfig
    kind = "recogniser"
    tells = "words"
    task = "amae_ctc"
    plain_config = CTCConfig
    size = "num_units"
    output_name = "log_probs"

    def __init__(self, config: CTCConfig):
        super().__init__(config)
        if config.num_units < 2:
            raise ValueError(f"a recogniser needs units besides the blank, not model.num_units={config.num_units}")
        if config.sub_steps < 1:
            raise ValueError(f"model.sub_steps must be at least 1, not {config.sub_steps}")
        check_probability("dropout", config.dropout)
        self.masks_time = SpanMasking(config.mask_ratio_time, config.mask_length)
        self.masks_bands = SpanMasking(config.mask_ratio_frequency, config.mask_length_frequency)
        settings = config.encoder or {}
        self.encoder = find_system(settings).encoder(settings)
        self.steps = StepCount(self.encoder.patch_size[0], self.encoder.patch_stride[0], config.sub_steps)
        self.longest = self.encoder.grid(config.input_length, self.encoder.num_mel_bins)
        width, joined = self.encoder.embed_dim, self.encoder.step_dim(joined=True)
        self.sub_steps: nn.Module = nn.Identity()
        if config.sub_steps > 1 or joined != width:
            self.sub_steps = nn.Linear(joined, config.sub_steps * width)
            nn.init.normal_(self.sub_steps.weight, std=0.02)
            nn.init.zeros_(self.sub_steps.bias)
            # Each step begins as the mean of its column: learning then starts several times faster than from noise.
            self.sub_steps.weight.data += torch.eye(width).repeat(config.sub_steps, bands := joined // width) / bands
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(width, config.num_units)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def freeze(self, frozen: bool) -> None:
        """Freeze the encoder, which then computes as in evaluation and gets gradients of 0, or thaw it."""
        self.frozen = frozen
        self.train(self.training)

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the distributions over units.

        In training, spans of columns and spans of mel bands are blanked out at random: they become 0, the mean.

        Args:
            source: (B, T, F) normalised log-mel of at most ``config.input_length`` frames that the encoder's patches
                fit.
            mask: (B, C) bool, True = blanked out; if None, sampled in training and empty in evaluation.
            seed: (B,) seeds of everything random but dropout, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end.

        Returns:
            ``log_probs`` (B, T', V) float32, ``padding`` (B, T') bool, True = beyond the clip's last step, and
            ``features``, those of :meth:`features`. T' is what the longest clip of the batch has.

        Raises:
            ValueError: the patch does not divide the spectrogram, this is longer than the input, or the mask has
                another shape.
        """
        padding_mask = marked_padding(padding_mask)
        patches, grid = self.encoder.patches(source, padding_mask)
        if grid[0] > self.longest[0]:
            raise ValueError(f"{source.shape[1]} frames are more than the model's input, {self.config.input_length}")
        if mask is not None and mask.shape != (len(source), grid[0]):
            raise ValueError(f"the mask must be (B, C) = {(len(source), grid[0])}, not {tuple(mask.shape)}")
        padding = None
        if padding_mask is not None:
            columns = self.steps.columns((~padding_mask).sum(dim=1))
            # Once a batch with padding the CPU waits here for a GPU. PyTorch's CTC loss waits for the lengths as well.
            grid = (int(columns.max()), grid[1])
            padding = torch.arange(grid[0], device=source.device) >= columns[:, None]
            patches = patches[:, : grid[0] * grid[1]]
            mask = None if mask is None else mask[:, : grid[0]]
        noise = seeded_noise(source, seed)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), self.drop_paths(noise):
            patches = self._blank_out(patches, grid, mask, noise, padding)
            tokens = self._encode(patches, grid, padding)
        if self.frozen and torch.is_grad_enabled():
            # DistributedDataParallel waits for a gradient of every parameter.
            tokens = tokens + 0.0 * torch.stack([weight.sum() for weight in self.encoder.parameters()]).sum()
        x = self.encoder.time_steps(tokens[:, self.encoder.num_prefix_tokens :], joined=True)
        x = self.sub_steps(x).unflatten(2, (self.config.sub_steps, -1)).flatten(1, 2)
        log_probs = self.head(self.dropout(x)).log_softmax(dim=-1)
        if padding is None:
            padding = torch.zeros(len(source), grid[0], dtype=torch.bool, device=source.device)
        unused = padding.repeat_interleave(grid[1], dim=1)
        return {
            "log_probs": log_probs,
            "padding": padding.repeat_interleave(self.config.sub_steps, dim=1),
            "features": self.encoder.mean_of_patches(tokens, unused, self.encoder.joins_bands),
        }

    @override
    def outputs(self, source: Tensor) -> Tensor:
        return self(source)["log_probs"]

    @override
    def features(self, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self(source, padding_mask=padding_mask)["features"]

    def _encode(self, patches: Tensor, grid: Size2d, padding: Tensor | None) -> Tensor:
        """Encode patches (B, L, P) with the positions of the longest input: (B, prefix + L, D) float32.

        A table of positions that is not computed but learned would otherwise be cut or stretched to each batch.
        """
        visible = None
        if grid != self.longest:
            visible = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
        unused = None if padding is None else padding.repeat_interleave(grid[1], dim=1)
        with self.matrix_precision(patches.device):
            return self.encoder(patches, self.longest, visible, attention_padding(unused)).float()

    def _blank_out(
        self, patches: Tensor, grid: Size2d, mask: Tensor | None, noise: Noise, padding: Tensor | None
    ) -> Tensor:
        """Set spans of columns and, in training, of mel bands of patches (B, L, P) to 0."""
        if self.training and self.config.mask_ratio_frequency:
            bands = self.masks_bands(noise, (self.encoder.num_mel_bins, 1))
            of_patches = bands.unfold(1, self.encoder.patch_size[1], self.encoder.patch_stride[1])
            values = of_patches[:, None, :, None].expand(-1, grid[0], -1, self.encoder.patch_size[0], -1)
            patches = patches.masked_fill(values.reshape(patches.shape), 0.0)
        if mask is None and self.training and self.config.mask_ratio_time:
            mask = self.masks_time(noise, (grid[0], 1), padding)
        return patches if mask is None else patches.masked_fill(mask.repeat_interleave(grid[1], dim=1)[..., None], 0.0)
