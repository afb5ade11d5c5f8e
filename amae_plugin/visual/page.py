"""One HTML file to look at and listen to reconstructions, with images, sounds, style and script inside."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import soundfile
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from amae_plugin.data.log_mel import FrontEnd
from amae_plugin.files import replacing, writing
from amae_plugin.inference.reconstruction import FilledPicture, Reconstruction, make_audible
from amae_plugin.metrics.band_errors import BandErrors
from amae_plugin.visual import spectrograms
from amae_plugin.visual.style import ROUND_STEPS, Width, save

_WIDEST = 16_384  # pixels of an image that every browser draws
_RANGES = 8  # ranges of bands with a row in a table
SOUNDS = tuple(f"{column}.wav" for column in spectrograms.COLUMNS)
PICTURE = "picture"
"""Names of the files of a clip: its sounds, and its picture without the ending."""


class ClipView(NamedTuple):
    """A clip to be shown.

    Attributes:
        name: heading of the clip.
        reconstruction: spectrograms of the clip.
        sounds: WAV files of the original, the masked and the reconstructed clip.
    """

    name: str
    reconstruction: Reconstruction
    sounds: Sequence[bytes]

    @classmethod
    def make(
        cls,
        name: str,
        reconstruction: Reconstruction,
        front_end: FrontEnd,
        samples: int,
        advance: Callable[[int], object] = int,
    ) -> ClipView:
        """Add the sounds to the reconstruction of a clip of this length in samples, see :func:`make_audible`."""
        sounds = []
        for sound in make_audible(reconstruction, front_end, samples, advance):
            file = io.BytesIO()
            soundfile.write(file, sound.numpy(), front_end.sample_rate, format="WAV", subtype="PCM_16")
            sounds.append(file.getvalue())
        return cls(name, reconstruction, sounds)

    def write(
        self,
        folder: Path,
        front_end: FrontEnd,
        note: str | None = None,
        formats: Sequence[str] = ("png",),
        width: Width = None,
    ) -> None:
        """Write the picture and the three sounds to a folder, which is made.

        Args:
            folder: the folder.
            front_end: front end of the clip.
            note: stands in the picture's title.
            formats: formats of the picture, of those that matplotlib writes.
            width: width of the picture.

        Raises:
            UserError: a file cannot be written.
        """
        title = "\n".join(filter(None, (self.name, note)))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            figure = spectrograms.plot_reconstructions([self.reconstruction], front_end, title=title, width=width)
            save(figure, folder / PICTURE, formats)
            for name, sound in zip(SOUNDS, self.sounds):
                with replacing(folder / name) as partial:
                    partial.write_bytes(sound)


class Page:
    """A page that grows clip by clip. It is whole after each, and says how many are to come.

    Its content security policy forbids it to use a network.

    Args:
        path: the HTML file, which the first clip makes or replaces.
        front_end: front end of the clips, whose frame shift and mel bands give the axes.
        facts: names and values that the clips have in common.
        clips: number of clips to come.
        takes_pictures: whether clips may come with pictures.

    Attributes:
        size: bytes written so far.
    """

    def __init__(
        self, path: Path, front_end: FrontEnd, facts: Mapping[str, str], clips: int, takes_pictures: bool = False
    ):
        bands = front_end.num_mel_bins
        self.path = path
        self.size = 0
        self._front_end = front_end
        self._clips = clips
        self._errors: list[tuple[BandErrors, BandErrors]] = []
        self._clips_end = 0  # bytes of what stays as it is
        self._parts: Any = template("page.html.jinja").make_module(
            {
                "facts": facts,
                "takes_pictures": takes_pictures,
                "ticks": {f"{hz:,}": place / bands for hz, place in spectrograms.frequency_ticks(front_end).items()},
                "bands": bands,
                "hz": (front_end.low_hz, front_end.sample_rate / 2),
            }
        )

    def __len__(self) -> int:
        return len(self._errors)

    @property
    def errors(self) -> tuple[BandErrors, BandErrors]:
        """Errors of the model, and of straight lines in its place, in all clips so far, of which there is one."""
        error, reference = map(BandErrors.pool, zip(*self._errors))
        return error, reference

    def add(self, clip: ClipView) -> None:
        """Show another clip.

        Raises:
            UserError: the file cannot be written; it then shows the clips before this one.
        """
        errors = clip.reconstruction.error, clip.reconstruction.reference
        article = self._parts.article(_clip(self._front_end, clip, *errors), len(self) + 1)
        self._errors.append(errors)
        try:
            self._write(article if self._clips_end else self._parts.top() + article)
        except BaseException:
            self._errors.pop()
            if self._errors:
                self._write("")
            raise

    def finish(self) -> None:
        """Say that no clip is to come, after at least one; those that cannot be used may be missing.

        Raises:
            UserError: the file cannot be written.
        """
        self._clips = len(self)
        self._write("")

    def _write(self, clips: str) -> None:
        """Write clips after those of before, and the page's end."""
        bottom = self._parts.bottom(len(self), self._clips, _errors(self._front_end, *self.errors))
        with writing(self.path), self.path.open("r+b" if self._clips_end else "wb") as file:
            file.seek(self._clips_end)
            file.truncate()
            file.write(clips.encode())
            end = file.tell()
            file.write(bottom.encode())
            self.size = file.tell()
        self._clips_end = end


def template(name: str, package: str = __package__) -> jinja2.Template:
    """Load a page's template from the folder of a package; what it includes may also lie in this folder."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(each, ".") for each in (package, __package__)])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["decibels"] = lambda value: f"{value:.1f} dB" if math.isfinite(value) else "no value"
    return environment.get_template(name)


def _clip(front_end: FrontEnd, clip: ClipView, error: BandErrors, reference: BandErrors) -> dict[str, object]:
    shown = clip.reconstruction
    seconds = len(shown.original) * front_end.shift_samples / front_end.sample_rate
    pictures = spectrograms.decibel_panels(shown)
    span = spectrograms.colour_span(pictures[0])
    return {
        "name": clip.name,
        "seconds": seconds,
        "scrolls": seconds > spectrograms.SIDE_BY_SIDE_UP_TO,
        "windows": shown.windows,
        "hidden": f"{shown.hidden.double().mean():.0%}",
        "span": span,
        "ticks": {f"{tick:g}": tick / seconds for tick in _round_ticks(seconds) if tick <= seconds},
        "panels": [
            (column, data_url("image/png", _spectrogram(picture, span)), data_url("audio/wav", sound))
            for column, picture, sound in zip(spectrograms.COLUMNS, pictures, clip.sounds)
        ],
        "pictures": [] if shown.picture is None else _pictures(shown.picture),
        "error": error.total_rms,
        "errors": _errors(front_end, error, reference),
    }


def _pictures(picture: FilledPicture) -> list[tuple[str, str]]:
    """Give name and address of original, masked and reconstructed picture."""
    panels = spectrograms.picture_panels(picture)
    return [(column, data_url("image/png", png(pixels))) for column, pixels in zip(spectrograms.COLUMNS, panels)]


def _errors(front_end: FrontEnd, error: BandErrors, reference: BandErrors) -> dict[str, object] | None:
    """Prepare the error of each band as a plot, and that of ranges of bands as a table; None if nothing was hidden."""
    if not error.counts.any():
        return None
    lines = {"reference": reference.rms().numpy(), "model": error.rms().numpy()}
    ticks = _round_ticks(np.nanmax(np.concatenate([[1.0], *lines.values()])))
    ranges = itertools.pairwise(np.linspace(0, front_end.num_mel_bins, _RANGES + 1).round().astype(int))
    hz = front_end.band_edges
    return {
        "model": error.total_rms,
        "reference": reference.total_rms,
        "ticks": {f"{tick:g}": tick / ticks[-1] for tick in ticks},
        "lines": [(name, points) for name, values in lines.items() for points in _polylines(values / ticks[-1])],
        "rows": [(hz[low], hz[end], error.range_rms(low, end), reference.range_rms(low, end)) for low, end in ranges],
    }


def _round_ticks(high: float) -> Sequence[float]:
    """Return about five round numbers from 0 to the first that is not below *high*."""
    return MaxNLocator(6, steps=ROUND_STEPS).tick_values(0, high)


def _polylines(shares: np.ndarray) -> list[str]:
    """Return the points of lines over bands, from 0 at the bottom to 1; bands without a value leave gaps."""
    runs = np.ma.clump_unmasked(np.ma.masked_invalid(shares))
    return [" ".join(f"{band + 0.5},{1 - shares[band]:.4f}" for band in range(run.start, run.stop)) for run in runs]


def _spectrogram(decibels: np.ndarray, span: float) -> bytes:
    """Draw (frames, bands), NaN where hidden, with time to the right and frequency upwards, a pixel a value.

    A pixel of a very long clip is the value in the middle of several frames.
    """
    every = math.ceil(len(decibels) / _WIDEST)
    pixels, file = decibels[every // 2 :: every].T, io.BytesIO()
    imsave(file, pixels, -span, 0, spectrograms.COLOURS, format="png", origin="lower")
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """Draw a picture (S, S, 3) of values from 0 to 1."""
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return file.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """Write the content of a file of a MIME type as the address of an image or a sound."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
