"""``amae predict``: the most probable classes of audio files."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from amae_plugin.cli.arguments import add_clips, positive
from amae_plugin.cli.files import writing
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import ClipFiles
from amae_plugin.inference.model import Prediction, load_model

_FORMATS = (".csv", ".json")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``predict``."""
    parser = subparsers.add_parser("predict", help="most probable classes of audio files, by a classifier")
    add_clips(parser)
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes of a clip (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .csv or .json file, in place of the terminal")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.out is not None and args.out.suffix not in _FORMATS:
        raise UserError(f"--out {args.out}: its name must end in {' or '.join(_FORMATS)}")
    model = load_model(args.checkpoint, args.device, args.batch_size)
    if args.out is not None:
        with writing(args.out):  # before the work, which is in vain if its results cannot be written
            args.out.parent.mkdir(parents=True, exist_ok=True)
    clips = ClipFiles(args.paths, model.input.front_end, args.workers, "predicting")
    found = {str(path): model.top(probabilities, args.top_k) for path, probabilities in clips.map(model.probabilities)}
    code = clips.conclude()
    if args.out is None:
        for path, predictions in found.items():
            print(f"{path}: {', '.join(f'{label} {probability:.4f}' for label, probability in predictions)}")
        return code
    with writing(args.out):
        (_write_csv if args.out.suffix == ".csv" else _write_json)(args.out, found)
    print(f"predictions of {len(found):,} clips: {args.out}")
    return code


def _write_csv(out: Path, found: dict[str, list[Prediction]]) -> None:
    """A row a clip, with the columns of ``amae evaluate``."""
    count = max(map(len, found.values()))
    with out.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["path", *(name for rank in range(1, count + 1) for name in (f"top{rank}", f"top{rank}_score"))]
        )
        for path, predictions in found.items():
            writer.writerow([path, *(value for prediction in predictions for value in prediction)])


def _write_json(out: Path, found: dict[str, list[Prediction]]) -> None:
    """A list of clips, each with a list of its classes."""
    content = [
        {"path": path, "predictions": [prediction._asdict() for prediction in predictions]}
        for path, predictions in found.items()
    ]
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
