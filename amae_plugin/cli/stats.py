"""Measure the mean and the standard deviation of a corpus's log-mel values, for normalisation."""

import argparse
import os
from pathlib import Path

from amae_plugin.cli.arguments import natural, positive
from amae_plugin.cli.choices import FRONT_ENDS
from amae_plugin.files import try_file, write_json, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add, frames = parser.add_argument, "frames taken of longer clips, at random (%(default)s)"
    add("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="a manifest, or a folder of manifests")
    add("--split", default="train", help="name of the manifest in a folder (%(default)s)")
    add("--clips", type=natural, default=2000, help="clips drawn at random; 0 means all (%(default)s)")
    add("--target-length", type=positive, default=1024, help=frames)
    add("--front-end", choices=FRONT_ENDS, default="kaldi", help="of the log-mel values; M2D's is slaney (%(default)s)")
    add("--seed", type=natural, default=1, help="seed of the draws (%(default)s)")
    add("--workers", type=natural, default=os.cpu_count(), help="processes that decode (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def run(args: argparse.Namespace) -> None:
    """Print the statistics as settings of a recipe."""
    from amae_plugin.data import log_mel
    from amae_plugin.data.manifest import Manifest
    from amae_plugin.data.statistics import measure

    if args.json:
        try_file(args.json)  # before the work
    manifest = Manifest.read(args.manifest / f"{args.split}.tsv" if args.manifest.is_dir() else args.manifest)
    options = {name: vars(args)[name] for name in ("target_length", "clips", "seed", "workers")}
    figures = measure(manifest, front_end=log_mel.FRONT_ENDS[args.front_end](), **options)
    clips, frames, skipped = (f"{figures[key]:,}" for key in ("clips", "frames", "skipped"))
    print(f"{clips} clips of {len(manifest):,}, {frames} frames, {skipped} unreadable")
    print(f"task.mean={figures['mean']:.7g} task.std={figures['std']:.7g}")
    if args.json:
        with writing(args.json):
            write_json(args.json, figures)
