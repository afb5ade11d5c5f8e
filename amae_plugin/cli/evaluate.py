"""``amae evaluate``: a checkpoint on a whole split, or on verification trials."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.arguments import natural, positive
from amae_plugin.files import writing

_DESCRIPTION = """
Scores every clip of a split once with a classifier of this plugin, prints the measures, and writes metrics.json,
predictions.csv and a picture. With --trials, compares a classifier's or a pretraining model's features of the pairs of
clips in DIR/trials.txt, prints the equal error rate, and writes trials.json and scores.csv.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``evaluate``."""
    parser = subparsers.add_parser("evaluate", help="measure a checkpoint on a split", description=_DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of a fairseq run")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of manifests and labels")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", default="test", help="name of the manifest (%(default)s)")
    what.add_argument("--trials", action="store_true", help="verify speakers by DIR/trials.tsv and DIR/trials.txt")
    parser.add_argument(
        "--crops",
        type=positive,
        default=1,
        metavar="N",
        help="average over N evenly spaced pieces of clips longer than the model's input; 1: the centre (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results (evaluation/<split> in the checkpoint's run)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="another file for the measures")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="pieces at a time (%(default)s)")
    parser.add_argument(
        "--workers", type=natural, default=os.cpu_count(), metavar="N", help="processes that decode (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--skip-bad-audio", action="store_true", help="leave out and list clips that cannot be decoded")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    # scikit-learn and matplotlib take a second or two to import, which other commands save.
    from amae_plugin.evaluation.classification import evaluate
    from amae_plugin.evaluation.report import Result, summary, write, write_measures
    from amae_plugin.evaluation.scoring import Options
    from amae_plugin.evaluation.verification import verify

    options = Options(
        crops=args.crops,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        skip_bad_audio=args.skip_bad_audio,
    )
    checkpoint = Checkpoint.read(args.checkpoint)
    out = args.out or _run_folder(args.checkpoint) / "evaluation" / ("trials" if args.trials else args.split)
    with writing(out):  # before work that would be lost if its results could not be written
        out.mkdir(parents=True, exist_ok=True)
    result: Result = (
        verify(checkpoint, args.data, options) if args.trials else evaluate(checkpoint, args.data, args.split, options)
    )
    _list_skipped(result.skipped)
    print(summary(result))
    written = write(result, out)
    if args.json:
        write_measures(args.json, result)
        written.append(args.json)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _run_folder(checkpoint: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint; the checkpoint's own folder if it was moved elsewhere."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _list_skipped(skipped: Mapping[str, str]) -> None:
    if skipped:
        print(f"left out, as they cannot be decoded: {len(skipped):,} clips", file=sys.stderr)
    for path, reason in skipped.items():
        print(f"  {path}: {reason}", file=sys.stderr)
