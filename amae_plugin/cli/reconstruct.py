"""Make a page to see and hear what a pretrained model fills in where recordings are hidden.

Hides parts of recordings, has a pretraining model fill them in, and writes index.html. This one file shows spectrograms
and plays sounds of each clip side by side: original, masked and reconstructed. It needs no network. A folder for each
clip holds the same as picture.png and three WAV files. Of a longer recording it takes --seconds from --start on.

A model of sound and picture also fills in pictures: the frame in the middle of a video's piece, a picture that lies
beside a sound under its name, or what a manifest (.tsv) lists. Without a picture, it fills in the sound alone.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.cli.arguments import above_zero, from_zero
from amae_plugin.cli.choices import MASKINGS
from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.corpora.audio_files import VIDEO_EXTENSIONS
from amae_plugin.corpora.pairs import picture_beside
from amae_plugin.errors import UserError, printable
from amae_plugin.files import replacing, try_place, writing

if TYPE_CHECKING:
    from amae_plugin.data.manifest import Picture
    from amae_plugin.inference.clips import ClipFiles, Excerpt

_PAGE = "index.html"
_LONGEST = 600  # seconds of a clip, whose page is 130 MB and takes minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser, "recording or video, folder to search for them, or manifest (.tsv)")
    add, default = parser.add_argument, "(default: the model's in training)"
    add("--out", type=Path, required=True, metavar="DIR", help="folder of index.html")
    add("--mask-ratio", type=float, metavar="R", help=f"hidden share, between 0 and 1 {default}")
    add("--strategy", metavar="NAME", help=f"masking strategy: {', '.join(MASKINGS)} {default}")
    add("--start", type=from_zero, default=0.0, metavar="S", help="second at which the piece starts (%(default)g)")
    seconds = f"longest piece of a recording, at most {_LONGEST} (%(default)g)"
    add("--seconds", type=above_zero, default=30.0, metavar="S", help=seconds)
    add("--seed", type=int, default=1, metavar="N", help="random seed of the masks (%(default)s)")
    add("--sound-alone", action="store_true", help="leave pictures out")


def run(args: argparse.Namespace) -> int:
    """Write the page and a folder for each clip, and list the files that cannot be used."""
    if args.seconds > _LONGEST:
        raise UserError(f"--seconds {args.seconds:g}: a page holds at most {_LONGEST} s of a recording; use --start")
    import numpy as np
    from torch import Tensor

    from amae_plugin.checkpoints import Checkpoint
    from amae_plugin.data.audio import AudioError
    from amae_plugin.data.log_mel import LogMel
    from amae_plugin.data.pictures import load_picture
    from amae_plugin.inference.clips import ClipFiles, Excerpt
    from amae_plugin.inference.reconstruction import Reconstructor
    from amae_plugin.metrics.band_errors import BandErrors
    from amae_plugin.progress import tqdm
    from amae_plugin.visual.page import ClipView, render
    from amae_plugin.visual.spectrograms import COLUMNS, NORMALIZED_TARGETS

    options = {name: vars(args)[name] for name in ("strategy", "mask_ratio", "seed", "batch_size", "device")}
    reconstructor = Reconstructor(Checkpoint.read(args.checkpoint), **options)
    front_end, length = reconstructor.input.front_end, reconstructor.input.target_length
    if not isinstance(front_end, LogMel):
        raise UserError(
            f"{args.checkpoint}: its front end '{front_end.name}' has no inverse here, so there would be no sounds; "
            f"that of '{LogMel.name}' has one"
        )
    excerpt = Excerpt(args.start, args.seconds)
    paths, listed = _list(args.paths)
    clips = ClipFiles(paths, front_end, args.workers, "reconstructing", excerpt)
    wanted = None if args.sound_alone else reconstructor.input.image
    names, index = _make_room(args.out, clips), args.out / _PAGE
    window = length * front_end.shift_samples / front_end.sample_rate
    note = NORMALIZED_TARGETS if reconstructor.normalizes_targets else None
    facts = {
        "checkpoint": printable(str(args.checkpoint)),
        "model": f"{reconstructor.checkpoint.model_settings['_name']}, {window:g} s at a time",
        "hidden": f"{reconstructor.masking}, seed {args.seed}",
    }
    if note:
        facts["normalised targets"] = note
    views: list[ClipView] = []
    for path, waveform in clips:
        assert isinstance(waveform, Tensor)  # as excerpts are
        image = None
        try:
            if wanted is not None:
                place = listed.get(path) or _find_picture(path, excerpt, clips.seconds[path])
                image = None if place is None else wanted(load_picture(place))
        except AudioError as unusable:
            clips.skipped[str(path)] = str(unusable)
            continue
        name, windows = printable(names[path]), math.ceil(int(front_end.frames_in(np.array(len(waveform)))) / length)
        # Of one clip, whose windows are filled in and which is then made audible.
        with tqdm(total=windows + len(COLUMNS), desc=name, unit="step", leave=False, position=1) as bar:
            reconstruction = reconstructor(waveform, bar.update, image)
            views.append(ClipView.make(name, reconstruction, front_end, len(waveform), bar.update))
        views[-1].write(args.out / names[path], front_end, note)
    for path, seconds in clips.seconds.items():
        if seconds > sum(excerpt) or (seconds > args.start > 0):
            end = min(seconds, sum(excerpt))
            print(
                f"{printable(str(path))}: shown from {args.start:g} to {end:g} of {seconds:.1f} s (--start, --seconds)",
                file=sys.stderr,
            )
    code = conclude(clips)
    page = render(views, front_end, facts)
    with writing(index), replacing(index) as partial:
        partial.write_text(page, encoding="utf-8")
    error = BandErrors.pool(view.reconstruction.error for view in views).total_rms
    reference = BandErrors.pool(view.reconstruction.reference for view in views).total_rms
    if math.isfinite(error):
        print(f"error of the hidden part: {error:.1f} dB (straight lines between visible frames: {reference:.1f} dB)")
    print(f"{index}: {len(views):,} {'clip' if len(views) == 1 else 'clips'}, {len(page) / 1e6:.1f} MB")
    return code


def _list(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Picture]]:
    """List the files to reconstruct, with those of manifests, and the pictures that manifests name.

    Raises:
        UserError: a manifest cannot be read, or lists a piece of a file.
    """
    from amae_plugin.data.manifest import Manifest

    files: list[Path] = []
    pictures: dict[Path, Picture] = {}
    for path in paths:
        if path.suffix != ".tsv":
            files.append(path)
            continue
        manifest = Manifest.read(path).require_clips()
        for index in range(len(manifest)):
            clip = manifest[index]
            if clip.kind != "file":
                remedy = "give the file itself, with --start and --seconds"
                raise UserError(f"{path}, line {index + 2}: {manifest.name(index)} is a piece of a file; {remedy}")
            files.append(Path(clip.path))
            if manifest.has_pictures:
                pictures[files[-1]] = manifest.picture(index)
    return files, pictures


def _find_picture(path: Path, excerpt: Excerpt, seconds: float) -> Picture | None:
    """Find the picture of a recording that lasts so many seconds: its video, or one beside it; None without one."""
    from amae_plugin.data.manifest import Picture

    if path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS:
        return Picture(str(path), excerpt.start, min(excerpt.seconds, seconds - excerpt.start))
    found = picture_beside(path)
    return None if found is None else Picture(str(found))


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
        try_place(out / _PAGE)
    if len(set(clips.names.values())) == len(clips):
        return clips.names
    root = os.path.commonpath([path.absolute().parent for path in clips.names])
    return {path: str(path.absolute().relative_to(root)) for path in clips.names}
