"""Interfaces of all models: encoders, models with an encoder, pretraining models and downstream models.

Letters in shapes: B clips, T frames, F mel bands, L patches (tokens of a time-major grid), P values in a patch, D
width.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.settings import DownstreamConfig, ModelConfig, PretrainingConfig, Settings
from amae_plugin.modules.blocks import Attention, Dropout, drop_paths
from amae_plugin.modules.compute import compile_modules
from amae_plugin.modules.embedding import PatchEmbed, Positions, Size2d, grid_size, patchify, unpatchify
from amae_plugin.modules.masking import Masking, Noise, attention_padding
from amae_plugin.modules.moving_average import MovingAverage


class Encoder(nn.Module, ABC):
    """Transformer over the patch tokens of a spectrogram.

    Args:
        config: settings.
        patch_stride: frames and bands from one patch to the next; equal to the patch if None.

    Attributes:
        num_prefix_tokens: number of class tokens in front of the patch tokens, 0 or more.
        decays_embedding: whether a layer-wise decay of the learning rate includes what precedes the blocks.
        masks_padding: whether the encoder never attends to tokens beyond a clip's end; for other encoders padding is
            part of the clip.
        joins_bands: whether the features of a time step are the tokens of its bands side by side, not their mean.
        modalities: what the encoder takes of a clip, ``"audio"``, ``"image"`` or both; of the class, what it can take.
        embed_dim: D.
        num_heads: number of attention heads.
        num_mel_bins: F.
        patch_size: frames and bands of a patch.
        image_patch_size: pixels of either side of a picture's patch; None if the encoder takes no pictures.
        patch_stride: frames and bands from one patch to the next; equal to the patch unless patches overlap.
        patch_embed: embedding of the patches.
        positions: position table.
        layerdrop: probability that a batch skips a block in training (LayerDrop, Fan et al. 2020).
        blocks: transformer blocks.
        norm: norm after the last block; the identity if the last block ends with a norm.
    """

    num_prefix_tokens: int
    masks_padding: bool
    decays_embedding = True
    joins_bands = False
    modalities: tuple[str, ...] = ("audio",)
    image_patch_size: int | None = None
    layerdrop = 0.0
    patch_embed: PatchEmbed
    positions: Positions
    blocks: nn.ModuleList
    norm: nn.Module

    def __init__(self, config: PretrainingConfig, patch_stride: Size2d | None = None):
        super().__init__()
        self.embed_dim = config.embed_dim
        self.num_heads = config.num_heads
        self.num_mel_bins = config.num_mel_bins
        self.patch_size: Size2d = tuple(config.patch_size)  # type: ignore[assignment]
        self.patch_stride: Size2d = tuple(patch_stride or config.patch_size)  # type: ignore[assignment]

    @property
    def input_statistics(self) -> tuple[float, float] | None:
        """Mean and standard deviation that the encoder has learned for its input; None without an input norm."""
        return None

    def patches(
        self, source: Tensor, padding_mask: Tensor | None = None, learned: bool = False
    ) -> tuple[Tensor, Size2d]:
        """Cut a spectrogram (B, T, F) into patches (B, L, P), and return them and their grid.

        Args:
            source: log-mel values as the system expects them.
            padding_mask: (B, T) bool, True = beyond the clip's end; matters only to a system that normalises its input
                by the clips of the batch.
            learned: whether such a system takes the statistics that it has learned, in training too, so that a clip
                does not depend on the others.

        Raises:
            ValueError: see :meth:`grid`.
        """
        patches = patchify(source, self.patch_size, self.patch_stride)
        return patches, self.grid(source.shape[1], source.shape[2])

    @abstractmethod
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Encode the visible patches.

        Args:
            patches: (B, L, P), all patches of the grid.
            grid: number of patches in time and frequency, L in total.
            visible: (B, K) positions of the visible patches; all if None.
            padding_mask: (B, K) over the visible patches, True = not attended to.

        Returns:
            (B, prefix + K, D) after the final norm, class tokens first.
        """

    def run_blocks(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Pass tokens (B, N, D), prefix included, through the blocks and the final norm.

        Args:
            x: tokens.
            padding_mask: (B, N), True = not attended to.
        """
        return self.norm(self.pass_through(self.blocks, x, padding_mask))

    def pass_through(self, blocks: nn.ModuleList, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Pass tokens (B, N, D) through some blocks, of which LayerDrop skips some; see :meth:`run_blocks`."""
        kept = [True] * len(blocks)
        if self.training and self.layerdrop:
            # Drawn on the CPU, so that the choice of the blocks never waits for a GPU.
            kept = (torch.rand(len(blocks)) >= self.layerdrop).tolist()
        for block in itertools.compress(blocks, kept):
            x = block(x, padding_mask)
        return x

    def views(
        self,
        patches: Tensor | None,
        grid: Size2d | None,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> list[Tensor]:
        """Encode clips in each of the ways whose means over the tokens a classifier averages.

        Args:
            patches: see :meth:`forward`; None if the clips have no sound.
            grid: see :meth:`forward`; None without patches.
            visible: see :meth:`forward`.
            padding_mask: see :meth:`forward`.
            image: (B, 3, S, S) pictures as the system expects them; None if the clips have none. What the encoder does
                not take has no effect.

        Returns:
            Tokens (B, prefix + K, D) after a final norm, for each way.

        Raises:
            ValueError: the clips have nothing that the encoder takes.
        """
        if patches is None or grid is None:
            raise ValueError("the clips have no sound, and this encoder takes nothing else")
        return [self(patches, grid, visible, padding_mask)]

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, S, S) on their own: (B, L, D) after a final norm, row by row.

        Raises:
            ValueError: this encoder takes no pictures, or the patch does not divide them.
        """
        raise ValueError("this encoder takes no pictures")

    def freeze_idle(self) -> None:
        """Freeze what no result for clips with all of the modalities depends on; distributed training waits for it."""

    def hear_only(self) -> None:
        """Give up what the encoder has for pictures, if anything."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Blocks by layer; of several in a list, which different modalities pass through, a clip skips all or none."""
        return tuple(self.blocks)

    def set_dropout(self, **probabilities: float | None) -> None:
        """Change the dropout of training, whatever the system trained with.

        Args:
            probabilities: by fairseq's names, in [0, 1); None leaves one as it is. ``dropout_input`` is that of the
                embedded tokens, ``dropout`` of the branches of the blocks, ``attention_dropout`` of the attention
                weights, ``activation_dropout`` of what follows an MLP's activation; see also :attr:`layerdrop`.

        Raises:
            ValueError: a probability is out of range.
        """
        chosen = {name: p for name, p in probabilities.items() if p is not None}
        for name, p in chosen.items():
            check_probability(name, p)
        self.layerdrop = chosen.get("layerdrop", self.layerdrop)
        for path, module in self.named_modules():
            if isinstance(module, Attention):
                module.dropout = chosen.get("attention_dropout", module.dropout)
            elif isinstance(module, Dropout):
                place = {"patch_embed": "dropout_input", "mlp": "activation_dropout"}
                name = place.get(path.split(".")[-2] if "." in path else "", "dropout")
                module.p = chosen.get(name, module.p)

    def with_prefix(self, padding_mask: Tensor | None) -> Tensor | None:
        """Extend a padding mask (B, K) of patch tokens to all tokens (B, prefix + K); class tokens are no padding."""
        if padding_mask is None:
            return None
        return torch.cat([padding_mask.new_zeros(len(padding_mask), self.num_prefix_tokens), padding_mask], dim=1)

    @property
    def num_bands(self) -> int:
        """Number of patches in frequency."""
        return self.grid(self.patch_size[0], self.num_mel_bins)[1]

    def step_dim(self, joined: bool) -> int:
        """Return the number of features of a time step, whose bands are *joined* or averaged."""
        return self.embed_dim * (self.num_bands if joined else 1)

    def time_steps(self, patches: Tensor, joined: bool) -> Tensor:
        """Turn all patch tokens (B, L, D) into time steps (B, T, step_dim): bands side by side, or their mean."""
        steps = patches.unflatten(1, (-1, self.num_bands))
        return steps.flatten(2) if joined else steps.mean(dim=2)

    def mean_of_patches(self, tokens: Tensor, padding_mask: Tensor | None, joined: bool = False) -> Tensor:
        """Average the patch tokens among (B, prefix + K, D) to (B, D), leaving out those of a mask (B, K).

        With *joined*, average the time steps of all patches, whose bands stay side by side, to (B, step_dim).
        """
        patches = tokens[:, self.num_prefix_tokens :]
        if joined:
            patches = self.time_steps(patches, joined)
            padding_mask = None if padding_mask is None else padding_mask[:, :: self.num_bands]
        if padding_mask is None:
            return patches.mean(dim=1)
        used = ~padding_mask[..., None]
        return (patches * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)

    def grid(self, frames: int, bands: int) -> Size2d:
        """Count the patches of a spectrogram in time and in frequency.

        Raises:
            ValueError: the patch does not divide the spectrogram or, if patches overlap, exceeds it.
        """
        return grid_size(frames, bands, self.patch_size, self.patch_stride)

    def patch_padding(self, padding_mask: Tensor) -> Tensor:
        """Mark the patches (B, L) all of whose frames (B, T) are padding; True = padding.

        Raises:
            ValueError: see :meth:`grid`.
        """
        grid = self.grid(padding_mask.shape[1], self.num_mel_bins)
        columns = padding_mask.unfold(1, self.patch_size[0], self.patch_stride[0]).all(dim=-1)
        return columns.repeat_interleave(grid[1], dim=1)

    def expand_mask(self, mask: Tensor, frames: int) -> Tensor:
        """Expand a mask (B, L) of patches without overlap to the values of a spectrogram (B, T, F)."""
        values = mask[..., None].expand(-1, -1, self.patch_size[0] * self.patch_size[1])
        return unpatchify(values, self.grid(frames, self.num_mel_bins), self.patch_size)

    def relevant_padding(self, padding_mask: Tensor | None) -> Tensor | None:
        """Return :func:`marked_padding` of a mask (B, T) if this encoder masks padding, else None."""
        return marked_padding(padding_mask) if self.masks_padding else None


class Model(nn.Module, ABC):
    """Encoder with what follows it: a decoder in pretraining, a head in a downstream task.

    Attributes:
        encoder: encoder, which other models may take over.
        config: settings.
        output_name: name of the result of :meth:`outputs`.
    """

    encoder: Encoder
    config: ModelConfig
    output_name: str

    @abstractmethod
    def outputs(self, source: Tensor) -> Tensor:
        """Return the model's result for whole spectrograms (B, T, F), which an export must reproduce."""

    @abstractmethod
    def features(self, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return features of whole clips: (B, D), or (B, bands D) if the bands of a time step stay side by side.

        Args:
            source: (B, T, F) log-mel values as the system expects them.
            padding_mask: (B, T) bool, True = beyond the clip's end.
        """

    def extract_image_features(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, S, S) on their own: (B, L, D) float32; see :meth:`Encoder.encode_image`."""
        with self.matrix_precision(image.device):
            return self.encoder.encode_image(image).float()

    def image_features(self, image: Tensor) -> Tensor:
        """Return features (B, D) of pictures, as :meth:`features` does of sounds."""
        return self.extract_image_features(image).mean(dim=1)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """Transformer blocks of all parts, which take nearly all the time."""
        lists = (part for name, part in self.named_modules() if name.split(".")[-1] == "blocks")
        return tuple(block for blocks in lists for block in blocks.children())

    def matrix_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Return a context in which matrix products run in bfloat16 if configured; all else stays in float32.

        Otherwise the precision is that of the caller's ``torch.autocast``, if there is one.
        """
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.config.bf16 else nullcontext()

    def compile_blocks(self) -> None:
        """Have PyTorch compile the transformer blocks at their first use (needs a C++ compiler on a CPU)."""
        compile_modules(self.blocks)


class DownstreamModel(Model):
    """Encoder of any system with a head for a task.

    Attributes:
        kind: noun for the model in messages.
        tells: plural of what the model tells of a clip.
        task: registered name of the fairseq task and of the criterion that train the model.
        plain_config: class of the settings.
        size: name of the setting that is the number of outputs.
        head: last layer.
        frozen: whether the encoder computes as in evaluation, in training too.

    Raises:
        ValueError: ``config.drop_path`` is outside [0, 1).
    """

    config: DownstreamConfig
    kind: str
    tells: str
    task: str
    plain_config: type[DownstreamConfig]
    size: str
    head: nn.Linear

    def __init__(self, config: DownstreamConfig):
        super().__init__()
        check_probability("drop_path", config.drop_path)
        self.config = config
        self.frozen = False

    @classmethod
    def from_settings(cls, settings: Settings) -> DownstreamModel:
        """Build the model of a model section.

        Raises:
            UserError: the encoder's section names no system.
            ValueError: the settings make no model.
        """
        return cls(cls.plain_config.from_settings(settings))

    @classmethod
    def check_sizes(cls, settings: Settings, state: Mapping[str, Tensor]) -> None:
        """Compare the number of outputs with weights, before a model of such a size takes memory.

        Raises:
            ValueError: a setting is of a wrong type, or the number is not that of the weights.
        """
        outputs, weight = getattr(cls.plain_config.from_settings(settings), cls.size), state.get("head.weight")
        if weight is None or len(weight) != outputs:
            found = "no head (Missing head.weight)" if weight is None else f"{len(weight)}"
            raise ValueError(f"model.{cls.size} is {outputs}, but the weights have {found}")

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def drop_paths(self, noise: Noise) -> AbstractContextManager[None]:
        """Let clips skip branches of the encoder in training, as ``config.drop_path`` says."""
        if not (self.encoder.training and self.config.drop_path):
            return nullcontext()
        layers = self.encoder.layers
        return drop_paths(layers, noise(2 * len(layers)).view(-1, len(layers), 2), self.config.drop_path)

    def layer_index(self, parameter: str) -> int:
        """Return the layer of a parameter, for a layer-wise decay of the learning rate.

        It is i + 1 in block i, depth + 1 after the last block, and 0 before the first, unless the encoder's embedding
        does not decay, see :attr:`Encoder.decays_embedding`. Blocks and norms of the encoder's parts count alike.
        """
        place = re.match(r"encoder\.(?:\w+\.)?(?:blocks\.(\d+)|(norm))\.", parameter)
        if place and place[1]:
            return int(place[1]) + 1
        before = parameter.startswith("encoder.") and not place
        return 0 if before and self.encoder.decays_embedding else len(self.encoder.blocks) + 1


class PretrainingModel(Model):
    """Model that hides most tokens of a spectrogram and predicts them.

    Attributes:
        loss_weights: weights of the objectives of :meth:`token_losses`, by name; the loss is the weighted sum of their
            means over hidden tokens.
        masking: sampler of the masks.
        normalizes_targets: whether the targets lack each patch's mean and variance, which :meth:`reconstruct` guesses.
        teacher: moving average of parts of the encoder, which computes the targets; None if they need no encoder.
    """

    config: PretrainingConfig
    loss_weights: Mapping[str, float]
    masking: Masking
    teacher: MovingAverage | None
    normalizes_targets = False
    output_name = "features"

    def __init__(self, config: PretrainingConfig):
        super().__init__()
        self.config = config
        self.register_module("teacher", None)

    @abstractmethod
    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict every token from the visible ones.

        Args:
            source: (B, T, F) log-mel values as the system expects them; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden; sampled if None.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end; only systems that mask padding use it.

        Returns:
            At least ``target`` (B, L, P), float32, and ``mask`` (B, L); with a generative objective ``prediction``
            (B, L, P), with a discriminative one ``classification`` (B, L, P), both float32. Targets and predictions of
            features are (B, L, D), and with them comes ``target_variance``, a scalar: the variance over tokens of the
            teacher's features, near 0 once these are the same everywhere. A model that encodes n clones of a clip has
            n B masks and predictions, clip by clip.

        Raises:
            ValueError: the patch does not divide the spectrogram, or the mask does not fit it.
        """

    @abstractmethod
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses (B, L) of an output of :meth:`forward` by objective, unweighted, 0 at visible tokens.

        An objective of whole clips has losses (B,).
        """

    def after_update(self, num_updates: int, max_update: int) -> None:
        """Do what follows each optimizer step, on every rank: the teacher moves.

        Args:
            num_updates: number of updates so far, this one included.
            max_update: updates of the run, 0 if unknown.

        Raises:
            UserError: the teacher's decay changes over the run, whose length is unknown.
        """
        if self.teacher is not None:
            self.teacher.follow(self.encoder, num_updates, max_update)

    def reconstruct(
        self, source: Tensor, prediction: Tensor, mask: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Return a spectrogram (B, T, F) with the visible tokens of ``source`` and the predicted hidden ones.

        The hidden tokens of ``source`` have no influence. Only for models that draw, see :attr:`draws`.

        Args:
            source: (B, T, F), the input of :meth:`forward`.
            prediction: (B, L, P), predicted by :meth:`forward` in evaluation mode.
            mask: (B, L) bool, True = hidden.
            padding_mask: (B, T) bool, True = beyond the clip's end; these frames have no influence either.
        """
        patch_size = self.encoder.patch_size
        patches = torch.where(mask[..., None], prediction, patchify(source, patch_size))
        return unpatchify(patches, self.encoder.grid(source.shape[1], source.shape[2]), patch_size)

    def reconstruct_image(self, image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Return pictures (B, 3, S, S) with the visible patches of ``image`` and the predicted hidden ones.

        The hidden patches of ``image`` have no influence. Only for models that are given pictures.

        Args:
            image: (B, 3, S, S), the input of :meth:`forward`.
            prediction: (B, M, Q), predicted by :meth:`forward` in evaluation mode.
            mask: (B, M) bool, True = hidden.

        Raises:
            ValueError: this model takes no pictures.
        """
        raise ValueError("this model takes no pictures")

    @property
    def draws(self) -> bool:
        """Whether an objective predicts the spectrogram itself, which can be drawn."""
        return "reconstruction" in self.loss_weights

    def extract_features(self, source: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode a whole spectrogram.

        Args:
            source: (B, T, F), the input of :meth:`forward`.
            padding_mask: (B, T) bool, True = beyond the clip's end; tokens wholly there are not attended to.

        Returns:
            Features (B, prefix + L, D) after the final norm, class tokens first, and their padding mask
            (B, prefix + L), None without a padding mask.
        """
        patches, grid = self.encoder.patches(source, padding_mask)
        padding = None if padding_mask is None else self.encoder.patch_padding(padding_mask)
        with self.matrix_precision(source.device):
            features = self.encoder(patches, grid, padding_mask=attention_padding(padding))
        return features.float(), self.encoder.with_prefix(padding)

    @override
    def outputs(self, source: Tensor) -> Tensor:
        return self.extract_features(source)[0]

    @override
    def features(self, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        padding_mask = self.encoder.relevant_padding(padding_mask)
        tokens, _ = self.extract_features(source, padding_mask)
        padding = None if padding_mask is None else self.encoder.patch_padding(padding_mask)
        return self.encoder.mean_of_patches(tokens, padding, self.encoder.joins_bands)


def summed_losses(model: PretrainingModel, output: Mapping[str, Tensor], scored: Tensor) -> dict[str, Tensor]:
    """Sum the objectives over scored tokens; returns scalars by name, and ``loss``, their weighted sum.

    An objective of whole clips counts at each scored token of its clip. Divided by the number of scored tokens, every
    sum therefore is a mean over its own summands, however a global batch is cut.

    Args:
        model: pretraining model.
        output: result of its ``forward``.
        scored: (B, L) bool, True = the token counts.
    """
    losses = {name: values.view(len(scored), -1) for name, values in model.token_losses(output).items()}
    sums = {name: (values * scored).sum() for name, values in losses.items()}
    total = torch.stack([model.loss_weights[name] * value for name, value in sums.items()]).sum()
    return {"loss": total, **sums}


def marked_padding(padding_mask: Tensor | None) -> Tensor | None:
    """Return a padding mask if a clip has padding, else None: attention without a mask is faster.

    A mask on a GPU is taken to mark some, as the CPU would wait for the answer at every step. Batches of the fairseq
    tasks have no mask where no clip has padding.
    """
    if padding_mask is None or (padding_mask.device.type == "cpu" and not padding_mask.any()):
        return None
    return padding_mask


def check_probability(name: str, value: float) -> None:
    """Refuse a probability of dropout that is out of range.

    Raises:
        ValueError: it is outside [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"model.{name} must be at least 0 and below 1, not {value}")
