"""Progress bars, which are for a terminal alone: a file or a pipe gets none."""

from typing import Any

from tqdm import tqdm as _tqdm


class tqdm(_tqdm):  # noqa: N801
    """tqdm's bar, on a terminal only."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "disable": options.get("disable") or None})
