"""Which tokens are hidden: one class a strategy, chosen by name.

A strategy turns random numbers into a mask (B, L), True = hidden, over a time-major grid. A clip gets an exact number
of visible tokens, which depends on nothing but its number of valid ones, so that those of a batch can be gathered into
one tensor. Everything is vectorised and runs on the device of the noise; no strategy loops over clips or tokens.

Clips of a batch may end at different times. Tokens beyond the end, the padding, are never hidden. Since they come last
and noise is drawn in the order of time, a clip has the same mask however much padding follows it (not of
``time_frequency``, which draws for the bands after all time steps).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amae_plugin.modules.patching import Size2d

Noise = Callable[[int], Tensor]
"""Draws n uniform numbers in [0, 1) for every clip of the batch: (B, n); each call draws new ones."""

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer


class ClipNoise:
    """Uniform noise that depends on each clip's own seed only.

    A counter-based generator (the splitmix64 finaliser over seed and counter), so a clip has the same mask in any
    batch, on any rank and on any device, which makes runs comparable across numbers of devices and exactly resumable.

    Args:
        seed: one integer a clip (B,), int64; fixes device and batch size.
    """

    def __init__(self, seed: Tensor):
        self.state = _mix(seed.to(torch.int64))[:, None]
        self.drawn = 0

    def __call__(self, count: int) -> Tensor:
        """Next ``count`` numbers of every clip: (B, count), float32 in [0, 1)."""
        counter = torch.arange(self.drawn + 1, self.drawn + count + 1, device=self.state.device)
        self.drawn += count
        bits = _mix(self.state + counter * _GOLDEN_GAMMA)
        return _shift_right(bits, 40).float() * 2**-24


class GlobalNoise:
    """Uniform noise from PyTorch's global generator, for callers that have no seeds."""

    def __init__(self, batch: int, device: torch.device):
        self.batch = batch
        self.device = device

    def __call__(self, count: int) -> Tensor:
        """Next ``count`` numbers of every clip: (B, count), float32 in [0, 1)."""
        return torch.rand(self.batch, count, device=self.device)


def noise_of(source: Tensor, seed: Tensor | None) -> Noise:
    """Noise for the clips of a batch (B, ...): of their seeds (B,), or of PyTorch's generator if there are none."""
    return GlobalNoise(len(source), source.device) if seed is None else ClipNoise(seed)


def check_mask(mask: Tensor, patches: Tensor) -> None:
    """Refuse a given mask that does not fit the patches (B, L, P).

    Raises:
        ValueError: it is not (B, L).
    """
    if mask.shape != patches.shape[:2]:
        raise ValueError(f"the mask must be (B, L) = {tuple(patches.shape[:2])}, not {tuple(mask.shape)}")


class Masking(ABC):
    """A masking strategy."""

    @abstractmethod
    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """Mask (B, L), True = hidden, for a time-major grid of L = time x frequency tokens.

        Args:
            noise: source of the random numbers.
            grid: tokens in time and frequency.
            padding_mask: (B, L), True = beyond the clip's end, in whole time steps; None where all clips fill the grid.
        """

    @abstractmethod
    def num_visible(self, grid: Size2d) -> int:
        """How many tokens of each clip that fills the grid stay visible; of a shorter clip, no more than that."""


class RandomMasking(Masking):
    """Unstructured: every token may be hidden, ``int(L * (1 - ratio))`` stay visible (Audio-MAE, section 3.1)."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        return _hide_all_but_smallest(noise(grid[0] * grid[1]), self.ratio, padding_mask)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0] * grid[1], self.ratio)


class RandomBatchedMasking(RandomMasking):
    """Unstructured as :class:`RandomMasking`, but one draw, of the first clip's noise, is shared by the whole batch."""

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        values = noise(grid[0] * grid[1])
        return _hide_all_but_smallest(values[:1].expand_as(values), self.ratio, padding_mask)


class ChunkMasking(RandomMasking):
    """Square chunks of tokens are hidden, one after the other, until exactly the ratio is.

    The mask of SSAST's patches (Gong et al. 2022, algorithm 1: clusters), and after it of MAE-AST's. All chunks of a
    clip have one side, of 3 to 5 tokens, drawn for the clip. Where a chunk stands is uniform, over the edges of the
    spectrogram too, where it is cut, so that no token is hidden more often than another by its place. Of the last chunk
    only as many tokens are hidden as are still wanted.
    """

    sides = (3, 4, 5)

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        # Every place where a chunk may start has a random rank; chunks come in the order of their ranks, so a token is
        # hidden at the smallest rank of the chunks that cover it, a minimum over a window.
        choice = (noise(1) * len(self.sides)).long()
        margin = self.sides[-1] - 1  # starts before the first row or column
        ranks = noise((grid[0] + margin) * (grid[1] + margin)).view(-1, grid[0] + margin, grid[1] + margin)
        hidden_at = torch.stack([_window_min_2d(ranks, side, margin) for side in self.sides], dim=1)
        hidden_at = hidden_at.gather(1, choice[..., None].expand(-1, 1, hidden_at.shape[-1])).squeeze(1)
        return _hide_all_but_smallest(-hidden_at, self.ratio, padding_mask)


class SpanMasking(RandomMasking):
    """Spans of tokens are hidden, one after the other, until exactly the ratio is (wav2vec 2.0, section 3.1).

    Spans lie inside the clip and may overlap; of the last one only as many tokens are hidden as are still wanted. Meant
    for tokens that cover all bands, whose order is time.

    Raises:
        ValueError: the ratio is outside [0, 1), or a span has no token.
    """

    def __init__(self, ratio: float, length: int):
        super().__init__(ratio)
        if length < 1:
            raise ValueError(f"a masked span is at least 1 token long, not {length}")
        self.length = length

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        tokens = grid[0] * grid[1]
        ranks = noise(tokens)
        last_start = (_num_valid(ranks, padding_mask) - self.length).clamp(min=0)
        ranks = ranks.masked_fill(torch.arange(tokens, device=ranks.device) > last_start, 1.0)
        # As for chunks: a token is hidden at the smallest rank of the spans that cover it.
        hidden_at = -F.max_pool1d(F.pad(-ranks, (self.length - 1, 0), value=-1.0), self.length, stride=1)
        return _hide_all_but_smallest(-hidden_at, self.ratio, padding_mask)


class TimeMasking(Masking):
    """Whole time steps are hidden, in all bands."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        steps = _hide_all_but_smallest(noise(grid[0]), self.ratio, _padded_steps(padding_mask, grid))
        return steps.repeat_interleave(grid[1], dim=1)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0], self.ratio) * grid[1]


class FrequencyMasking(Masking):
    """Whole frequency bands are hidden, at all times."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        hidden = _hide_all_but_smallest(noise(grid[1]), self.ratio).repeat(1, grid[0])
        return hidden if padding_mask is None else hidden & ~padding_mask

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return grid[0] * _num_kept(grid[1], self.ratio)


class TimeFrequencyMasking(Masking):
    """Time steps and frequency bands are hidden: a token is visible if both its row and its column are.

    Audio-MAE's fine-tuning mask (section 4.2: 0.3 and 0.3) and, with larger ratios, one of its pretraining masks. The
    noise of the time steps is drawn first.
    """

    def __init__(self, time_ratio: float, frequency_ratio: float):
        self.time = TimeMasking(time_ratio)
        self.frequency = FrequencyMasking(frequency_ratio)

    def __call__(self, noise: Noise, grid: Size2d, padding_mask: Tensor | None = None) -> Tensor:
        """See :meth:`Masking.__call__`."""
        time = self.time(noise, grid, padding_mask)
        return time | self.frequency(noise, grid, padding_mask)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0], self.time.ratio) * _num_kept(grid[1], self.frequency.ratio)


def build_masking(name: str, ratio: float, time_ratio: float, frequency_ratio: float, span_length: int = 10) -> Masking:
    """The strategy of that name.

    Args:
        name: ``random``, ``random_batched``, ``chunk``, ``span``, ``time``, ``frequency`` or ``time_frequency``;
            ``cluster``, as SSAST calls it, is ``chunk``.
        ratio: share of the tokens that is hidden, for all but ``time_frequency``.
        time_ratio: share of the time steps, for ``time_frequency``.
        frequency_ratio: share of the bands, for ``time_frequency``.
        span_length: tokens of a span, for ``span``.

    Raises:
        ValueError: no strategy has that name, a ratio is outside [0, 1), or a span has no token.
    """
    builders: dict[str, Callable[[], Masking]] = {
        "random": lambda: RandomMasking(ratio),
        "time": lambda: TimeMasking(ratio),
        "frequency": lambda: FrequencyMasking(ratio),
        "time_frequency": lambda: TimeFrequencyMasking(time_ratio, frequency_ratio),
        "random_batched": lambda: RandomBatchedMasking(ratio),
        "chunk": lambda: ChunkMasking(ratio),
        "span": lambda: SpanMasking(ratio, span_length),
        "cluster": lambda: ChunkMasking(ratio),
    }
    if name not in builders:
        raise ValueError(f"no masking strategy is called {name!r}; there are: {', '.join(builders)}")
    return builders[name]()


def visible_ids(mask: Tensor, count: int | None = None) -> Tensor:
    """Positions (B, K) of the visible tokens of a mask (B, L), in order.

    Args:
        mask: True = hidden.
        count: K where it is known; else it is read from the mask, for which a GPU must wait.

    Raises:
        ValueError: the clips have different numbers of visible tokens, so they do not fit one tensor.
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
    """Positions (B, K) of the visible tokens of clips that may have different numbers of them.

    K is the largest number, or ``count``. Clips with fewer fill their places with other tokens.

    Args:
        mask: (B, L), True = hidden.
        padding: (B, L), True = beyond the clip's end, so neither hidden nor visible; None if nothing is.
        count: K where no clip has more; else it is read from the masks, for which a GPU must wait.

    Returns:
        The positions, and (B, K) True where a place holds no visible token; None if every place holds one.
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


def attendable(padding_mask: Tensor | None) -> Tensor | None:
    """The padding mask (B, N), except that a clip with nothing else attends to all: its attention stays defined."""
    return None if padding_mask is None else padding_mask & ~padding_mask.all(dim=1, keepdim=True)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B, L, D) at the positions ``ids`` (B, K): (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def _num_kept(length: int, ratio: float) -> int:
    return max(1, int(length * (1 - ratio)))


def _hide_all_but_smallest(values: Tensor, ratio: float, padding_mask: Tensor | None = None) -> Tensor:
    """Mask (B, L) that leaves the :func:`_num_kept` smallest values (B, L) of every clip's valid tokens visible."""
    tokens = values.shape[1]
    if padding_mask is None:
        order = values.argsort(dim=1, stable=True)
        return torch.ones_like(values, dtype=torch.bool).scatter_(1, order[:, : _num_kept(tokens, ratio)], False)
    order = values.masked_fill(padding_mask, torch.inf).argsort(dim=1, stable=True)
    # In float64, as Python's own floats are: the number must be the one that a batch without padding gives.
    kept = (_num_valid(values, padding_mask).double() * (1 - ratio)).long().clamp(min=1)
    hidden = torch.arange(tokens, device=values.device) >= kept
    return torch.zeros_like(padding_mask).scatter_(1, order, hidden) & ~padding_mask


def _num_valid(values: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Valid tokens of every clip (B, 1), of values (B, L)."""
    if padding_mask is None:
        return torch.full((len(values), 1), values.shape[1], device=values.device)
    return (~padding_mask).sum(1, keepdim=True)


def _padded_steps(padding_mask: Tensor | None, grid: Size2d) -> Tensor | None:
    """Padding of time steps (B, time) from that of tokens (B, L)."""
    return None if padding_mask is None else padding_mask.unflatten(1, grid)[:, :, 0]


def _window_min_2d(values: Tensor, side: int, margin: int) -> Tensor:
    """Smallest value of the square windows that end at each token.

    Args:
        values: (B, margin + time, margin + frequency); token (0, 0) is at (margin, margin).
        side: of the windows, at most margin + 1.
        margin: rows and columns before the grid.

    Returns:
        (B, time * frequency).
    """
    skipped = margin + 1 - side
    return -F.max_pool2d(-values[:, skipped:, skipped:], side, stride=1).flatten(1)


def _checked(ratio: float) -> float:
    if not 0 <= ratio < 1:
        raise ValueError(f"a mask ratio is at least 0 and below 1, not {ratio}")
    return ratio


def _mix(value: Tensor) -> Tensor:
    """Splitmix64's finaliser (Steele et al. 2014); int64 products wrap, which is what it needs."""
    value = (value ^ _shift_right(value, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    value = (value ^ _shift_right(value, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; int64's own shift copies the sign bit in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
