"""``amae convert``: a published checkpoint to one of this plugin."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from amae_plugin.cli.arguments import positive
from amae_plugin.data.labels import read_names
from amae_plugin.data.log_mel import WINDOWS
from amae_plugin.errors import UserError
from amae_plugin.inspection import describe, summary
from amae_plugin.interop.convert import KINDS, Conversion, convert
from amae_plugin.models.classifier.model import POOLINGS
from amae_plugin.models.published import Options, PublishedFile
from amae_plugin.weight_files import UnsafeFileError

_DESCRIPTION = """
Reads published weights and writes a checkpoint that fairseq loads, that recipes fine-tune (model.pretrained=OUT) and
that the other commands take. The kind is recognised and the sizes are read from the tensors; every tensor is used or
listed.
"""
_KINDS = "\n".join(f"  {name:20}{kind.title}" for name, kind in KINDS.items())


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser(
        "convert",
        help="a published checkpoint to one of this plugin",
        description=_DESCRIPTION,
        epilog=f"kinds:\n{_KINDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="what torch.save wrote, or a .safetensors file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    parser.add_argument("--kind", choices=tuple(KINDS), help="(recognised)")
    parser.add_argument("--partial", action="store_true", help="go on if tensors are missing or have no place")
    parser.add_argument(
        "--trust", action="store_true", help="unpickle any object in SOURCE, which runs whatever code it asks for"
    )
    sizes = parser.add_argument_group("what a file may not tell")
    sizes.add_argument("--num-heads", type=positive, metavar="N", help="of the encoder (64 wide a head)")
    sizes.add_argument(
        "--decoder-num-heads",
        type=positive,
        metavar="N",
        help="of the decoder (64 wide a head; of an Audio-MAE that is 512 wide, 16; of a MAE-AST, the encoder's)",
    )
    for name, what in (
        ("--patch-size", "of MAE-AST without its cfg: 16 16 or 2 128"),
        ("--patch-stride", "of an AST (as the positions fit)"),
    ):
        sizes.add_argument(name, type=positive, nargs=2, metavar=("FRAMES", "BANDS"), help=what)
    sizes.add_argument("--num-mel-bins", type=positive, metavar="N", help="bands of the input (128)")
    sizes.add_argument(
        "--target-length", type=positive, metavar="N", help="frames of the input (as the positions say, else 1024)"
    )
    sizes.add_argument("--pooling", choices=POOLINGS, help="of a classifier (as published)")
    sizes.add_argument("--labels", type=Path, metavar="FILE", help="classes of a classifier, one a line (numbers)")
    sizes.add_argument(
        "--multi-label",
        action=argparse.BooleanOptionalAction,
        help="whether a clip may have several labels (with the 527 classes of AudioSet)",
    )
    audio = parser.add_argument_group("the audio that the model was trained on (as published)")
    audio.add_argument("--mean", type=float, metavar="X", help="of the log-mel values")
    audio.add_argument("--std", type=float, metavar="X", help="their standard deviation")
    audio.add_argument("--window-type", choices=sorted(WINDOWS), help="of the analysis")
    audio.add_argument(
        "--remove-mean", action=argparse.BooleanOptionalAction, help="whether the waveform's mean is subtracted"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.source.exists() and args.out.exists() and args.out.samefile(args.source):
        raise UserError(f"{args.out}: is SOURCE itself; give another name for the result")
    if args.std is not None and not args.std > 0:
        raise UserError(f"--std {args.std}: must be above 0")
    options = Options(
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        patch_size=_pair(args.patch_size),
        patch_stride=_pair(args.patch_stride),
        num_mel_bins=args.num_mel_bins,
        target_length=args.target_length,
        pooling=args.pooling,
        classes=read_names(args.labels) if args.labels else None,
    )
    try:
        source = PublishedFile.read(args.source, trust=args.trust)
    except UnsafeFileError as error:
        raise UserError(
            f"{error}. If you know who made the file and trust them, --trust reads it all the same, and runs whatever "
            "it asks for"
        ) from None
    given = {name: getattr(args, name) for name in ("mean", "std", "window_type")}
    conversion = convert(
        source,
        args.out,
        options,
        kind=args.kind,
        front_end={name: value for name, value in given.items() if value is not None},
        multi_label=args.multi_label,
        partial=args.partial,
    )
    conversion.checkpoint.write()
    for line in _report(conversion):
        print(line)
    print(f"\n{summary(describe(conversion.checkpoint))}\n\nwritten: {args.out}")
    return 0


def _pair(values: Sequence[int] | None) -> tuple[int, int] | None:
    return (values[0], values[1]) if values else None


def _report(conversion: Conversion) -> list[str]:
    """What became of every tensor of the file."""
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
