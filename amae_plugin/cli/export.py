"""Export a checkpoint to formats that other tools load.

Writes the encoder, with the head of a classifier, as timm's Vision Transformer (model.safetensors and config.json,
which timm.create_model loads strictly) and as ONNX (model.onnx, for any batch size), or with --format hf as a folder
that the Auto classes of transformers load. Checks that each computes what the checkpoint computes. Adds a model card
(README.md), which describes the model and how to load it.
"""

import argparse
import sys
from pathlib import Path

from amae_plugin.cli.choices import EXPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="export this checkpoint, of this plugin")
    add("folder", type=Path, metavar="DIR", help="write this folder, new or of an earlier export")
    formats = f"export to these, of {', '.join(EXPORTS)} (default: timm and onnx, as far as they fit)"
    add("--format", nargs="+", choices=EXPORTS, metavar="FORMAT", help=formats)


def run(args: argparse.Namespace) -> int:
    """Write the files, and say how far each computes what the checkpoint does."""
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.interop.export import TOGETHER, export

    exported = export(Checkpoint.read(args.checkpoint), args.folder, args.format or TOGETHER)
    for name, difference in exported.differences.items():
        print(f"{name}: computes what the checkpoint does, to {difference:.1e}")
    for name, reason in exported.refused.items():
        print(f"no {name}: {reason}", file=sys.stderr)
    print(f"written: {', '.join(map(str, exported.files))}")
    # Without --format, a format that does not fit the model is no failure.
    return 1 if args.format and exported.refused else 0
