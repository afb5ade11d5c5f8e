"""Predict the most probable classes of audio files with a classifier.

A classifier of sound and picture is given the sound alone.
"""

import argparse
import itertools
from pathlib import Path

from amae_plugin.cli.arguments import positive
from amae_plugin.cli.clips import add_clips, conclude, tell_sound_alone
from amae_plugin.errors import UserError, printable
from amae_plugin.files import try_place, write_csv, write_json, writing

_FORMATS = (".csv", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser)
    parser.add_argument(
        "--top-k",
        type=positive,
        default=5,
        metavar="K",
        help="name this many classes of each clip (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write to this .csv or .json file, not to the terminal"
    )


def run(args: argparse.Namespace) -> int:
    """Print or write the predictions and list the files that cannot be used."""
    if args.out is not None and args.out.suffix not in _FORMATS:
        raise UserError(f"--out {args.out}: its name must end in {' or '.join(_FORMATS)}")
    from amae_plugin.inference.clips import ClipFiles
    from amae_plugin.inference.model import load_model

    model = load_model(args.checkpoint, args.device, args.batch_size)
    model.checkpoint.require_predictions()  # before the work
    tell_sound_alone(model.checkpoint, "; `amae evaluate` gives it both")
    if args.out is not None:
        with writing(args.out):  # before the work, which is in vain if its results cannot be written
            try_place(args.out)
    clips = ClipFiles(args.paths, model.input.front_end, args.workers, "predicting")
    found = {str(path): model.top(probabilities, args.top_k) for path, probabilities in clips.map(model.probabilities)}
    code = conclude(clips)
    if args.out is None:
        for path, predictions in found.items():
            print(f"{printable(path)}: {', '.join(f'{label} {probability:.4f}' for label, probability in predictions)}")
        return code
    with writing(args.out):
        if args.out.suffix == ".json":
            write_json(args.out, [{"path": path, "predictions": [p._asdict() for p in found[path]]} for path in found])
        else:  # the columns of `amae evaluate`
            ranks = range(1, max(map(len, found.values())) + 1)
            header = ["path", *(name for rank in ranks for name in (f"top{rank}", f"top{rank}_score"))]
            rows = ([path, *itertools.chain(*predictions)] for path, predictions in found.items())
            write_csv(args.out, itertools.chain([header], rows))
    print(f"predictions of {len(found):,} clips: {args.out}")
    return code
