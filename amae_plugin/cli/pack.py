"""Pack the clips of manifests into tar shards, decoded and resampled once.

The shards, their manifests and the labels, transcripts and weights that lie beside the manifests are written to one
folder, which can be moved as a whole. The command continues what was interrupted; where all shards are there already,
it copies those files again.
"""

import argparse
import sys
from pathlib import Path

from amae_plugin.cli.arguments import add_workers, positive
from amae_plugin.cli.choices import PACKINGS
from amae_plugin.errors import SHOWN
from amae_plugin.files import try_folder

_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="pack this manifest, or those of this folder")
    add("--out", type=Path, required=True, metavar="DIR", help="write the shards and their manifests to this folder")
    add(
        "--format",
        choices=PACKINGS,
        default="flac",
        help="pack as flac, which is smaller, or wav, which is faster to read (default: %(default)s)",
    )
    add(
        "--rate",
        type=positive,
        metavar="HZ",
        help="resample to this rate, for all systems 16000 (default: each file's own)",
    )
    add(
        "--shard-size",
        type=positive,
        default=1000,
        metavar="MB",
        help="make shards of about this size (default: %(default)s)",
    )
    add_workers(parser, "pack")


def run(args: argparse.Namespace) -> int:
    """Pack, and say what was packed; the exit code is 1 if clips were left out."""
    from amae_plugin.corpora.packing import Packing, find_manifests, pack

    try_folder(args.out, "the shards there")  # before the work
    packing = Packing(args.format, args.rate, args.shard_size * _MEGABYTE)
    code = 0
    for manifest in find_manifests(args.manifest):
        packed = pack(manifest, args.out, packing, max(1, args.workers))
        done = ", packed before" if packed.done_before else ""
        print(f"{packed.manifest}: {packed.clips:,} clips in {packed.shards:,} shards, {packed.size:,} bytes{done}")
        for warning in packed.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if packed.clipped:
            print(f"warning: cut off at full scale: {packed.clipped:,} clips", file=sys.stderr)
        if packed.unreadable:
            code = 1
            shown = [f"  {name}: {reason}" for name, reason in list(packed.unreadable.items())[:SHOWN]]
            report = args.out / "unreadable.tsv"
            listed = f"left out, as listed in {report}: {len(packed.unreadable):,} clips"
            again = f"to try them again, delete {packed.manifest} and {report}, and pack again"
            print("\n".join([listed, *shown, again]), file=sys.stderr)
    return code
