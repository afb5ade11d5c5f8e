"""Types of command-line arguments."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from amae_plugin.errors import UserError
from amae_plugin.processes import available_cpus
from amae_plugin.recipe_files import recipe_folder

PICTURE_FORMATS = ("png", "pdf", "svg")

_MOST = 1_000_000_000  # of anything that is counted; far larger numbers overflow


def _whole_number_from(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {number}")
        if number > _MOST:
            raise argparse.ArgumentTypeError(f"must be at most {_MOST:,}, not {number}")
        return number

    return whole_number


natural, positive = _whole_number_from(0), _whole_number_from(1)
"""Types of whole numbers of 0 or more, and of 1 or more."""


def add_config_dir(parser: argparse._ActionsContainer, default: object = None) -> None:
    """Add ``--config-dir``; *default* replaces the folder that is used without it."""
    text = "take the recipes of this folder (default: config, or where there is none, the installed ones)"
    parser.add_argument("--config-dir", type=Path, default=default or recipe_folder(), metavar="DIR", help=text)


def add_workers(parser: argparse._ActionsContainer, does: str) -> None:
    """Add ``--workers``, the processes in which a command *does* something, such as ``decode``."""
    text = f"{does} in this many processes (default: %(default)s)"
    parser.add_argument("--workers", type=natural, default=available_cpus(), metavar="N", help=text)


def device(text: str) -> str:
    """Check the name of a device; whether the machine has it shows when it is used.

    Raises:
        UserError: no device can have that name.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UserError(f"device {text}: must be auto, cpu, cuda or cuda:N")
    return text


def from_zero(text: str) -> float:
    """Read a finite number of 0 or above."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return number


def above_zero(text: str) -> float:
    """Read a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add the formats and the width of the pictures that a command writes."""
    text = f"write the pictures in these formats, of {', '.join(PICTURE_FORMATS)} (default: png)"
    add = parser.add_argument
    add("--format", dest="formats", nargs="+", choices=PICTURE_FORMATS, default=["png"], metavar="FORMAT", help=text)
    text = "draw the pictures as wide as a paper's column (3.4 inches) or page (7 inches) (default: as they need)"
    add("--width", choices=("column", "page"), help=text)
