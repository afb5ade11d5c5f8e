"""``amae stats``: mean and standard deviation of a corpus's log-mel values, for normalisation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from amae_plugin.cli.arguments import natural, positive
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import measure
from amae_plugin.files import write_json, writing


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stats``."""
    parser = subparsers.add_parser("stats", help="mean and standard deviation of a corpus, for normalisation")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="a manifest, or a folder of manifests")
    parser.add_argument("--split", default="train", help="name of the manifest in a folder (%(default)s)")
    parser.add_argument("--clips", type=natural, default=2000, help="clips drawn at random; 0 means all (%(default)s)")
    parser.add_argument(
        "--target-length", type=positive, default=1024, help="frames taken of longer clips, at random (%(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=1, help="seed of the draws (%(default)s)")
    parser.add_argument("--workers", type=natural, default=os.cpu_count(), help="processes that decode (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    path = args.manifest / f"{args.split}.tsv" if args.manifest.is_dir() else args.manifest
    manifest = Manifest.read(path)
    figures = measure(
        manifest, target_length=args.target_length, clips=args.clips, seed=args.seed, workers=args.workers
    )
    clips, frames, skipped = (f"{figures[key]:,}" for key in ("clips", "frames", "skipped"))
    print(f"{clips} clips of {len(manifest):,}, {frames} frames, {skipped} unreadable")
    print(f"task.mean={figures['mean']:.7g} task.std={figures['std']:.7g}")
    if args.json:
        with writing(args.json):
            write_json(args.json, figures)
    return 0
