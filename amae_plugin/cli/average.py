"""Average the weights of checkpoints.

Writes a checkpoint whose weights are the mean of those of several checkpoints of one model, or with --ema the moving
average that a run with ema.store_ema=true kept. The other commands take it, as does model.pretrained.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import positive
from amae_plugin.errors import UserError
from amae_plugin.files import is_file, is_folder, try_place, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    text = "take this checkpoint, or those of this folder that fairseq has numbered"
    add("paths", nargs="+", type=Path, metavar="CHECKPOINT|DIR", help=text)
    add("--last", type=positive, metavar="N", help="take the latest N of each folder (default: all)")
    add("--ema", action="store_true", help="take the moving average that each checkpoint keeps, not its weights")
    add("--out", type=Path, required=True, metavar="FILE", help="write the average to this file")


def run(args: argparse.Namespace) -> None:
    """Write the average, and say of what."""
    from amae_plugin.averaging import average, numbered_checkpoints

    paths: list[Path] = []
    for path in args.paths:
        found = numbered_checkpoints(path) if is_folder(path) else [path]
        if args.last is not None:
            if not is_folder(path):
                raise UserError(f"--last {args.last} chooses from a folder, and {path} is none; leave out one of them")
            if len(found) < args.last:
                remedy = f"train with checkpoint.keep_interval_updates={args.last}, or take fewer"
                raise UserError(f"{path}: holds {len(found)} numbered checkpoints, not {args.last}; {remedy}")
            found = found[-args.last :]
        paths += found
    if is_file(args.out) and (same := [path for path in paths if is_file(path) and args.out.samefile(path)]):
        raise UserError(f"{args.out}: is one of the checkpoints itself ({same[0]}); give another name for the average")
    with writing(args.out, "the checkpoint"):  # before the work
        try_place(args.out)
    average(paths, args.out, moving=args.ema).write()
    names = "\n".join(f"  {path}" for path in paths)
    print(f"{'moving average' if args.ema else 'average'} of\n{names}\nwritten: {args.out}")
