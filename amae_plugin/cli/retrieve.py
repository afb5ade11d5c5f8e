"""Find the picture that belongs to a sound, and the sound that belongs to a picture.

Searches among all pairs of a split with a checkpoint that was pretrained on pairs, and prints recall at 1, 5 and 10 in
both directions beside that of chance. Writes metrics.json, ranks.csv and index.html, one file that needs no network: it
shows and plays queries with the best hits.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.arguments import positive
from amae_plugin.cli.clips import add_model, results_folder, tell_skipped
from amae_plugin.data.audio import Crop, load_clip
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import printable
from amae_plugin.evaluation.report import summary, write
from amae_plugin.evaluation.retrieval import PICTURE_TO_SOUND, SOUND_TO_PICTURE, Retrieval, retrieve
from amae_plugin.evaluation.scoring import Options, validation_dataset
from amae_plugin.files import replacing, try_place, writing
from amae_plugin.metrics.retrieval import Ranking
from amae_plugin.visual.hits import Hit, Medium, Search, picture, render, sound

_PAGE = "index.html"
_HITS = 5  # of a query on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model(parser, batch_size=64, unit="pairs")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder of manifests of pairs")
    add("--split", default="test", help="name of the manifest (%(default)s)")
    add("--queries", type=positive, default=12, metavar="N", help="queries a direction on the page (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="results (retrieval/<split> in the folder of the checkpoint's run)")
    add("--skip-bad-audio", action="store_true", help="leave out and list clips that cannot be decoded")


def run(args: argparse.Namespace) -> None:
    """Print the measures, and write all results and the page."""
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
    page = render(*_searches(checkpoint, result, args.queries), facts, result.table)
    with writing(out), replacing(out / _PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"\nwritten: {', '.join(map(str, written))}")


def _searches(checkpoint: Checkpoint, result: Retrieval, queries: int) -> tuple[list[Search], list[Search]]:
    """Prepare queries of both directions for the page: pictures by sound, and sounds by picture."""
    manifest = Manifest.read(result.data / f"{result.split}.tsv")
    dataset = validation_dataset(checkpoint, manifest)
    image, crop = dataset.input.image, Crop(dataset.input.samples, dataset.crop_position)

    def sound_of(index: int) -> Medium:
        waveform = load_clip(manifest[int(result.sound_of[index])], dataset.input.sample_rate, crop)
        return sound(printable(result.sounds[index]), waveform, dataset.input.sample_rate)

    def picture_of(index: int) -> Medium:
        item = dataset[int(result.picture_of[index])]
        assert item is not None and image is not None
        return picture(printable(result.pictures[index]), image.denormalize(item["image"]))

    return (
        _search(result.rankings[SOUND_TO_PICTURE], result.pairs, queries, sound_of, picture_of),
        _search(result.rankings[PICTURE_TO_SOUND], result.pairs[:, ::-1], queries, picture_of, sound_of),
    )


def _search(
    ranking: Ranking,
    pairs: np.ndarray,
    queries: int,
    query_of: Callable[[int], Medium],
    hit_of: Callable[[int], Medium],
) -> list[Search]:
    """Prepare queries that are spread evenly over all, with their best hits."""
    right = set(map(tuple, pairs.tolist()))
    shown = np.unique(np.linspace(0, len(ranking.ranks) - 1, queries).round().astype(int)).tolist()
    return [
        Search(
            query_of(query),
            int(ranking.ranks[query]),
            ranking.candidates,
            [
                Hit(hit_of(hit), float(cosine), (query, hit) in right)
                for hit, cosine in zip(ranking.best[query][:_HITS].tolist(), ranking.similarities[query])
            ],
        )
        for query in shown
    ]
