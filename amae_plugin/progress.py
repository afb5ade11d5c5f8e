"""Progress bars, which are for a terminal alone: a file or a pipe gets none. Long work in threads has one."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm as _tqdm

_SHARE = 4096  # values that wait for a thread at a time, of which each takes two kilobytes

Given = TypeVar("Given")
Result = TypeVar("Result")


class tqdm(_tqdm):  # noqa: N801
    """tqdm's bar, on a terminal only."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "disable": options.get("disable") or None})


def map_in_threads(
    function: Callable[[Given], Result], values: Sequence[Given], workers: int | None = None, **bar: Any
) -> Iterator[tuple[Given, Result]]:
    """Apply a function to values in threads, with a progress bar; yield each value with its result, in order.

    Args:
        function: the function.
        values: what it is applied to.
        workers: number of threads; None leaves it to Python.
        bar: options of tqdm's bar.
    """
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(values), **bar) as shown:
        for first in range(0, len(values), _SHARE):
            share = values[first : first + _SHARE]
            for pair in zip(share, pool.map(function, share)):
                yield pair
                shown.update()
