"""Find the picture that belongs to a sound, and the sound that belongs to a picture.

Searches among all pairs of a split with a checkpoint that was pretrained on pairs, and prints recall at 1, 5 and 10 in
both directions beside that of chance. Writes metrics.json, ranks.csv and index.html, one file that needs no network: it
shows and plays queries with the best hits.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import positive
from amae_plugin.cli.clips import add_model, results_folder, tell_skipped
from amae_plugin.errors import printable
from amae_plugin.files import replacing, try_place, writing

_PAGE = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model(parser, batch_size=64, unit="pairs")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="take the manifests of pairs in this folder")
    add("--split", default="test", metavar="NAME", help="search in the manifest of this name (default: %(default)s)")
    add(
        "--queries",
        type=positive,
        default=12,
        metavar="N",
        help="show this many queries a direction on the page (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the results there (default: retrieval/SPLIT in the folder of the run)",
    )
    add("--skip-bad-audio", action="store_true", help="leave out and list clips that cannot be decoded")


def run(args: argparse.Namespace) -> None:
    """Print the measures, and write all results and the page."""
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.evaluation.report import summary, write
    from amae_plugin.evaluation.retrieval import retrieve
    from amae_plugin.evaluation.scoring import Options
    from amae_plugin.evaluation.searches import prepare_searches
    from amae_plugin.visual.hits import render

    out = args.out or results_folder(args.checkpoint) / "retrieval" / args.split
    with writing(out):  # before work that would be lost if its results could not be written
        try_place(out / _PAGE)
    checkpoint = Checkpoint.read(args.checkpoint)
    names = ("batch_size", "workers", "device", "skip_bad_audio")
    result = retrieve(checkpoint, args.data, args.split, Options(**{name: vars(args)[name] for name in names}))
    tell_skipped(result.skipped)
    print(summary(result))
    written = [*write(result, out), out / _PAGE]
    facts = {
        "checkpoint": printable(str(args.checkpoint)),
        "split": printable(f"{args.data / args.split}.tsv"),
        **{what: f"{len(found):,}" for what, found in vars(result).items() if what in ("sounds", "pictures", "pairs")},
    }
    page = render(*prepare_searches(checkpoint, result, args.queries), facts, [result.table.header, *result.table.rows])
    with writing(out), replacing(out / _PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"\nwritten: {', '.join(map(str, written))}")
