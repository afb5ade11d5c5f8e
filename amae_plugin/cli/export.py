"""``amae export``: a checkpoint in forms that other tools load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.interop.export import FORMATS, export

_DESCRIPTION = """
Writes the encoder of a checkpoint, and of a classifier its head, as timm's Vision Transformer (model.safetensors and
config.json, which timm.create_model loads strictly) and as ONNX (model.onnx, for any batch size), checks that they
compute what the checkpoint computes, and writes a model card beside them (README.md) that tells what the model is and
how it is loaded.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export``."""
    parser = subparsers.add_parser(
        "export", help="a checkpoint as timm's Vision Transformer and as ONNX", description=_DESCRIPTION
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of a model of this plugin")
    parser.add_argument("folder", type=Path, metavar="DIR", help="new, or of an earlier export")
    parser.add_argument(
        "--format", nargs="+", choices=tuple(FORMATS), metavar="FORMAT", help=f"{', '.join(FORMATS)} (all that fit)"
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
    # A format that was asked for by name and is not there is a failure, one of all that there are is none.
    return 1 if args.format and exported.refused else 0
