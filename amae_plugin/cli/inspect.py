"""``amae inspect``: a description of a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.inspection import describe, summary


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``inspect``."""
    parser = subparsers.add_parser("inspect", help="describe a checkpoint: model, input, training, measures")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of this plugin")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    facts = describe(Checkpoint.read(args.checkpoint))
    print(json.dumps(facts, indent=1) if args.json else summary(facts))
    return 0
