"""One HTML file to look at and listen to reconstructions: images, sounds, style and script are inside of it."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib import resources
from operator import add
from typing import NamedTuple

import numpy as np
from matplotlib.image import imsave

from amae_plugin.data.log_mel import DB_PER_NEPER, LOW_HZ, FrontEnd
from amae_plugin.inference.reconstruction import Reconstruction
from amae_plugin.metrics.band_errors import BandErrors
from amae_plugin.visual.spectrograms import (
    COLUMNS,
    SIDE_BY_SIDE_UP_TO,
    colour_span,
    colours,
    frequency_ticks,
    hz_of_band,
    round_step,
    time_ticks,
)

_WIDEST = 16_384  # pixels of an image that every browser draws
_RANGES = 8  # of bands that have a row in a table
_TITLE = "Hidden and filled in"
_NOTES = (
    "The pictures are log-mel spectrograms, which is what the model gets of a recording. It saw what is not grey "
    "in the masked one, and filled in the rest. Colours are decibels below the loudest value of the clip. A click into "
    "a picture plays from there.",
    "The sounds are made from the pictures, the original too: a spectrogram has no phases, which the Griffin-Lim "
    "algorithm invents. So compare them with each other, and not with the recording. In the masked one, silence stands "
    "for what is hidden. The three sounds of a clip are equally amplified.",
    "The error is the root mean squared difference of the reconstruction from the original where something was hidden, "
    "in dB. To compare with, that of straight lines between the nearest visible frames of each band, which need no "
    "model.",
    "A clip that is longer than the model's input is cut into windows one after the other, the last of which ends with "
    "the clip and adds only what the others left: every moment is reconstructed once. A shorter one is followed by "
    "padding, which is not shown.",
)
_SCROLLS = ' tabindex="0" role="group" aria-label="Spectrograms, which scroll sideways"'


class ClipView(NamedTuple):
    """What is shown of a clip.

    Attributes:
        name: its heading.
        reconstruction: what to look at.
        sounds: WAV files of the original, the masked and the reconstructed clip.
    """

    name: str
    reconstruction: Reconstruction
    sounds: Sequence[bytes]


def render(clips: Sequence[ClipView], features: FrontEnd, facts: Mapping[str, str]) -> str:
    """The page.

    It asks nothing of a network, which a content security policy in it makes sure of.

    Args:
        clips: at least one.
        features: the front end, whose frame shift and mel bands give the axes.
        facts: what the clips have in common, as names and values.
    """
    style, script = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    fact_list = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in _NOTES)
    body = [_clip(number, clip, features) for number, clip in enumerate(clips, 1)]
    if len(clips) > 1:
        body.append(_all_clips(clips, features))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_TITLE}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_TITLE}</h1>
<dl>{fact_list}</dl>
<details><summary>How to read this page</summary>{notes}</details>
</header>
<main>
{"".join(body)}</main>
<script>
{script}</script>
</body>
</html>
"""


def _clip(number: int, clip: ClipView, features: FrontEnd) -> str:
    shown = clip.reconstruction
    seconds = len(shown.original) * features.shift_samples / features.sample_rate
    original, reconstructed = (
        (values.double() * DB_PER_NEPER).numpy() for values in (shown.original, shown.reconstructed)
    )
    masked = np.where(shown.hidden.numpy(), np.nan, original)
    peak = float(original.max())
    span = colour_span(peak - float(np.percentile(original, 2)))
    error, share = shown.error, f"{float(shown.hidden.double().mean()):.0%}"
    says = (
        f"Spectrogram of {clip.name}: 0 to {seconds:.2f} seconds, {LOW_HZ:.0f} to {features.sample_rate / 2:,.0f} Hz",
        f"The same spectrogram with {share} of it hidden",
        f"The same spectrogram with the hidden part as the model filled it in, {_db(error.total_rms)} off",
    )
    panels = "".join(
        _panel(column, clip.name, text, _png(values - peak, span), sound, seconds, features)
        for column, text, values, sound in zip(COLUMNS, says, (original, masked, reconstructed), clip.sounds)
    )
    windows = f" <span>{shown.windows:,} windows</span>" if shown.windows > 1 else ""
    kind, scrolls = ("short", "") if seconds <= SIDE_BY_SIDE_UP_TO else ("long", _SCROLLS)
    return f"""<article class="{kind}" aria-labelledby="clip-{number}">
<h2 id="clip-{number}">{html.escape(clip.name)}</h2>
<p class="summary"><span>{seconds:.2f} s</span>{windows} <span>{share} hidden</span>
<span>error {_db(error.total_rms)}</span> <span class="scale">{-span:.0f} dB <i aria-hidden="true"></i> 0 dB</span>
<span class="scale"><i class="hidden-part" aria-hidden="true"></i> hidden</span></p>
<div class="panels" style="--seconds: {seconds:.2f}"{scrolls}>
{panels}</div>
{_errors(error, shown.reference, features)}</article>
"""


def _all_clips(clips: Sequence[ClipView], features: FrontEnd) -> str:
    error = reduce(add, (clip.reconstruction.error for clip in clips))
    reference = reduce(add, (clip.reconstruction.reference for clip in clips))
    return f"""<article aria-labelledby="all-clips">
<h2 id="all-clips">All {len(clips):,} clips</h2>
{_errors(error, reference, features)}</article>
"""


def _panel(column: str, clip: str, says: str, picture: bytes, sound: bytes, seconds: float, features: FrontEnd) -> str:
    name = column.capitalize()
    image = f'<img src="{_data("image/png", picture)}" alt="{html.escape(says)}">'
    cursor = '<i class="cursor" aria-hidden="true" hidden></i>'
    across = {f"{value:g}": value / seconds for value in time_ticks(seconds)}
    up = {f"{hz:,}": place / features.num_mel_bins for hz, place in frequency_ticks(features).items()}
    return f"""<figure>
<div class="head"><figcaption>{name}</figcaption>
<audio controls preload="metadata" aria-label="{name}: {html.escape(clip)}"
src="{_data("audio/wav", sound)}"></audio></div>
{_plot(image + cursor, across, up, "s", "Hz", f'data-seconds="{seconds:.4f}"')}</figure>
"""


def _errors(error: BandErrors, reference: BandErrors, features: FrontEnd) -> str:
    """The error of each band as a plot, and that of ranges of bands as a table."""
    rms, straight = error.rms().numpy(), reference.rms().numpy()
    known = np.concatenate([rms, straight])
    known = known[np.isfinite(known)]
    if not len(known):
        return "<p>Nothing of this clip was hidden.</p>"
    bands = len(rms)
    highest = max(float(known.max()), 1.0)
    step = round_step(highest)
    top = step * math.ceil(highest / step)
    lines = "".join(_line(values, top, name) for name, values in (("reference", straight), ("model", rms)))
    drawing = f'<svg viewBox="0 0 {bands} 1" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'
    across = {f"{hz:,}": place / bands for hz, place in frequency_ticks(features).items()}
    up = {f"{value:g}": value / top for value in np.arange(0, top + step / 2, step)}
    edges = np.linspace(0, bands, _RANGES + 1).round().astype(int)
    rows = "".join(
        f"<tr><th scope='row'>{_hz(low, features)} to {_hz(high, features)}</th>"
        f"<td>{_db(error.range_rms(low, high))}</td><td>{_db(reference.range_rms(low, high))}</td></tr>"
        for low, high in itertools.pairwise(edges)
    )
    return f"""<section class="errors">
<h3>Error of the hidden part, band by band</h3>
<p class="key"><span class="model">model {_db(error.total_rms)}</span>
<span class="reference">straight lines between visible frames {_db(reference.total_rms)}</span></p>
{_plot(drawing, across, up, "Hz", "dB")}
<details><summary>As a table</summary>
<table><thead><tr><th scope="col">Hz</th><th scope="col">model</th><th scope="col">straight lines</th></tr></thead>
<tbody>{rows}</tbody></table></details>
</section>
"""


def _plot(
    inside: str, across: Mapping[str, float], up: Mapping[str, float], x: str, y: str, attributes: str = ""
) -> str:
    """Something with axes: names of ticks and where they are, from 0, the left and the bottom, to 1."""
    below = "".join(f'<span style="left: {100 * share:.3f}%">{name}</span>' for name, share in across.items())
    beside = "".join(f'<span style="bottom: {100 * share:.3f}%">{name}</span>' for name, share in up.items())
    return f"""<div class="plot">
<div class="y" aria-hidden="true"><b>{y}</b>{beside}</div>
<div class="inside" {attributes}>{inside}</div>
<div class="x" aria-hidden="true">{below}<b>{x}</b></div>
</div>
"""


def _line(values: np.ndarray, top: float, name: str) -> str:
    """A line over bands; bands without a value leave gaps."""
    lines = []
    for run in np.ma.clump_unmasked(np.ma.masked_invalid(values)):
        points = " ".join(f"{band + 0.5},{1 - values[band] / top:.4f}" for band in range(run.start, run.stop))
        lines.append(f'<polyline class="{name}" points="{points}"/>')
    return "".join(lines)


def _png(decibels: np.ndarray, span: float) -> bytes:
    """(frames, bands), NaN where hidden, with time to the right and frequency upwards, a pixel a value.

    Of very long clips, every pixel is the value in the middle of several frames.
    """
    every = math.ceil(len(decibels) / _WIDEST)
    shares = (decibels[every // 2 :: every].T / span + 1).clip(0, 1)
    with io.BytesIO() as file:
        imsave(file, colours()(np.ma.masked_invalid(shares), bytes=True)[..., :3], format="png", origin="lower")
        return file.getvalue()


def _hz(place: float, features: FrontEnd) -> str:
    return f"{hz_of_band(place, features):,.0f}"


def _db(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "no value"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
