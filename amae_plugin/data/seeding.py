"""One seed a clip and epoch, from which everything random about that clip is drawn."""

from __future__ import annotations

_MASK64 = (1 << 64) - 1


def clip_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of one clip in one epoch: a well-mixed integer in [0, 2**63).

    Depends on nothing else, so a run gives the same crops, augmentations and masks whatever the number of workers and
    ranks, and after it was resumed. Any integers are accepted, negative ones too (taken modulo 2**64).

    Each of the three numbers goes through the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014), so that neighbouring clips and epochs have unrelated seeds.
    """
    state = 0
    for number in (seed, epoch, index):
        state = _mix((state ^ (number & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64)
    return state >> 1  # fits torch's and NumPy's int64


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK64
    return z ^ (z >> 31)
