"""Commands that put audio files through a model: their common arguments, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from amae_plugin.cli.arguments import natural, positive
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import ClipFiles


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the audio files, and how they are processed."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of this plugin")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="audio file, or folder to search for them")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="windows at a time (%(default)s)")
    parser.add_argument(
        "--workers", type=natural, default=os.cpu_count(), metavar="N", help="processes that decode (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")


def conclude(clips: ClipFiles) -> int:
    """List the files that were skipped on standard error.

    Returns:
        The exit code of the command: 0, or 1 if any file was skipped.

    Raises:
        UserError: no file could be used.
    """
    if not clips.skipped:
        return 0
    lines = [f"{name}: {reason}" for name, reason in clips.skipped.items()]
    if clips.skipped.keys() >= set(map(str, clips.names)):
        raise UserError(f"cannot use {lines[0]}" if len(lines) == 1 else "\n  ".join(["cannot use any of", *lines]))
    print("\n  ".join([f"left out, as they cannot be used: {len(lines):,}", *lines]), file=sys.stderr)
    return 1
