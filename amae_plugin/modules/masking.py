"""Masks, which decide the hidden tokens of a clip; one class for each strategy, chosen by name.

A strategy turns random numbers into a mask (B, L), True = hidden, over a time-major grid. A clip's number of visible
tokens is exact and depends only on its number of valid tokens, so the visible tokens of a batch fit one tensor.
Everything is vectorised and runs on the device of the noise; no strategy loops over clips or tokens.

Clips of a batch may end at different times. Tokens beyond the end, the padding, are never hidden. They come last and
noise is drawn in the order of time, so the padding that follows a clip does not change its mask. The exception is
``time_frequency``, which draws for the bands after all time steps.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from amae_plugin.modules.embedding import Size2d

Noise = Callable[[int], Tensor]
"""Function that draws n uniform numbers in [0, 1) for every clip of a batch, (B, n), new ones at each call."""

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_QUANTILE_BITS = 16


class ClipNoise:
    """Uniform noise that depends only on each clip's seed.

    A counter-based generator, the splitmix64 finaliser over seed and counter. A clip has the same mask in any batch, on
    any rank and on any device, which makes runs comparable across numbers of devices and exactly resumable.

    Args:
        seed: (B,) int64, one seed for each clip, on the device of the noise.
    """

    def __init__(self, seed: Tensor):
        self.state = _mix(seed.to(torch.int64))[:, None]
        self.drawn = 0

    def __call__(self, count: int) -> Tensor:
        """Draw the next ``count`` numbers of every clip: (B, count), float32 in [0, 1)."""
        return _shift_right(self.bits(count), 40).float() * 2**-24

    def bits(self, count: int) -> Tensor:
        """Draw the next ``count`` numbers of every clip as 64 random bits each: (B, count), int64."""
        counter = torch.arange(self.drawn + 1, self.drawn + count + 1, device=self.state.device)
        self.drawn += count
        return _mix(self.state + counter * _GOLDEN_GAMMA)


def seeded_noise(source: Tensor, seed: Tensor | None) -> Noise:
    """Return noise for the clips of a batch (B, ...), from their seeds (B,) or else from PyTorch's generator."""
    if seed is not None:
        return ClipNoise(seed)
    return lambda count: torch.rand(len(source), count, device=source.device)


def cloned_noise(noise: Noise, clones: int) -> Noise:
    """Return noise for several masks of each clip, (B x clones, count), clip by clip."""
    return lambda count: noise(clones * count).view(-1, count)


def seeded_normal(source: Tensor, seed: Tensor | None, count: int) -> Tensor:
    """Draw ``count`` numbers from N(0, 1) for every clip of a batch (B, ...): (B, count), float32.

    They come from the clips' seeds (B,), independently of :func:`seeded_noise`, or else from PyTorch's generator.
    Seeded ones are the 2^16 quantiles of the distribution, four from each number of the generator, whose cost is that
    of a few passes over the result.
    """
    if seed is None:
        return torch.randn(len(source), count, device=source.device)
    noise = ClipNoise(~seed)
    bits = noise.bits(-(-count * _QUANTILE_BITS // 64)).view(torch.int16)[:, :count]
    quantiles = _normal_quantiles(source.device)
    return quantiles[bits.int() + len(quantiles) // 2]


def check_mask(mask: Tensor, patches: Tensor) -> None:
    """Refuse a mask that does not fit the patches (B, L, P).

    Raises:
        ValueError: the mask is not (B, L).
    """
    if mask.shape != patches.shape[:2]:
        raise ValueError(f"the mask must be (B, L) = {tuple(patches.shape[:2])}, not {tuple(mask.shape)}")


@dataclass(frozen=True)
class Masking(ABC):
    """Masking strategy. Its fields are its parameters, under the names that recipes use.

    Raises:
        ValueError: a ratio is outside [0, 1).
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("mask_ratio") and not 0 <= value < 1:
                raise ValueError(f"{field.name} must be at least 0 and below 1, not {value}")

    @abstractmethod
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """Draw a mask (B, L), True = hidden, for a time-major grid of L = time x frequency tokens.

        Args:
            noise: source of the random numbers.
            grid: number of tokens in time and frequency.
            padding_mask: (B, L), True = beyond the clip's end, in whole time steps; None if all clips fill the grid.
        """

    @abstractmethod
    def num_visible(self, grid: Size2d) -> int:
        """Count the visible tokens of a clip that fills the grid; a shorter clip has at most as many."""

    @property
    @abstractmethod
    def hidden_share(self) -> str:
        """Hidden share in words."""


@dataclass(frozen=True)
class RatioMasking(Masking):
    """Base of the strategies that hide a share of something.

    Attributes:
        mask_ratio: hidden share.
    """

    mask_ratio: float = 0.75

    @property
    @override
    def hidden_share(self) -> str:
        return f"{self.mask_ratio:.0%}"


@dataclass(frozen=True)
class RankedMasking(RatioMasking):
    """Base of the strategies that rank tokens and keep the ``int(L * (1 - mask_ratio))`` of lowest rank visible."""

    @abstractmethod
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        """Rank the tokens (B, L); the arguments are those of :meth:`Masking.__call__`."""

    @override
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        return _hide_all_but_smallest(self.ranks(noise, grid, padding_mask), self.mask_ratio, padding_mask)

    @override
    def num_visible(self, grid: Size2d) -> int:
        return _num_kept(grid[0] * grid[1], self.mask_ratio)


@dataclass(frozen=True)
class RandomMasking(RankedMasking):
    """Every token may be hidden, independently of its neighbours (Audio-MAE, section 3.1)."""

    @override
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        return noise(grid[0] * grid[1])


@dataclass(frozen=True)
class RandomBatchedMasking(RandomMasking):
    """Random masking with one draw, from the first clip's noise, for the whole batch (MAE-AST, section 2.2)."""

    @override
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        ranks = super().ranks(noise, grid, padding_mask)
        return ranks[:1].expand_as(ranks)


@dataclass(frozen=True)
class ChunkMasking(RankedMasking):
    """Square chunks of tokens are hidden, one after another, until exactly the ratio is hidden.

    The mask of SSAST's patches (Gong et al. 2022, algorithm 1) and of MAE-AST's. All chunks of a clip have the same
    side, drawn for the clip. The place of a chunk is uniform, including places where the edges of the spectrogram cut
    it, so every token is hidden equally often. The last chunk hides only as many tokens as are still missing.

    Attributes:
        sides: possible lengths of a chunk's side in tokens.
    """

    sides: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sides or min(self.sides) < 1:
            raise ValueError(f"sides of masked chunks are 1 token or more, not {self.sides}")

    @override
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        # Every place where a chunk may start has a random rank, and chunks come in the order of their ranks. So a token
        # is hidden at the smallest rank of the chunks that cover it, which is a minimum over a window.
        choice = (noise(1) * len(self.sides)).long()
        margin = max(self.sides) - 1  # starts before the first row or column
        starts = noise((grid[0] + margin) * (grid[1] + margin)).view(-1, grid[0] + margin, grid[1] + margin)
        hidden_at = torch.stack([_window_min_2d(starts, side, margin) for side in self.sides], dim=1)
        return -hidden_at.gather(1, choice[..., None].expand(-1, 1, hidden_at.shape[-1])).squeeze(1)


@dataclass(frozen=True)
class SpanMasking(RankedMasking):
    """Spans of tokens are hidden, one after another, until exactly the ratio is hidden (wav2vec 2.0, section 3.1).

    Spans lie inside the clip and may overlap. The last one hides only as many tokens as are still missing. This mask
    suits tokens that cover all bands, whose order is time.

    Attributes:
        mask_length: length of a span in tokens.
    """

    mask_length: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_length < 1:
            raise ValueError(f"a masked span is at least 1 token long, not {self.mask_length}")

    @override
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        starts = noise(grid[0] * grid[1])
        last_start = (_num_valid(starts, padding_mask) - self.mask_length).clamp(min=0)
        starts = starts.masked_fill(torch.arange(starts.shape[1], device=starts.device) > last_start, 1.0)
        # As for chunks, a token is hidden at the smallest rank of the spans that cover it.
        return F.max_pool1d(F.pad(-starts, (self.mask_length - 1, 0), value=-1.0), self.mask_length, stride=1)


@dataclass(frozen=True)
class InverseBlockMasking(RankedMasking):
    """Square blocks of tokens stay visible, and exactly the ratio is hidden (EAT, Chen et al. 2024; data2vec 2.0).

    The centres of the blocks are uniform over the tokens. Blocks may overlap, and the edges of the spectrogram cut
    them. Single tokens, drawn at random, are then hidden or shown until the number is right.

    Attributes:
        side: length of a block's side in tokens.
        surplus: share of the tokens that blocks would cover beyond the visible share if they never overlapped; at least
            one block is drawn.
    """

    side: int = 5
    surplus: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 1:
            raise ValueError(f"the side of a visible block is 1 token or more, not {self.side}")
        if not self.surplus >= 0:
            raise ValueError(f"the surplus of visible blocks must be at least 0, not {self.surplus}")

    @override
    def ranks(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None) -> Tensor:
        length = grid[0] * grid[1]
        # Each token brings two numbers, its own rank and a place for a block, so that noise follows the order of time.
        ranks, places = noise(2 * length).unflatten(1, (length, 2)).unbind(2)
        valid = _num_valid(ranks, padding_mask)
        blocks = (valid.double() * ((1 - self.mask_ratio + self.surplus) / self.side**2)).long().clamp(min=1)
        blocks = blocks.minimum(valid)  # a block a place, with padding as without
        drawn = torch.arange(length, device=ranks.device) < blocks
        centres = torch.zeros_like(ranks).scatter_add_(1, (places * valid).long(), drawn.to(ranks.dtype))
        after = self.side // 2
        before = self.side - 1 - after
        padded = F.pad(centres.unflatten(1, grid), (before, after, before, after))
        covered = F.max_pool2d(padded, self.side, stride=1).flatten(1) > 0
        return ranks + ~covered


@dataclass(frozen=True)
class TimeMasking(RatioMasking):
    """Whole time steps are hidden, in all bands (Audio-MAE, section 3.1)."""

    @override
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        padded_steps = None if padding_mask is None else padding_mask.unflatten(1, grid)[:, :, 0]
        steps = _hide_all_but_smallest(noise(grid[0]), self.mask_ratio, padded_steps)
        return steps.repeat_interleave(grid[1], dim=1)

    @override
    def num_visible(self, grid: Size2d) -> int:
        return _num_kept(grid[0], self.mask_ratio) * grid[1]


@dataclass(frozen=True)
class FrequencyMasking(RatioMasking):
    """Whole frequency bands are hidden, at all times (Audio-MAE, section 3.1)."""

    @override
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        hidden = _hide_all_but_smallest(noise(grid[1]), self.mask_ratio).repeat(1, grid[0])
        return hidden if padding_mask is None else hidden & ~padding_mask

    @override
    def num_visible(self, grid: Size2d) -> int:
        return grid[0] * _num_kept(grid[1], self.mask_ratio)


@dataclass(frozen=True)
class TimeFrequencyMasking(Masking):
    """Time steps and frequency bands are hidden; a token is visible if both its row and its column are.

    The mask of Audio-MAE's fine-tuning (section 4.2: 0.3 and 0.3) and, with larger ratios, one of its pretraining
    masks. The noise of the time steps is drawn first.
    """

    mask_ratio_time: float = 0.6
    mask_ratio_frequency: float = 0.5

    @override
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        time = TimeMasking(self.mask_ratio_time)(noise, grid, padding_mask)
        return time | FrequencyMasking(self.mask_ratio_frequency)(noise, grid, padding_mask)

    @override
    def num_visible(self, grid: Size2d) -> int:
        return _num_kept(grid[0], self.mask_ratio_time) * _num_kept(grid[1], self.mask_ratio_frequency)

    @property
    @override
    def hidden_share(self) -> str:
        return f"{self.mask_ratio_time:.0%} of the time steps and {self.mask_ratio_frequency:.0%} of the bands"


MASKINGS: dict[str, type[Masking]] = {
    "random": RandomMasking,
    "time": TimeMasking,
    "frequency": FrequencyMasking,
    "time_frequency": TimeFrequencyMasking,
    "random_batched": RandomBatchedMasking,
    "chunk": ChunkMasking,
    "span": SpanMasking,
    "cluster": ChunkMasking,  # SSAST's name for it
    "inverse_block": InverseBlockMasking,
}
"""Strategies by name."""


def build_masking(name: str, settings: Mapping[str, object], options: Mapping[str, object] | None = None) -> Masking:
    """Build a strategy.

    Args:
        name: key of :data:`MASKINGS`.
        settings: values by name; only the strategy's parameters count.
        options: further values by name, which replace *settings*; each must be a parameter of the strategy.

    Raises:
        ValueError: no strategy has that name, an option is unknown, or a parameter is out of range.
    """
    if name not in MASKINGS:
        raise ValueError(f"no masking strategy is called {name!r}; there are: {', '.join(MASKINGS)}")
    parameters = [field.name for field in fields(MASKINGS[name])]
    unknown = [option for option in options or {} if option not in parameters]
    if unknown:
        raise ValueError(f"masking {name} has no {', '.join(unknown)}; its parameters are {', '.join(parameters)}")
    values = {key: value for key, value in {**settings, **(options or {})}.items() if key in parameters}
    return MASKINGS[name](**values)


def hide(
    masking: Masking, patches: Tensor, grid: Size2d, noise: Noise, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a mask (B, L), True = hidden, and the positions (B, K) of the visible ones of the patches (B, L, P).

    Args:
        masking: strategy that draws the mask unless it is given.
        patches: the patches.
        grid: their number in time and frequency, L in total.
        noise: source of the random numbers.
        mask: given mask, which leaves the same number of tokens visible in every clip.

    Raises:
        ValueError: the given mask is not (B, L), or the clips have different numbers of visible patches.
    """
    if mask is None:
        mask = masking(noise, grid)
        return mask, visible_ids(mask, masking.num_visible(grid))
    check_mask(mask, patches)
    return mask, visible_ids(mask)


def visible_ids(mask: Tensor, count: int | None = None) -> Tensor:
    """Return the positions (B, K) of the visible tokens of a mask (B, L), in order.

    Args:
        mask: True = hidden.
        count: K; counted if None, which makes the CPU wait for a GPU.

    Raises:
        ValueError: the clips have different numbers of visible tokens, which do not fit one tensor.
    """
    if count is None:
        visible = (~mask).sum(1).tolist()
        count = visible[0]
        if len(set(visible)) > 1:
            raise ValueError(
                f"all masks of a batch must leave the same number of tokens visible; these leave {visible}"
            )
    return torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, :count]


def gather_ids(mask: Tensor, padding: Tensor | None, count: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the positions (B, K) of the visible tokens of clips with different numbers of them.

    A clip with fewer than K visible tokens fills its places with other tokens.

    Args:
        mask: (B, L), True = hidden.
        padding: (B, L), True = beyond the clip's end, so neither hidden nor visible; None without padding.
        count: K, at least the largest number; counted if None, which makes the CPU wait for a GPU.

    Returns:
        Positions, and (B, K), True where a place holds no visible token; None if every place holds one.
    """
    away = mask if padding is None else mask | padding
    if count is None:
        of_clips = (~away).sum(1)
        count = max(1, int(of_clips.max()))
        filled = bool((of_clips == count).all())
    else:
        filled = padding is None
    ids = visible_ids(away, count)
    return ids, None if filled else away.gather(1, ids)


def attention_padding(padding_mask: Tensor | None) -> Tensor | None:
    """Return the padding mask (B, N) for attention, in which a clip of nothing but padding attends to all tokens."""
    return None if padding_mask is None else padding_mask & ~padding_mask.all(dim=1, keepdim=True)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take the tokens (B, K, D) of (B, L, D) at the positions ``ids`` (B, K)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def random_spans(lengths: Tensor, size: int, share: float, span: int) -> Tensor:
    """Draw the spans that fine-tuning hides (wav2vec 2.0, Baevski et al. 2020, section 3.1).

    A row gets ``share * length / span`` spans, rounded at random. They lie inside the row and may overlap, so they hide
    less than the share. A span is never longer than half the row.

    Args:
        lengths: (B,) int64, valid places of each row.
        size: places of a row, L.
        share: of the places, counting those of several spans several times.
        span: places of a span.

    Returns:
        (B, L) bool, True = hidden.
    """
    spans = (lengths // 2).clamp(min=1, max=span)
    noise = torch.rand(len(lengths), size, device=lengths.device)
    places = torch.arange(size, device=lengths.device)
    noise = noise.masked_fill(places > (lengths - spans)[:, None], torch.inf)
    count = (share * lengths / spans + torch.rand(len(lengths), device=lengths.device)).long()
    count = count.clamp(max=lengths - spans + 1).where(lengths > 1, 0)
    started = (noise.argsort(dim=1).argsort(dim=1) < count[:, None]).long().cumsum(dim=1)
    before = started.gather(1, (places - spans[:, None]).clamp(min=0))
    return started > before.where(places >= spans[:, None], 0)


def _num_kept(length: int, ratio: float) -> int:
    return max(1, int(length * (1 - ratio)))


def _hide_all_but_smallest(values: Tensor, ratio: float, padding_mask: Tensor | None = None) -> Tensor:
    """Return the mask (B, L) that leaves the :func:`_num_kept` smallest values of every clip's valid tokens visible."""
    if padding_mask is None:
        padding_mask = torch.zeros_like(values, dtype=torch.bool)
    order = values.masked_fill(padding_mask, torch.inf).argsort(dim=1, stable=True)
    # In float64, like Python's floats, so that the number is that of :func:`_num_kept`.
    kept = (_num_valid(values, padding_mask).double() * (1 - ratio)).long().clamp(min=1)
    hidden = torch.arange(values.shape[1], device=values.device) >= kept
    return torch.zeros_like(padding_mask).scatter_(1, order, hidden) & ~padding_mask


def _num_valid(values: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Count the valid tokens of every clip, (B, 1), among values (B, L)."""
    if padding_mask is None:
        return torch.full((len(values), 1), values.shape[1], device=values.device)
    return (~padding_mask).sum(1, keepdim=True)


def _window_min_2d(values: Tensor, side: int, margin: int) -> Tensor:
    """Return the smallest value of the square windows that end at each token.

    Args:
        values: (B, margin + time, margin + frequency); token (0, 0) is at (margin, margin).
        side: length of a window's side, at most margin + 1.
        margin: rows and columns before the grid.

    Returns:
        (B, time * frequency).
    """
    skipped = margin + 1 - side
    return -F.max_pool2d(-values[:, skipped:, skipped:], side, stride=1).flatten(1)


@functools.cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """Return the middles of 2^16 equally probable parts of N(0, 1), in order, float32."""
    with torch.inference_mode(False):  # training must be able to use a table made during inference
        probabilities = (torch.arange(2**_QUANTILE_BITS, dtype=torch.float64) + 0.5) / 2**_QUANTILE_BITS
        return torch.special.ndtri(probabilities).float().to(device)


def _mix(value: Tensor) -> Tensor:
    """Apply splitmix64's finaliser (Steele et al. 2014); int64 products wrap as it needs."""
    value = (value ^ _shift_right(value, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    value = (value ^ _shift_right(value, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift logically; int64's own shift copies the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
