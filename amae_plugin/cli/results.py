"""Print the results of the runs of a sweep or a cross-validation, their mean and standard deviation."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="read the runs in the subfolders of this folder, a sweep's"
    )
    out = "write the table to this file as well, as its ending asks: .md, .csv or .tex (LaTeX, booktabs)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)


def run(args: argparse.Namespace) -> None:
    """Print the results."""
    from amae_plugin.evaluation.sweep import summarize

    table = summarize(args.folder)
    print(table.text())
    if args.out:
        print(f"\nwritten: {table.write(args.out)}")
