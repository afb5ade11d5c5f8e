"""Print the results of the runs of a sweep or a cross-validation, their mean and standard deviation."""

import argparse
from pathlib import Path

from amae_plugin.evaluation.sweep import summarize


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the sweep; its subfolders are the runs")


def run(args: argparse.Namespace) -> None:
    """Print the results."""
    print(summarize(args.folder))
