"""Print the results of the runs of a sweep or a cross-validation, their mean and standard deviation."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the sweep; its subfolders are the runs")


def run(args: argparse.Namespace) -> None:
    """Print the results."""
    from amae_plugin.evaluation.sweep import summarize

    print(summarize(args.folder))
