"""``amae results``: the results of the runs of a sweep or a cross-validation, their mean and standard deviation."""

from __future__ import annotations

import argparse
from pathlib import Path

from amae_plugin.evaluation.sweep import summarize


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``results``."""
    parser = subparsers.add_parser("results", help="validation results of a sweep's runs, with mean and std")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the sweep; its subfolders are the runs")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    print(summarize(args.folder))
    return 0
