"""``amae compare``: the systems on equal data, pretrained for equal time and fine-tuned for equal updates."""

from __future__ import annotations

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import positive
from amae_plugin.runs.comparison import CONTESTANTS, Comparison, compare, markdown

_DESCRIPTION = """
Pretrains every system with its small recipe for the same wall-clock time on one manifest, fine-tunes each on one
labelled manifest, and writes comparison.json, comparison.md and comparison.png. The learning rate of pretraining
follows the clock, so that each system makes as many updates as fit. Run again, it goes on where it was.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare``."""
    parser = subparsers.add_parser(
        "compare", help="all systems, pretrained and fine-tuned on equal data", description=_DESCRIPTION
    )
    parser.add_argument("--pretrain", type=Path, required=True, metavar="DIR", help="manifests train, valid")
    parser.add_argument("--fine-tune", type=Path, required=True, metavar="DIR", help="labelled: train, valid, test")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for everything")
    parser.add_argument("--minutes", type=float, default=Comparison.minutes, help="of pretraining (%(default)s)")
    parser.add_argument("--updates", type=positive, default=Comparison.updates, help="of fine-tuning (%(default)s)")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=Comparison.fractions, help="of the labels (%(default)s)"
    )
    parser.add_argument(
        "--systems", nargs="+", default=Comparison.systems, help=f"of {', '.join(CONTESTANTS)} (all of them)"
    )
    parser.add_argument("--config-dir", type=Path, default=Path("config"), metavar="DIR", help="recipes (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the pretraining recipes")
    parser.add_argument(
        "--set-fine-tuning", nargs="+", default=[], metavar="KEY=VALUE", help="change the fine-tuning recipe"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    comparison = Comparison(
        pretraining=args.pretrain,
        fine_tuning=args.fine_tune,
        root=args.out,
        config_dir=args.config_dir,
        minutes=args.minutes,
        updates=args.updates,
        fractions=args.fractions,
        systems=args.systems,
        overrides=args.set,
        fine_tuning_overrides=args.set_fine_tuning,
    )
    results = compare(comparison)
    print(markdown(results, comparison))
    print(f"comparison.json, comparison.md and comparison.png are in {args.out}")
    return 0
