"""Compare the systems on equal data, pretrained for equal time and fine-tuned for equal updates.

Pretrains every system with its small recipe for the same wall-clock time on one manifest, fine-tunes each on one
labelled manifest, and writes comparison.json, .md, .csv, .tex and a picture. The learning rate of pretraining follows
the clock, so that each system makes as many updates as fit. Beside fine-tuning, the table has the accuracy of a k-NN
and of a linear probe on the pretrained features.

While a system pretrains, a k-NN probes its features on clips of the labelled manifest, valid against train: before the
first update and eight times at equal intervals, which counts as time of pretraining. curves.csv, .tex and a picture
hold loss and probe of every system. --updates 0 draws these curves without any fine-tuning.

With several seeds, there are means and standard deviations. As many pretrainings run at a time as there are processors
(one, on a GPU). If one fails, the others go on. Run again, also with more seeds, the command continues where it
stopped.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from amae_plugin.cli.arguments import add_config_dir, add_formats, natural
from amae_plugin.cli.choices import CONTESTANTS
from amae_plugin.errors import UserError
from amae_plugin.runs.settings import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; each sets a field of :class:`Comparison`."""
    add, default = parser.add_argument, Comparison
    add("--pretrain", dest="pretraining", type=Path, required=True, metavar="DIR", help="manifests train, valid")
    add("--fine-tune", dest="fine_tuning", type=Path, required=True, metavar="DIR", help="labelled: train, valid, test")
    add("--out", dest="root", type=Path, required=True, metavar="DIR", help="folder for all results")
    add_config_dir(parser)
    add("--minutes", type=float, default=default.minutes, help="time of each pretraining (%(default)s)")
    add("--updates", type=natural, default=default.updates, help="length of a fine-tuning, 0: none (%(default)s)")
    add("--fractions", type=float, nargs="+", default=default.fractions, help="shares of the labels (1 and 0.1)")
    add("--systems", type=_contestant, nargs="+", default=default.systems, help="some of the systems, and AST (all)")
    add("--seeds", type=natural, nargs="+", default=default.seeds, help="seeds to train each with (1)")
    add_formats(parser)
    change, recipe = "KEY=VALUE", "change the fine-tuning recipe"
    add("--set", dest="overrides", nargs="+", default=[], metavar=change, help="change the pretraining recipes")
    add("--set-fine-tuning", dest="fine_tuning_overrides", nargs="+", default=[], metavar=change, help=recipe)


def _contestant(text: str) -> str:
    """Return the name of a contestant, whatever the case of its letters."""
    return next((name for name in CONTESTANTS if name.casefold() == text.casefold()), text)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate every contestant, and print the table of results."""
    comparison = Comparison(**{field.name: vars(args)[field.name] for field in fields(Comparison)})
    from amae_plugin.runs.comparison import compare, describe

    results, failures = compare(comparison)
    if results:
        print(f"{describe(results, comparison)}\n")
        print(f"comparison.json, .md, .csv, .tex, curves.csv, .tex and the pictures are in {args.root}")
    if failures:
        raise UserError(f"{len(failures)} failed, the rest is done: {'; '.join(failures)}")
