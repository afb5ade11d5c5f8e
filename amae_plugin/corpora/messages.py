"""What messages name of a list that may be long."""

from collections.abc import Sequence

SHOWN = 10
"""Names, or reasons, in a message."""


def first_of(names: Sequence[str]) -> str:
    """Join the first names of a list, with dots where there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
