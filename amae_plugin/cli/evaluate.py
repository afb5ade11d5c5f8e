"""Measure a checkpoint on a whole split, or on verification trials.

Scores every clip of a split once with a classifier of this plugin, prints the measures, and writes metrics.json
with tables of it (.md, .csv, .tex), predictions.csv and a picture. With a recogniser, prints word and character error
rate and the worst clips, and writes the same files without a picture. With --trials, compares a classifier's or a
pretraining model's features of the pairs of clips in DIR/trials.txt, prints the equal error rate, and writes
trials.json with tables of it, and scores.csv.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import add_formats, natural, positive
from amae_plugin.cli.choices import MODALITIES
from amae_plugin.cli.clips import add_model, results_folder, tell_skipped
from amae_plugin.files import try_place, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model(parser, batch_size=64, unit="pieces")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="take the manifests and labels of this folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--split", default="test", metavar="NAME", help="measure on the manifest of this name (default: %(default)s)"
    )
    what.add_argument("--trials", action="store_true", help="verify speakers by DIR/trials.tsv and DIR/trials.txt")
    crops = "average over N evenly spaced pieces of longer clips; 1: take the centre (default: %(default)s)"
    add("--crops", type=positive, default=1, metavar="N", help=crops)
    frames = "average over N evenly spaced frames of each video; 1: take the middle one (default: %(default)s)"
    add("--frames", type=positive, default=1, metavar="N", help=frames)
    only = "give a model of audio and image this alone (default: all that it takes)"
    add("--modalities", nargs="+", choices=MODALITIES, metavar="NAME", help=f"{only}: {', '.join(MODALITIES)}")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the results there (default: evaluation/SPLIT in the folder of the run)",
    )
    add("--json", type=Path, metavar="FILE", help="write the measures to this file as well")
    resamples = "resample the clips this often for confidence intervals; 0: none (default: %(default)s)"
    add("--resamples", type=natural, default=1000, metavar="N", help=resamples)
    add_formats(parser)
    add("--skip-bad-audio", action="store_true", help="leave out and list clips that cannot be decoded")


def run(args: argparse.Namespace) -> None:
    """Print the measures, write all results, and list the clips that were left out."""
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.evaluation.report import EVALUATIONS, Result, summary, write, write_measures
    from amae_plugin.evaluation.scoring import Options
    from amae_plugin.evaluation.verification import verify
    from amae_plugin.models.classifier import Classifier

    names = ("crops", "frames", "modalities", "batch_size", "workers", "device", "skip_bad_audio", "resamples")
    options = Options(**{name: vars(args)[name] for name in names})
    checkpoint = Checkpoint.read(args.checkpoint)
    out = args.out or results_folder(args.checkpoint) / "evaluation" / ("trials" if args.trials else args.split)
    with writing(out):  # before work that would be lost if its results could not be written
        try_place(out / "metrics.json")
    if args.json:
        with writing(args.json, "it"):
            try_place(args.json)
    result: Result
    if args.trials:
        result = verify(checkpoint, args.data, options)
    elif checkpoint.downstream is None:
        raise checkpoint.no(Classifier)
    else:
        result = EVALUATIONS[checkpoint.downstream](checkpoint, args.data, args.split, options)
    tell_skipped(result.skipped)
    print(summary(result))
    written = write(result, out, args.formats, args.width)
    if args.json:
        write_measures(args.json, result)
        written.append(args.json)
    print(f"\nwritten: {', '.join(map(str, written))}")
