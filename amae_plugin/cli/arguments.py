"""Command-line arguments: their types, and those that several commands have."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def natural(text: str) -> int:
    """A whole number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {number}")
    return number


def above_zero(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Add what the commands have that put audio files through a model: the two, and how it is done."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of a model of this plugin")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="audio files, or folders that are searched for them"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="windows at a time (%(default)s)")
    parser.add_argument(
        "--workers", type=natural, default=os.cpu_count(), metavar="N", help="processes that decode (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
