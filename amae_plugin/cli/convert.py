"""``amae convert``: published weights as a checkpoint of this plugin."""

from __future__ import annotations

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import above_zero, positive
from amae_plugin.data.labels import read_names
from amae_plugin.data.log_mel import WINDOWS
from amae_plugin.errors import UserError
from amae_plugin.inspection import describe, summary
from amae_plugin.interop.convert import FORMATS, Conversion, convert
from amae_plugin.models.classifier.model import POOLINGS
from amae_plugin.models.published import ConversionOptions, PublishedFile
from amae_plugin.weight_files import UnsafeFileError

_DESCRIPTION = """
Reads published weights and writes a checkpoint that fairseq loads, that recipes fine-tune (model.pretrained=OUT) and
that the other commands take. Recognises the kind of the file and reads the sizes from its tensors. Uses or lists every
tensor.
"""
_KINDS = "\n".join(f"  {name:20}{kind.title}" for name, kind in FORMATS.items())
_NUMBERS = {
    "--num-heads": "attention heads of the encoder (default: of 64 dimensions each)",
    "--decoder-num-heads": "attention heads of the decoder (default: 16 in an Audio-MAE of width 512, the "
    "encoder's number in a MAE-AST, else of 64 dimensions each)",
    "--num-mel-bins": "bands of the input (default: 128)",
    "--target-length": "frames of the input (default: what the positions cover, else 1024)",
}
_PAIRS = {
    "--patch-size": "patch of a MAE-AST whose file lacks its cfg: 16 16 or 2 128",
    "--patch-stride": "distance of an AST's patches (default: what fits the positions)",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser(
        "convert",
        help="convert published weights to a checkpoint of this plugin",
        description=_DESCRIPTION,
        epilog=f"kinds:\n{_KINDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file written by torch.save, or .safetensors file")
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write")
    parser.add_argument("--kind", choices=FORMATS, help="kind of SOURCE (default: recognised)")
    parser.add_argument("--partial", action="store_true", help="continue if tensors are missing or have no place")
    parser.add_argument(
        "--trust", action="store_true", help="unpickle any object in SOURCE, which runs whatever code it asks for"
    )
    sizes = parser.add_argument_group("facts that SOURCE may lack")
    for flag, text in _NUMBERS.items():
        sizes.add_argument(flag, type=positive, metavar="N", help=text)
    for flag, text in _PAIRS.items():
        sizes.add_argument(flag, type=positive, nargs=2, metavar=("FRAMES", "BANDS"), help=text)
    sizes.add_argument("--pooling", choices=POOLINGS, help="pooling of a classifier (default: as published)")
    sizes.add_argument(
        "--labels", type=Path, metavar="FILE", help="classes of a classifier, one a line (default: numbers)"
    )
    sizes.add_argument(
        "--multi-label",
        action=argparse.BooleanOptionalAction,
        help="a clip may have several labels (default: with AudioSet's 527 classes)",
    )
    audio = parser.add_argument_group("input that the model was trained on (default: as published)")
    audio.add_argument("--mean", type=float, metavar="X", help="mean of the log-mel values")
    audio.add_argument("--std", type=above_zero, metavar="X", help="standard deviation of the log-mel values")
    audio.add_argument("--window-type", choices=sorted(WINDOWS), help="window of the spectral analysis")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.source.exists() and args.out.exists() and args.out.samefile(args.source):
        raise UserError(f"{args.out}: is SOURCE itself; give another name for the result")
    options = ConversionOptions(
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        patch_size=args.patch_size and tuple(args.patch_size),
        patch_stride=args.patch_stride and tuple(args.patch_stride),
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
