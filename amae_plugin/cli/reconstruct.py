"""``amae reconstruct``: what a pretrained model fills in where recordings are hidden, to look at and to listen to."""

from __future__ import annotations

import argparse
import io
import math
import os
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.data.log_mel import FrontEnd
from amae_plugin.errors import UserError
from amae_plugin.files import writing
from amae_plugin.inference.clips import ClipFiles
from amae_plugin.inference.reconstruction import Reconstructor, make_audible
from amae_plugin.modules.compute import choose_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from amae_plugin.visual.page import ClipView

_DESCRIPTION = """
Hides parts of recordings, has a pretraining model fill them in, and writes index.html: spectrograms and sounds of each
clip as it was, masked and reconstructed, side by side, in one file that needs no network. Beside it, a folder a clip
holds them as picture.png and three WAV files.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reconstruct``."""
    parser = subparsers.add_parser(
        "reconstruct", help="a page to see and hear what a pretrained model fills in", description=_DESCRIPTION
    )
    add_clips(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where index.html goes")
    parser.add_argument(
        "--mask-ratio", type=float, metavar="R", help="hidden share, between 0 and 1 (as the model was trained)"
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="what is hidden: random, chunk, span, time, frequency or time_frequency (as the model was trained)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the masks (%(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    # They import matplotlib, which takes a second and which other commands do without.
    from amae_plugin.visual.page import ClipView, render
    from amae_plugin.visual.spectrograms import NORMALIZED_TARGETS

    reconstructor = Reconstructor(
        Checkpoint.read(args.checkpoint),
        strategy=args.strategy,
        mask_ratio=args.mask_ratio,
        seed=args.seed,
        batch_size=args.batch_size,
        device=choose_device(args.device),
    )
    features = reconstructor.input.front_end
    clips = ClipFiles(args.paths, features, args.workers, "reconstructing")
    names = _make_room(args.out, clips)
    window = reconstructor.input.target_length * features.shift_samples / features.sample_rate
    facts = {
        "checkpoint": _printable(args.checkpoint),
        "model": f"{reconstructor.checkpoint.model_settings['_name']}, hears {window:g} s at a time",
        "hidden": f"{reconstructor.masking}, seed {args.seed}",
    }
    if reconstructor.normalizes_targets:
        facts["normalised targets"] = NORMALIZED_TARGETS
    views: list[ClipView] = []
    for path, waveform in clips:
        shown = reconstructor(waveform)
        sounds = [_wav(sound, features.sample_rate) for sound in make_audible(shown, features, len(waveform))]
        views.append(ClipView(_printable(names[path]), shown, sounds))
        _write_clip(args.out / names[path], views[-1], features, facts.get("normalised targets"))
    code = conclude(clips)
    page = render(views, features, facts)
    _write(args.out / "index.html", page.encode())
    error, reference = (
        reduce(add, errors).total_rms
        for errors in zip(*((view.reconstruction.error, view.reconstruction.reference) for view in views))
    )
    if math.isfinite(error):
        print(f"error of the hidden part: {error:.1f} dB (straight lines between visible frames: {reference:.1f} dB)")
    print(
        f"{args.out / 'index.html'}: {len(views):,} {'clip' if len(views) == 1 else 'clips'}, {len(page) / 1e6:.1f} MB"
    )
    return code


def _make_room(out: Path, clips: ClipFiles) -> dict[Path, str]:
    """Make the folder for results, before the work, which is in vain if they cannot be written.

    Returns:
        What the clips are called in it; no two have one name.
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


def _write_clip(folder: Path, view: ClipView, features: FrontEnd, note: str | None) -> None:
    from amae_plugin.visual.spectrograms import COLUMNS, plot_reconstructions

    shown = view.reconstruction
    figure = plot_reconstructions(
        shown.original[None],
        shown.hidden.reshape(1, -1),
        shown.reconstructed[None],
        patch_size=(1, 1),
        mean=0.0,
        std=0.5,
        title="\n".join(filter(None, (view.name, note))),
        features=features,
    )
    _write(folder / "picture.png", _png(figure))
    for column, sound in zip(COLUMNS, view.sounds):
        _write(folder / f"{column}.wav", sound)


def _printable(name: str | Path) -> str:
    """A file name as text; bytes that are not UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _png(figure: Figure) -> bytes:
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return file.getvalue()


def _wav(samples: Tensor, sample_rate: int) -> bytes:
    with io.BytesIO() as file:
        soundfile.write(file, samples.numpy(), sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
