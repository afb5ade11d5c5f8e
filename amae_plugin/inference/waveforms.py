"""Encoders on batches of padded waveforms, on any device and with gradients: the time steps that other models take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.inference.windows import Windows
from amae_plugin.models.base import Encoder, Model
from amae_plugin.modules.blocks import drop_paths
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import attention_padding, gather_ids


class TimeSteps(NamedTuple):
    """Features of the time steps of a batch of clips; those beyond a clip's end are 0.

    Attributes:
        features: (B, T, C), after the encoder's final norm.
        layers: (B, T, C), the outputs of the blocks that ran, before that norm.
    """

    features: Tensor
    layers: list[Tensor]


class WaveformEncoder:
    """Encoder of a model on batches of padded waveforms.

    The log-mel spectrogram and its normalisation are those of the model's input, computed on the waveforms' device. A
    *time step* is a column of tokens, those of its frequency bands side by side. Tokens beyond a clip's end are left
    out before the first block, so a clip has the features that it has alone, whatever else is in the batch.

    A clip longer than the encoder's position table is encoded whole if the positions go on beyond the table (sines and
    cosines). Otherwise it is cut into windows of the table's length, each of which starts half a window after the
    previous one; a step in several windows is averaged over them.

    Letters in shapes: B clips, T time steps, C features of a step, D width of the encoder, N windows.

    Args:
        model: model of any kind whose encoder is used.
        model_input: its input.
    """

    def __init__(self, model: Model, model_input: ModelInput):
        self.model = model
        self.input = model_input

    @property
    def encoder(self) -> Encoder:
        """Encoder of the model."""
        return self.model.encoder

    @property
    def dim(self) -> int:
        """Features of a step, C."""
        return self.encoder.step_dim(joined=True)

    @property
    def steps_per_second(self) -> float:
        """Time steps in a second."""
        return self.input.sample_rate / (self.input.front_end.shift_samples * self.encoder.patch_stride[0])

    def steps_in(self, samples: np.ndarray) -> np.ndarray:
        """Count the time steps of clips with these numbers of samples; the last one may reach beyond the clip."""
        beyond_first = (self.input.front_end.frames_in(samples) - self.encoder.patch_size[0]).clip(min=0)
        return 1 - (-beyond_first // self.encoder.patch_stride[0])

    def __call__(
        self,
        waveforms: Tensor,
        samples: np.ndarray,
        hidden: Tensor | None = None,
        dropped: Tensor | None = None,
        drop_path: float = 0.0,
        embedding_gradient: float = 1.0,
    ) -> TimeSteps:
        """Encode clips.

        Args:
            waveforms: (B, samples) of any floating-point type, mono at the input's sample rate with a full scale of 1.
            samples: (B,) int64, samples of each clip; what follows them has no influence.
            hidden: (B, T) bool, True = the tokens of the step are the mean of the normalised spectrogram, 0.
            dropped: (B, D) bool, True = the channel of the embedded tokens is 0.
            drop_path: rate of the stochastic depth of the last block, for a model in training.
            embedding_gradient: factor of the gradient of the patch embedding; with 0 it is not trained.

        Returns:
            Steps in the type of the encoder's weights; T is the largest of :meth:`steps_in`.
        """
        steps, encoder, device = self.steps_in(samples), self.encoder, waveforms.device
        width = self._width(int(steps.max()))
        windows = [Windows.cover(int(count), width, hop=max(1, width // 2)) for count in steps]
        clips = torch.tensor([i for i, each in enumerate(windows) for _ in each.starts], device=device)
        starts = torch.tensor([start for each in windows for start in each.starts], device=device)
        within = [min(width, each.steps - start) for each in windows for start in each.starts]
        patches, padding = self._patches(waveforms, samples, clips, starts, width)
        if hidden is not None:
            hidden = nn.functional.pad(hidden, (0, int(starts.max()) + width - hidden.shape[1]))
            steps_hidden = hidden[clips[:, None], starts[:, None] + torch.arange(width, device=device)]
            patches = patches.masked_fill(steps_hidden.repeat_interleave(encoder.num_bands, dim=1)[..., None], 0.0)
        visible = unused = None
        if min(within) < width:
            visible, unused = gather_ids(torch.zeros_like(padding), padding, max(within) * encoder.num_bands)
            unused = unused if min(within) < max(within) else None
        grid = (width, encoder.num_bands)
        with ExitStack() as stack:
            stack.enter_context(self._precision(device))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # lengths change from batch to batch
            stack.enter_context(self._stochastic_depth(len(clips), drop_path, device))
            outputs = stack.enter_context(_recorded(encoder.blocks))
            channels = None if dropped is None else dropped[clips]
            stack.enter_context(_changed_embedding(encoder, channels, embedding_gradient))
            outputs.append(encoder(patches, grid, visible, attention_padding(unused)))
        by_step = (self._by_step(tokens, visible, unused, grid) for tokens in outputs)
        *layers, features = (self._merge(values, windows) for values in by_step)
        return TimeSteps(features, layers)

    def _width(self, longest: int) -> int:
        """Return the number of steps of a window, that of the position table or, if need be and it can, more."""
        positions = self.encoder.positions
        table = positions.grid or self.encoder.grid(self.input.target_length, self.encoder.num_mel_bins)
        # Whole tables: the encoder keeps a table for each length.
        return table[0] * math.ceil(longest / table[0]) if longest > table[0] and positions.extends else table[0]

    @torch.no_grad()
    def _patches(
        self, waveforms: Tensor, samples: np.ndarray, clips: Tensor, starts: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """Return the patches (N, L, P) of windows and their padding (N, L), True = beyond the clip's end."""
        device, encoder = waveforms.device, self.encoder
        frames = torch.from_numpy(self.input.front_end.frames_in(samples)).to(device)
        # Logarithms and Fourier transforms need float32, whatever the model is trained in.
        with torch.autocast(device.type, enabled=False):
            log_mel = self.input.front_end.batch(waveforms.float(), torch.from_numpy(samples).to(device))
            places = starts[:, None] * encoder.patch_stride[0]
            places = places + torch.arange(width * encoder.patch_size[0], device=device)
            padding = places >= frames[clips][:, None]
            source = log_mel[clips[:, None], places.clamp(max=log_mel.shape[1] - 1)]
            source = self.input.normalize(source.masked_fill(padding[..., None], 0.0))
            patches, _ = encoder.patches(source, padding, learned=True)
        return patches, encoder.patch_padding(padding)

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Return a context in which matrix products fit the weights, or run as the caller or the model wants."""
        dtype = self.encoder.patch_embed.proj.weight.dtype
        if dtype != torch.float32:  # fairseq's fp16 and bf16
            return torch.autocast(device.type, dtype=dtype)
        return nullcontext() if torch.is_autocast_enabled(device.type) else self.model.matrix_precision(device)

    def _stochastic_depth(self, clips: int, rate: float, device: torch.device) -> AbstractContextManager[None]:
        if not (self.encoder.training and rate):
            return nullcontext()
        uniform = torch.rand(clips, len(self.encoder.blocks), 2, device=device)
        return drop_paths(self.encoder.blocks, uniform, rate)

    def _by_step(self, tokens: Tensor, visible: Tensor | None, unused: Tensor | None, grid: Size2d) -> Tensor:
        """Put the tokens of each time step side by side: (N, W, C), 0 for steps without tokens."""
        tokens = tokens[:, self.encoder.num_prefix_tokens :].to(self.encoder.patch_embed.proj.weight.dtype)
        if unused is not None:
            tokens = tokens.masked_fill(unused[..., None], 0.0)
        if visible is not None:
            on_grid = tokens.new_zeros(len(tokens), grid[0] * grid[1], tokens.shape[2])
            tokens = on_grid.scatter(1, visible[..., None].expand_as(tokens), tokens)
        return self.encoder.time_steps(tokens, joined=True)

    @staticmethod
    def _merge(values: Tensor, windows: Sequence[Windows]) -> Tensor:
        """Join the windows (N, W, C) of each clip: (B, T, C), 0 beyond a clip's end."""
        if len(values) == len(windows):
            return values[:, : max(each.steps for each in windows)]
        parts = values.split([len(each.starts) for each in windows])
        merged = [each.merge(part) for each, part in zip(windows, parts)]
        return nn.utils.rnn.pad_sequence(merged, batch_first=True)


@contextmanager
def _recorded(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect the outputs of blocks while they run."""
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, args, output: outputs.append(output)) for block in blocks]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _changed_embedding(encoder: Encoder, dropped: Tensor | None, gradient: float) -> Iterator[None]:
    """Drop channels (N, D) of the embedded tokens, and scale the gradient of their embedding, while it is open."""

    def change(_: nn.Module, args: object, tokens: Tensor) -> Tensor:
        if gradient == 0:
            tokens = tokens.detach()
        elif gradient != 1 and tokens.requires_grad:
            tokens.register_hook(lambda grad: grad * gradient)
        return tokens if dropped is None else tokens.masked_fill(dropped[:, None], 0.0)

    hook = encoder.patch_embed.register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()
