"""Write the manifests of a corpus."""

import argparse
import shlex
import sys
from pathlib import Path

from amae_plugin.cli.arguments import natural
from amae_plugin.corpora.corpus import Corpus, Layout
from amae_plugin.corpora.layouts import LAYOUTS
from amae_plugin.files import try_folder
from amae_plugin.recipe_files import recipe_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each layout."""
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")
    for layout in LAYOUTS.values():
        options = layouts.add_parser(layout.name, help=layout.help)
        layout.add_arguments(options)
        options.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the manifests")
        options.add_argument("--workers", type=natural, default=0, help="threads that read headers (0: one a core)")
        options.set_defaults(layout=layout)


def run(args: argparse.Namespace) -> None:
    """Write the manifests, and say what they hold and what comes next."""
    try_folder(args.out, "the manifests there")  # before headers are read, which takes long
    corpus = args.layout.build(**{name: value for name, value in vars(args).items() if name not in ("run", "layout")})
    for warning in corpus.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    (_report if len(corpus.runs) == 1 else _report_runs)(args.out.absolute(), corpus, args.layout)


def _report(out: Path, corpus: Corpus, layout: Layout) -> None:
    from amae_plugin.recipes import override

    print(corpus.summary)
    if corpus.classes:
        print(f"classes: {corpus.classes:,}, listed in {out / 'labels.txt'}")
    for kind, rate in corpus.summary.rates.items():
        print(f"{kind}: {corpus.units[kind]:,} units, listed in {out / f'dict.{kind}.txt'}; {rate:.1f} a second")
    print(f"manifests: {', '.join(str(out / f'{split}.tsv') for split in corpus.summary.clips)}")
    print("next, the mean and standard deviation that the training needs, then the training itself:")
    labels = [override("task.labels", kind) for kind in list(corpus.units)[:1]]
    settings = shlex.join([override("task.data", out), *labels, "task.mean=...", "task.std=..."])
    print(f"  {shlex.join(['amae', 'stats', str(out)])}")
    print(f"  {_train()} --config-name RECIPE {settings}")


def _report_runs(out: Path, corpus: Corpus, layout: Layout) -> None:
    from amae_plugin.recipes import override

    folders = [folder.absolute() for folder in corpus.runs]
    for folder, summary in corpus.runs.items():
        print(f"{folder.name}, files: {summary.size}")
    # Every run has the same files, divided in another way: the rest of one summary is true of all.
    print(corpus.summary.details)
    print(f"classes: {corpus.classes:,}, listed in the labels.txt of each fold")
    print(f"manifests: {', '.join(f'{split}.tsv' for split in corpus.summary.clips)} in each of")
    print(*(f"  {folder}" for folder in folders), sep="\n")
    print("next, the mean and standard deviation (those of one fold do for all), then a training run a fold:")
    recipe, data = (layout.sweep, [out]) if layout.sweep else ("RECIPE", folders)
    settings = shlex.join([override("task.data", *data), "task.mean=...", "task.std=..."])
    print(f"  {shlex.join(['amae', 'stats', str(folders[0])])}")
    print(f"  {_train('-m')} --config-name {recipe} {settings}")


def _train(*options: str) -> str:
    return shlex.join(["fairseq-hydra-train", *options, "--config-dir", str(recipe_folder())])
