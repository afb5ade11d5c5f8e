"""``amae manifest``: write the manifests of a corpus; one sub-subcommand a publisher's layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from amae_plugin.corpora import folder


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``manifest`` and its layouts."""
    parser = subparsers.add_parser("manifest", help="write the manifests of a corpus")
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")

    any_folder = layouts.add_parser("folder", help="any tree of audio files, split at random")
    any_folder.add_argument("folder", type=Path, metavar="DIR", help="the tree; symbolic links are followed")
    any_folder.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.tsv and valid.tsv go")
    any_folder.add_argument("--valid-fraction", type=float, default=0.05, help="share of files held out (%(default)s)")
    any_folder.add_argument(
        "--ext", nargs="+", default=folder.AUDIO_EXTENSIONS, help=f"extensions ({' '.join(folder.AUDIO_EXTENSIONS)})"
    )
    any_folder.add_argument("--seed", type=int, default=1, help="of the choice of files held out (%(default)s)")
    any_folder.add_argument("--workers", type=int, help="threads that read headers (one a core)")
    any_folder.set_defaults(run=_run_folder)


def _run_folder(args: argparse.Namespace) -> int:
    summary, duplicates = folder.build(args.folder, args.out, args.valid_fraction, args.ext, args.seed, args.workers)
    out = args.out.absolute()
    print(summary)
    if duplicates:
        print(f"links to other files of the tree, left out: {duplicates:,}")
    print(f"manifests: {', '.join(str(out / f'{split}.tsv') for split in summary.clips)}")
    print("next, the mean and standard deviation that the training needs, then the training itself:")
    print(f"  amae stats {out}")
    print(
        f"  fairseq-hydra-train --config-dir config --config-name <recipe> task.data={out} task.mean=... task.std=..."
    )
    return 0
