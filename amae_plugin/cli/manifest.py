"""Write the manifests of a corpus."""

import argparse
import shlex
import sys
from pathlib import Path

from amae_plugin.cli.arguments import natural
from amae_plugin.corpora.corpus import Corpus, Layout
from amae_plugin.corpora.layouts import LAYOUTS
from amae_plugin.files import is_folder, try_folder
from amae_plugin.recipe_files import recipe_folder

_STATISTICS = ("task.mean=auto", "task.std=auto")
_FROM_SCRATCH = ("model.pretrained=null", "+model@model.encoder=amae_audio_mae_tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each layout."""
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")
    for layout in LAYOUTS.values():
        options = layouts.add_parser(layout.name, help=layout.help)
        layout.add_arguments(options)
        options.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="write the manifests to this folder"
        )
        workers = "read headers in this many threads (default: one a core)"
        options.add_argument("--workers", type=natural, default=0, metavar="N", help=workers)
        options.set_defaults(layout=layout)


def run(args: argparse.Namespace) -> None:
    """Write the manifests, and say what they hold and what comes next."""
    try_folder(args.out, "the manifests there")  # before headers are read, which takes long
    corpus = args.layout.build(**{name: value for name, value in vars(args).items() if name not in ("run", "layout")})
    for warning in corpus.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    (_report if len(corpus.runs) == 1 else _report_runs)(args.out.absolute(), corpus, args.layout)


def _report(out: Path, corpus: Corpus, layout: Layout) -> None:
    from amae_plugin.data.manifest import Manifest
    from amae_plugin.recipes import override

    print(corpus.summary)
    if corpus.classes:
        print(f"classes: {corpus.classes:,}, listed in {out / 'labels.txt'}")
    for kind, rate in corpus.summary.rates.items():
        print(f"{kind}: {corpus.units[kind]:,} units, listed in {out / f'dict.{kind}.txt'}; {rate:.1f} a second")
    print(f"manifests: {', '.join(str(out / f'{split}.tsv') for split in corpus.summary.clips)}")
    if not corpus.summary.clips.get("train"):
        return
    print("next, a training by small recipes; `amae recipes` lists the others:")
    has_pictures = Manifest.read(out / "train.tsv").has_pictures
    system = "mae_ast_frame" if corpus.units else "cav_mae" if has_pictures else "audio_mae"
    statistics = [] if corpus.units else _STATISTICS  # MAE-AST finds its own
    stages: dict[str, list[str]] = {"pretrain": []}
    if corpus.classes or corpus.units:
        stages["finetune"] = [override("task.labels", kind) for kind in list(corpus.units)[:1]]
    pretrained: list[str] = []
    for stage, labels in stages.items():
        recipe = f"{stage}_{system}_tiny"
        settings = [override("task.data", out), *labels, *statistics, *pretrained]
        if is_folder(Path("outputs", recipe)):  # an earlier run's, which the command would continue
            folder = Path("outputs", f"{recipe}_{out.name}")
            settings.append(override("hydra.run.dir", folder))
            pretrained = [override("model.pretrained", folder / "checkpoints" / "checkpoint_last.pt")]
        print(f"  {_train()} --config-name {recipe} {shlex.join(settings)}")


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
    print("next, a training run a fold; `amae recipes` lists the recipes:")
    own = [override("task.data", *folders), *_FROM_SCRATCH, *_STATISTICS]
    settings = [override("task.data", out)] if layout.sweep else own  # a sweep's recipe has its corpus's statistics
    recipe = layout.sweep or "finetune_audio_mae_tiny"
    print(f"  {_train('-m')} --config-name {recipe} {shlex.join(settings)}")


def _train(*options: str) -> str:
    return shlex.join(["fairseq-hydra-train", *options, "--config-dir", str(recipe_folder())])
