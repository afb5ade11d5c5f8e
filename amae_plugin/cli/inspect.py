"""Describe a checkpoint."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="describe this checkpoint, of this plugin")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")


def run(args: argparse.Namespace) -> None:
    """Print the description."""
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.inspection import describe, summary

    facts = describe(Checkpoint.read(args.checkpoint))
    print(json.dumps(facts, indent=1) if args.json else summary(facts))
