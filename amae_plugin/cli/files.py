"""What commands write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amae_plugin.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context of everything that writes to a path.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({error.strerror or error})") from None
