"""Measure the mean and the standard deviation of a corpus's log-mel values, for normalisation.

Prints them as settings of a recipe. A training with task.mean=auto and task.std=auto measures the same by itself.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import add_config_dir, add_workers, natural, positive
from amae_plugin.cli.choices import FRONT_ENDS
from amae_plugin.files import is_folder, try_file, write_json, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add, frames = (
        parser.add_argument,
        "take this many frames of longer clips, at random (default: the recipe's, or 1024)",
    )
    add("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="measure this manifest, or one of this folder")
    add(
        "--split",
        default="train",
        metavar="NAME",
        help="measure the manifest of this name in a folder (default: %(default)s)",
    )
    clips = "draw this many clips at random; 0: take all (default: %(default)s)"
    add("--clips", type=natural, default=2000, metavar="N", help=clips)
    add("--recipe", metavar="RECIPE", help="take the front end and the length of the input of this recipe")
    add_config_dir(parser)
    add("--target-length", type=positive, metavar="N", help=frames)
    front_end = "measure log-mel values of this front end; M2D's is slaney (default: the recipe's, or kaldi)"
    add("--front-end", choices=FRONT_ENDS, help=front_end)
    add("--seed", type=natural, default=1, metavar="N", help="draw with this seed (default: %(default)s)")
    add_workers(parser, "decode")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file as well")


def run(args: argparse.Namespace) -> None:
    """Print the statistics as settings of a recipe."""
    from amae_plugin.data import log_mel
    from amae_plugin.data.manifest import Manifest
    from amae_plugin.data.statistics import measure

    if args.json:
        try_file(args.json)  # before the work
    manifest = Manifest.read(args.manifest / f"{args.split}.tsv" if is_folder(args.manifest) else args.manifest)
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
