"""Commands that put audio through a model: their common arguments, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.cli.arguments import add_workers, device, positive
from amae_plugin.cli.choices import EMBEDDINGS
from amae_plugin.errors import UserError, printable

if TYPE_CHECKING:
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.inference.clips import ClipFiles


def add_model(parser: argparse.ArgumentParser, batch_size: int = 16, unit: str = "windows") -> None:
    """Add the checkpoint and how clips go through it, a number of *unit* at a time."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="take this checkpoint, of this plugin")
    add(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"process this many {unit} at a time (default: %(default)s)",
    )
    add_workers(parser, "decode")
    add(
        "--device",
        type=device,
        default="auto",
        metavar="DEVICE",
        help="compute on this: auto, cpu, cuda or cuda:N (default: %(default)s)",
    )


def add_clips(parser: argparse.ArgumentParser, text: str = "take this audio file, or those of this folder") -> None:
    """Add the checkpoint, the audio files, which *text* describes, and how they are processed."""
    add_model(parser)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=text)


def add_pooling(parser: argparse.ArgumentParser) -> None:
    """Add how the tokens of a clip become its features."""
    text = (
        "describe a clip by this mean of its tokens: the system's own, that of all tokens, that of the time steps with "
        "their bands side by side, or that of the class tokens (default: %(default)s)"
    )
    parser.add_argument("--pooling", choices=EMBEDDINGS, default="mean", help=text)


def results_folder(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's run; a checkpoint may have left it."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def tell_skipped(skipped: Mapping[str, str]) -> None:
    """List the clips of a manifest that were left out, with the reasons, on standard error."""
    if skipped:
        listed = "".join(f"\n  {printable(path)}: {reason}" for path, reason in skipped.items())
        print(f"left out, as they cannot be decoded: {len(skipped):,} clips{listed}", file=sys.stderr)


def tell_sound_alone(checkpoint: Checkpoint, remedy: str = "") -> None:
    """Say on standard error that a model of sound and picture is given the sound alone; *remedy* ends the sentence."""
    if "image" in checkpoint.modalities:
        print(f"{checkpoint.path}: takes sound and picture, and is given the sound alone{remedy}", file=sys.stderr)


def conclude(clips: ClipFiles) -> int:
    """List the files that were skipped on standard error.

    Returns:
        The exit code of the command: 0, or 1 if any file was skipped.

    Raises:
        UserError: no file could be used.
    """
    if not clips.skipped:
        return 0
    lines = [f"{printable(name)}: {printable(reason)}" for name, reason in clips.skipped.items()]
    if clips.skipped.keys() >= set(map(str, clips.names)):
        raise UserError(f"cannot use {lines[0]}" if len(lines) == 1 else "\n  ".join(["cannot use any of", *lines]))
    print("\n  ".join([f"left out, as they cannot be used: {len(lines):,}", *lines]), file=sys.stderr)
    return 1
