"""Convert published weights to a checkpoint of this plugin.

Reads published weights and writes a checkpoint that fairseq loads, that recipes fine-tune (model.pretrained=OUT) and
that the other commands take. Recognises the kind of the file and reads the sizes from its tensors. Uses or lists every
tensor. A pretraining checkpoint of this plugin gets the settings that fairseq's speech recipes overwrite, if an earlier
release wrote it.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amae_plugin.cli.arguments import above_zero, positive
from amae_plugin.cli.choices import POOLINGS, PUBLISHED, WINDOWS
from amae_plugin.errors import UserError
from amae_plugin.files import is_file, try_place, writing

if TYPE_CHECKING:
    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.interop.convert import Conversion

_NUMBERS = {
    "--num-heads": "give the encoder this many attention heads (default: of 64 dimensions each)",
    "--decoder-num-heads": "give the decoder this many attention heads (default: 16 in an Audio-MAE of width 512, the "
    "encoder's number in a MAE-AST, else of 64 dimensions each)",
    "--num-mel-bins": "give the input this many bands (default: 128)",
    "--target-length": "give the input this many frames (default: what the positions cover, else 1024)",
}
_PAIRS = {
    "--patch-size": "give a MAE-AST whose file lacks its cfg patches of this size: 16 16 or 2 128",
    "--patch-stride": "set an AST's patches at this distance (default: what fits the positions)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; those about the file set the fields of :class:`ConversionOptions`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["kinds:", *(f"  {name:20}{title}" for name, title in PUBLISHED.items())])
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="convert this file, which torch.save wrote, or a .safetensors file")
    add("out", type=Path, metavar="OUT", help="write this checkpoint")
    add("--kind", choices=PUBLISHED, metavar="KIND", help="take SOURCE for this kind (default: recognised)")
    add("--partial", action="store_true", help="continue if tensors are missing or have no place")
    add("--trust", action="store_true", help="unpickle any object in SOURCE, which runs whatever code it asks for")
    add = parser.add_argument_group("facts that SOURCE may lack").add_argument
    for flag, text in _NUMBERS.items():
        add(flag, type=positive, metavar="N", help=text)
    for flag, text in _PAIRS.items():
        add(flag, type=positive, nargs=2, metavar=("FRAMES", "BANDS"), help=text)
    pooling = f"give a classifier this pooling: {', '.join(POOLINGS)} (default: as published)"
    add("--pooling", choices=POOLINGS, metavar="NAME", help=pooling)
    labels = "name the classes of a classifier as this file does, one a line (default: numbers)"
    add("--labels", dest="classes", type=Path, metavar="FILE", help=labels)
    several = "let a clip have several labels (default: with AudioSet's 527 classes)"
    add("--multi-label", action=argparse.BooleanOptionalAction, help=several)
    add = parser.add_argument_group("input that the model was trained on (default: as published)").add_argument
    add("--mean", type=float, metavar="X", help="give the mean of the log-mel values")
    add("--std", type=above_zero, metavar="X", help="give their standard deviation")
    add("--window-type", choices=WINDOWS, metavar="NAME", help=f"give the analysis window: {', '.join(WINDOWS)}")


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint, and say what became of every tensor of the file."""
    from amae_plugin.data.labels import read_names
    from amae_plugin.inspection import describe, summary
    from amae_plugin.interop.convert import convert
    from amae_plugin.models.published import ConversionOptions, PublishedFile
    from amae_plugin.weight_files import UnsafeFileError

    args.classes = read_names(args.classes) if args.classes is not None else None
    if is_file(args.source) and is_file(args.out) and args.out.samefile(args.source):
        raise UserError(f"{args.out}: is SOURCE itself; give another name for the result")
    with writing(args.out, "the checkpoint"):  # before the work
        try_place(args.out)
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in vars(args).items()
    }
    if (checkpoint := _own(args.source)) is not None:
        replace(checkpoint, path=args.out).write()
        print(f"completed the settings of a checkpoint of this plugin: {args.out}")
        return
    options = ConversionOptions(**{field.name: given[field.name] for field in fields(ConversionOptions)})
    front_end = {name: given[name] for name in ("mean", "std", "window_type") if given[name] is not None}
    try:
        source = PublishedFile.read(args.source, trust=args.trust)
    except UnsafeFileError as error:
        remedy = "If you know and trust who made the file, --trust reads it all the same, and runs whatever it asks for"
        raise UserError(f"{error}. {remedy}") from None
    others = {name: given[name] for name in ("kind", "multi_label", "partial")}
    conversion = convert(source, args.out, options, front_end=front_end, **others)
    conversion.checkpoint.write()
    print("\n".join(_report(conversion)))
    print(f"\n{summary(describe(conversion.checkpoint))}\n\nwritten: {args.out}")


def _own(path: Path) -> Checkpoint | None:
    """Read a pretraining checkpoint of this plugin that lacks settings; None if the file is something else."""
    from amae_plugin.checkpoints import Checkpoint

    try:
        checkpoint = Checkpoint.read(path)
        checkpoint.check_settings()
    except UserError:
        return None  # the search for a published kind says what is wrong with the file
    return checkpoint if checkpoint.lacks_settings else None


def _report(conversion: Conversion) -> list[str]:
    """Say what became of every tensor of the file."""
    lines = [f"{conversion.kind.name}: {conversion.kind.title}; {conversion.used:,} tensors used"]
    lines += [f"note: {note}" for note in conversion.notes]
    for reason in dict.fromkeys(conversion.without_effect.values()):
        names = [name for name, why in conversion.without_effect.items() if why == reason]
        lines.append(f"not used ({reason}): {', '.join(names)}")
    if conversion.surplus:
        lines.append(f"left out, as they have no place: {', '.join(conversion.surplus)}")
    if conversion.missing:
        lines.append(f"missing, so initialised: {', '.join(conversion.missing)}")
    return lines
