"""Write how often to draw each clip, so that training draws rare classes as often as common ones."""

import argparse
from pathlib import Path

from amae_plugin.files import replacing, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="weigh the clips of this folder, by NAME.tsv, NAME.lbl and labels.txt"
    )
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="weigh the clips of the manifest of this name (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the weights, and print how they spread."""
    import numpy as np

    from amae_plugin.data.labels import LABELS_NAME, Labels
    from amae_plugin.data.manifest import Manifest
    from amae_plugin.data.sampling import balanced_weights

    manifest = Manifest.read(args.folder / f"{args.split}.tsv").require_clips()
    labels = Labels.read(args.folder / f"{args.split}.lbl", args.folder / LABELS_NAME, len(manifest), multi=True)
    weights = balanced_weights(labels)
    path = args.folder / f"{args.split}.weights.npy"
    with writing(path, "the weights"), replacing(path) as partial, partial.open("wb") as file:
        np.save(file, weights)
    counts = labels.counts()
    print(f"{len(weights):,} clips, {len(labels.ids) / len(labels):.2f} labels a clip, {len(labels.names)} classes")
    for word, index in (("rarest", np.where(counts, counts, counts.max()).argmin()), ("commonest", counts.argmax())):
        print(f"{word} class: {labels.names[index]} with {counts[index]:,} clips")
    if absent := np.count_nonzero(counts == 0):
        print(f"classes without a clip: {absent}")
    most, least = weights.max() / weights.mean(), weights.min() / weights.mean()
    print(f"the clip drawn most often: {most:.1f} times the mean; the least: {least:.3f} times")
    print(f"weights: {path.absolute()}")
