"""Measure the mean and the standard deviation of a corpus's log-mel values, for normalisation."""

import argparse
import os
from pathlib import Path

from amae_plugin.cli.arguments import add_config_dir, natural, positive
from amae_plugin.cli.choices import FRONT_ENDS
from amae_plugin.files import try_file, write_json, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add, frames = parser.add_argument, "frames taken of longer clips, at random (the recipe's, or 1024)"
    add("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="a manifest, or a folder of manifests")
    add("--split", default="train", help="name of the manifest in a folder (%(default)s)")
    add("--clips", type=natural, default=2000, help="clips drawn at random; 0 means all (%(default)s)")
    add("--recipe", metavar="NAME", help="recipe, whose front end and length of the input count")
    add_config_dir(parser)
    add("--target-length", type=positive, help=frames)
    add("--front-end", choices=FRONT_ENDS, help="of the log-mel values; M2D's is slaney (the recipe's, or kaldi)")
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
    front_end: log_mel.FrontEnd = log_mel.LogMel()
    frames = 1024
    if args.recipe:
        from amae_plugin.runs.statistics import read_front_end

        front_end, frames = read_front_end(args.recipe, args.config_dir)
    if args.front_end:
        front_end = log_mel.FRONT_ENDS[args.front_end]()
    options = {name: vars(args)[name] for name in ("clips", "seed", "workers")}
    figures = measure(manifest, front_end=front_end, target_length=args.target_length or frames, **options)
    clips, measured, skipped = (f"{figures[key]:,}" for key in ("clips", "frames", "skipped"))
    print(f"{clips} clips of {len(manifest):,}, {measured} frames, {skipped} unreadable")
    print(f"task.mean={figures['mean']:.7g} task.std={figures['std']:.7g}")
    if args.json:
        with writing(args.json):
            write_json(args.json, figures)
