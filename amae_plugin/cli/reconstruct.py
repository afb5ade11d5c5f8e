"""Make a page to see and hear what a pretrained model fills in where recordings are hidden.

Hides parts of recordings, has a pretraining model fill them in, and writes index.html. This one file shows spectrograms
and plays sounds of each clip side by side: original, masked and reconstructed. It needs no network. A folder for each
clip holds the same as a picture and three WAV files. Of a longer recording it takes --seconds from --start on. The page
grows clip by clip, so a command that is stopped leaves those it had finished. clips.json lists them with their errors.
Another run with the same --out removes the files of these clips, and nothing else.

A model of sound and picture also fills in pictures: the frame in the middle of a video's piece, a picture that lies
beside a sound under its name, or what a manifest (.tsv) lists. Without a picture, it fills in the sound alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.cli.arguments import PICTURE_FORMATS, above_zero, add_formats, from_zero
from amae_plugin.cli.choices import MASKINGS
from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.corpora.audio_files import VIDEO_EXTENSIONS
from amae_plugin.corpora.pairs import picture_beside
from amae_plugin.errors import UserError, printable
from amae_plugin.files import reading, try_place, write_json, writing

if TYPE_CHECKING:
    from amae_plugin.data.manifest import Clip, Picture
    from amae_plugin.inference.clips import ClipFiles, Excerpt
    from amae_plugin.inference.reconstruction import Reconstruction

_PAGE, _RECORD = "index.html", "clips.json"
_LONGEST = 600  # seconds of a clip, whose page is 130 MB and takes minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser, "take this recording or video, those of this folder, or those of this manifest (.tsv)")
    add, default = parser.add_argument, "(default: the model's in training)"
    add("--out", type=Path, required=True, metavar="DIR", help="write index.html to this folder")
    add("--mask-ratio", type=float, metavar="R", help=f"hide this share, between 0 and 1 {default}")
    add("--strategy", metavar="NAME", help=f"hide by this strategy: {', '.join(MASKINGS)} {default}")
    add("--start", type=from_zero, default=0.0, metavar="S", help="begin at this second (default: %(default)g)")
    seconds = f"take this many seconds of a recording, at most {_LONGEST} (default: %(default)g)"
    add("--seconds", type=above_zero, default=30.0, metavar="S", help=seconds)
    add("--seed", type=int, default=1, metavar="N", help="draw the masks with this seed (default: %(default)s)")
    add("--sound-alone", action="store_true", help="leave the pictures out")
    add_formats(parser)


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
    from amae_plugin.progress import tqdm
    from amae_plugin.visual.page import ClipView, Page
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
    names = _make_room(args.out, clips)
    record = _Record(args.out)
    window = length * front_end.shift_samples / front_end.sample_rate
    note = NORMALIZED_TARGETS if reconstructor.normalizes_targets else None
    facts = {
        "checkpoint": printable(str(args.checkpoint)),
        "model": f"{reconstructor.checkpoint.model_settings['_name']}, {window:g} s at a time",
        "hidden": f"{reconstructor.masking}, seed {args.seed}",
    }
    if note:
        facts["normalised targets"] = note
    page = Page(args.out / _PAGE, front_end, facts, len(clips), wanted is not None)
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
            view = ClipView.make(name, reconstruction, front_end, len(waveform), bar.update)
        record.add(names[path], len(waveform) / front_end.sample_rate, reconstruction)
        view.write(args.out / names[path], front_end, note, args.formats, args.width)
        page.add(view)
    for path, seconds in clips.seconds.items():
        if seconds > sum(excerpt) or (seconds > args.start > 0):
            end = min(seconds, sum(excerpt))
            print(
                f"{printable(str(path))}: shown from {args.start:g} to {end:g} of {seconds:.1f} s (--start, --seconds)",
                file=sys.stderr,
            )
    code = conclude(clips)
    page.finish()
    error, reference = (errors.total_rms for errors in page.errors)
    if math.isfinite(error):
        print(f"error of the hidden part: {error:.1f} dB (straight lines between visible frames: {reference:.1f} dB)")
    print(f"{page.path}: {len(page):,} {'clip' if len(page) == 1 else 'clips'}, {page.size / 1e6:.1f} MB")
    return code


class _Record:
    """``clips.json``: the clips that the command has written to a folder, and their errors.

    Raises:
        UserError: the folder holds one that no run of the command has written.
    """

    def __init__(self, out: Path):
        self._path = out / _RECORD
        self._clips: list[dict[str, object]] = []
        self._earlier: list[Path] = []
        if self._path.exists():
            with reading(self._path):
                text = self._path.read_text(encoding="utf-8")
            try:
                self._earlier = [out / clip["clip"] for clip in json.loads(text)]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{self._path}: not written by this command; give another --out") from None

    def add(self, name: str, seconds: float, reconstruction: Reconstruction) -> None:
        """Note a clip before its files are written; with the first one, remove the files of an earlier run.

        Raises:
            UserError: a file cannot be removed or written.
        """
        from amae_plugin.visual.page import PICTURE, SOUNDS

        errors = {"error_db": reconstruction.error.total_rms, "straight_lines_db": reconstruction.reference.total_rms}
        finite = {key: value if math.isfinite(value) else None for key, value in errors.items()}
        hidden = float(reconstruction.hidden.double().mean())
        self._clips.append({"clip": name, "seconds": seconds, "hidden": hidden, **finite})
        root = self._path.parent
        with writing(root):
            for folder in self._earlier:
                if folder.resolve().is_relative_to(root.resolve()):
                    for file in (*SOUNDS, *(f"{PICTURE}.{form}" for form in PICTURE_FORMATS)):
                        (folder / file).unlink(missing_ok=True)
                    with suppress(OSError):  # it holds files of others
                        os.removedirs(folder)
            self._earlier = []
            write_json(self._path, self._clips)


def _list(paths: Sequence[Path]) -> tuple[list[Path | Clip], dict[Path, Picture]]:
    """List the files to reconstruct, with the clips of manifests, and the pictures that manifests name by clip.

    Raises:
        UserError: a manifest cannot be read.
    """
    from amae_plugin.data.manifest import Manifest

    found: list[Path | Clip] = []
    pictures: dict[Path, Picture] = {}
    for path in paths:
        if path.suffix != ".tsv":
            found.append(path)
            continue
        manifest = Manifest.read(path).require_clips()
        for index in range(len(manifest)):
            found.append(manifest[index])
            if manifest.has_pictures:
                pictures[Path(str(manifest[index]))] = manifest.picture(index)
    return found, pictures


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
