"""``amae export``: a checkpoint in formats that other tools load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.interop.export import FORMATS, export

_DESCRIPTION = """
Writes the encoder of a checkpoint, with the head of a classifier, as timm's Vision Transformer (model.safetensors and
config.json, which timm.create_model loads strictly) and as ONNX (model.onnx, for any batch size). Checks that both
compute what the checkpoint computes. Adds a model card (README.md), which describes the model and how to load it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export``."""
    parser = subparsers.add_parser(
        "export", help="export a checkpoint to timm's Vision Transformer and to ONNX", description=_DESCRIPTION
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of this plugin")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write, new or of an earlier export")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, metavar="FORMAT", help=f"{', '.join(FORMATS)} (default: all that fit)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    checkpoint = Checkpoint.read(args.checkpoint)
    exported = export(checkpoint, args.folder, args.format or tuple(FORMATS))
    for name, difference in exported.differences.items():
        print(f"{name}: computes what the checkpoint does, to {difference:.1e}")
    for name, reason in exported.refused.items():
        print(f"no {name}: {reason}", file=sys.stderr)
    print(f"written: {', '.join(str(path) for path in exported.files)}")
    # Without --format, a format that does not fit the model is no failure.
    return 1 if args.format and exported.refused else 0
