"""Make a page to see and hear what a pretrained model fills in where recordings are hidden.

Hides parts of recordings, has a pretraining model fill them in, and writes index.html. This one file shows spectrograms
and plays sounds of each clip side by side: original, masked and reconstructed. It needs no network. A folder for each
clip holds the same as picture.png and three WAV files.
"""

import argparse
import math
import os
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.data.log_mel import LogMel
from amae_plugin.errors import UserError
from amae_plugin.files import writing
from amae_plugin.inference.clips import ClipFiles
from amae_plugin.inference.reconstruction import Reconstructor
from amae_plugin.metrics.band_errors import BandErrors
from amae_plugin.modules.compute import choose_device
from amae_plugin.modules.masking import MASKINGS
from amae_plugin.visual.page import ClipView, render
from amae_plugin.visual.spectrograms import NORMALIZED_TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser)
    add, default = parser.add_argument, "(default: the model's in training)"
    add("--out", type=Path, required=True, metavar="DIR", help="folder of index.html")
    add("--mask-ratio", type=float, metavar="R", help=f"hidden share, between 0 and 1 {default}")
    add("--strategy", metavar="NAME", help=f"masking strategy: {', '.join(MASKINGS)} {default}")
    add("--seed", type=int, default=1, metavar="N", help="random seed of the masks (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the page and a folder for each clip, and list the files that cannot be used."""
    options = {name: vars(args)[name] for name in ("strategy", "mask_ratio", "seed", "batch_size")}
    reconstructor = Reconstructor(Checkpoint.read(args.checkpoint), device=choose_device(args.device), **options)
    front_end = reconstructor.input.front_end
    if not isinstance(front_end, LogMel):
        raise UserError(
            f"{args.checkpoint}: its front end '{front_end.name}' has no inverse here, so there would be no sounds; "
            f"that of '{LogMel.name}' has one"
        )
    clips = ClipFiles(args.paths, front_end, args.workers, "reconstructing")
    names = _make_room(args.out, clips)
    window = reconstructor.input.target_length * front_end.shift_samples / front_end.sample_rate
    note = NORMALIZED_TARGETS if reconstructor.normalizes_targets else None
    facts = {
        "checkpoint": _printable(args.checkpoint),
        "model": f"{reconstructor.checkpoint.model_settings['_name']}, {window:g} s at a time",
        "hidden": f"{reconstructor.masking}, seed {args.seed}",
    }
    if note:
        facts["normalised targets"] = note
    views: list[ClipView] = []
    for path, waveform in clips:
        views.append(ClipView.make(_printable(names[path]), reconstructor(waveform), front_end, len(waveform)))
        views[-1].write(args.out / names[path], front_end, note)
    code = conclude(clips)
    page, index = render(views, front_end, facts), args.out / "index.html"
    with writing(index):
        index.write_text(page, encoding="utf-8")
    error = BandErrors.pool(view.reconstruction.error for view in views).total_rms
    reference = BandErrors.pool(view.reconstruction.reference for view in views).total_rms
    if math.isfinite(error):
        print(f"error of the hidden part: {error:.1f} dB (straight lines between visible frames: {reference:.1f} dB)")
    print(f"{index}: {len(views):,} {'clip' if len(views) == 1 else 'clips'}, {len(page) / 1e6:.1f} MB")
    return code


def _make_room(out: Path, clips: ClipFiles) -> dict[Path, str]:
    """Make the folder for results, before work that would be lost if they could not be written.

    Returns:
        The name of each clip in the folder, no two of which are the same.

    Raises:
        UserError: the folder cannot be made, or a clip lies in it.
    """
    for path in clips.names:
        if path.absolute().is_relative_to(out.absolute()):
            raise UserError(f"{path}: lies in --out {out}, where results are written; choose another folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if len(set(clips.names.values())) == len(clips):
        return clips.names
    root = os.path.commonpath([path.absolute().parent for path in clips.names])
    return {path: str(path.absolute().relative_to(root)) for path in clips.names}


def _printable(name: str | Path) -> str:
    """Return a file name as text; bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")
