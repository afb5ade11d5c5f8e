"""Which tokens are hidden: one class a strategy, chosen by name.

A strategy turns random numbers into a mask (B, L), True = hidden, over a time-major grid. Every clip of a batch gets
exactly the same number of visible tokens, so that they can be gathered into one tensor. Everything is vectorised and
runs on the device of the noise; no strategy loops over clips or tokens.
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


class Masking(ABC):
    """A masking strategy."""

    @abstractmethod
    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """Mask (B, L), True = hidden, for a time-major grid of L = time x frequency tokens."""

    @abstractmethod
    def num_visible(self, grid: Size2d) -> int:
        """How many tokens of each clip stay visible."""


class RandomMasking(Masking):
    """Unstructured: every token may be hidden, ``int(L * (1 - ratio))`` stay visible (Audio-MAE, section 3.1)."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """See :meth:`Masking.__call__`."""
        return _hide_all_but(noise, grid[0] * grid[1], self.ratio)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0] * grid[1], self.ratio)


class TimeMasking(Masking):
    """Whole time steps are hidden, in all bands."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """See :meth:`Masking.__call__`."""
        hidden = _hide_all_but(noise, grid[0], self.ratio)
        return hidden[:, :, None].expand(-1, -1, grid[1]).flatten(1)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0], self.ratio) * grid[1]


class FrequencyMasking(Masking):
    """Whole frequency bands are hidden, at all times."""

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """See :meth:`Masking.__call__`."""
        hidden = _hide_all_but(noise, grid[1], self.ratio)
        return hidden[:, None, :].expand(-1, grid[0], -1).flatten(1)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return grid[0] * _num_kept(grid[1], self.ratio)


class TimeFrequencyMasking(Masking):
    """Time steps and frequency bands are hidden: a token is visible if both its row and its column are.

    Audio-MAE's fine-tuning mask (section 4.2: 0.3 and 0.3) and, with larger ratios, one of its pretraining masks. The
    noise of the time steps is drawn first.
    """

    def __init__(self, time_ratio: float, frequency_ratio: float):
        self.time_ratio = _checked(time_ratio)
        self.frequency_ratio = _checked(frequency_ratio)

    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """See :meth:`Masking.__call__`."""
        time = _hide_all_but(noise, grid[0], self.time_ratio)
        frequency = _hide_all_but(noise, grid[1], self.frequency_ratio)
        return (time[:, :, None] | frequency[:, None, :]).flatten(1)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0], self.time_ratio) * _num_kept(grid[1], self.frequency_ratio)


class ClusterMasking(Masking):
    """Squares of 3 to 5 tokens a side until enough tokens are hidden (SSAST, Gong et al. 2022, algorithm 1).

    The side is drawn once a clip, the squares' places one after the other, every place equally likely; the square that
    would hide too many is hidden in part. A square may reach over the edge of the grid, which cuts it off there, so
    that a token at the edge is as likely to lie in a square as any other.
    """

    SIDES = (3, 4, 5)

    def __init__(self, ratio: float):
        self.ratio = _checked(ratio)

    def __call__(self, noise: Noise, grid: Size2d) -> Tensor:
        """See :meth:`Masking.__call__`."""
        widest = self.SIDES[-1]
        side = (noise(1) * len(self.SIDES)).long()
        # Every place has a random time, and a token is hidden at the earliest time of the squares that it lies in:
        # placing squares one after the other in random order comes to the same, without the loop. A place is the first
        # row and column of its square, which begin up to a side before the grid.
        times = noise((grid[0] + widest - 1) * (grid[1] + widest - 1)).view(
            -1, grid[0] + widest - 1, grid[1] + widest - 1
        )
        hidden_at = torch.stack(
            [-F.max_pool2d(-times[:, widest - length :, widest - length :], length, stride=1) for length in self.SIDES],
            dim=1,
        ).flatten(2)
        hidden_at = hidden_at.gather(1, side[:, :, None].expand(-1, -1, grid[0] * grid[1]))[:, 0]
        last = (-hidden_at).argsort(dim=1, stable=True)[:, : self.num_visible(grid)]
        return torch.ones_like(hidden_at, dtype=torch.bool).scatter_(1, last, False)

    def num_visible(self, grid: Size2d) -> int:
        """See :meth:`Masking.num_visible`."""
        return _num_kept(grid[0] * grid[1], self.ratio)


def build_masking(name: str, ratio: float, time_ratio: float, frequency_ratio: float) -> Masking:
    """The strategy of that name: ``random``, ``time``, ``frequency``, ``cluster`` (by ``ratio``) or ``time_frequency``.

    Raises:
        ValueError: no strategy has that name, or a ratio is outside [0, 1).
    """
    builders: dict[str, Callable[[], Masking]] = {
        "random": lambda: RandomMasking(ratio),
        "time": lambda: TimeMasking(ratio),
        "frequency": lambda: FrequencyMasking(ratio),
        "time_frequency": lambda: TimeFrequencyMasking(time_ratio, frequency_ratio),
        "cluster": lambda: ClusterMasking(ratio),
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


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B, L, D) at the positions ``ids`` (B, K): (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def _num_kept(length: int, ratio: float) -> int:
    return max(1, int(length * (1 - ratio)))


def _hide_all_but(noise: Noise, length: int, ratio: float) -> Tensor:
    """Hide all but the :func:`_num_kept` smallest of ``length`` random numbers."""
    values = noise(length)
    hidden = torch.ones_like(values, dtype=torch.bool)
    return hidden.scatter_(1, values.argsort(dim=1, stable=True)[:, : _num_kept(length, ratio)], False)


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
