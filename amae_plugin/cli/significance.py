"""Tell whether two classifiers differ by more than chance, from their predictions on the same clips.

Takes the predictions.csv that amae evaluate wrote for each of them, and prints how often which of them is right, with
the p-value of McNemar's exact test.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    for name in ("first", "second"):
        parser.add_argument(
            name, type=Path, metavar="FILE", help=f"take this predictions.csv, of the {name} classifier"
        )


def run(args: argparse.Namespace) -> None:
    """Print the comparison."""
    from amae_plugin.evaluation.paired import compare_predictions

    print(compare_predictions(args.first, args.second).summary)
