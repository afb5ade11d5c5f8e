"""Spectrograms and pictures of clips: original, with a part hidden, and with that part reconstructed."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import DB_PER_NEPER, FrontEnd
from amae_plugin.inference.reconstruction import FilledPicture, Reconstruction, fill_pictures
from amae_plugin.models.base import PretrainingModel
from amae_plugin.visual.style import LABEL_SIZE, ROUND_STEPS, TICK_SIZE, Width, new_figure, wrap

COLUMNS = ("original", "masked", "reconstructed")
NORMALIZED_TARGETS = "Predicted: the pattern in hidden patches; level and spread come from visible ones"
"""Note for pictures of a model with normalised targets."""

SIDE_BY_SIDE_UP_TO = 4.0
"""Longest clip in seconds whose three panels fit side by side; each panel of a longer one needs a page's width."""
_HIDDEN = "#a9b4bd"
COLOURS = colormaps["magma"].with_extremes(bad=_HIDDEN)
"""Colour map; hidden parts are a cool grey, which no value has."""

_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)
_PICTURE_INCHES = 1.5
_BELOW_INCHES = 0.4  # of a row
_LEAST_DB, _MOST_DB = 30.0, 80.0  # limits of the colours' range


def plot_reconstructions(
    clips: Sequence[Reconstruction],
    front_end: FrontEnd,
    names: Sequence[str] | None = None,
    title: str | None = None,
    width: Width = None,
) -> Figure:
    """Draw each clip in a row: the spectrogram, its visible part, and the reconstruction; then its picture likewise.

    The panels of a single clip of more than four seconds, or in a paper's column, are below each other instead. Colours
    of spectrograms are decibels relative to the maximum of the clip's original, the same in all columns.

    Args:
        clips: reconstructions of clips of any lengths.
        front_end: front end of the clips, whose frame shift and mel bands give the axes.
        names: names of the clips, written above the rows.
        title: title of the figure.
        width: of the figure.

    Raises:
        ValueError: there are no clips, or the spectrograms of a clip have different shapes.
    """
    if not clips:
        raise ValueError("there are no clips to draw")
    panels = [decibel_panels(clip) for clip in clips]
    span = colour_span(*(original for original, _, _ in panels))
    frames_a_second = front_end.sample_rate / front_end.shift_samples
    seconds = max(len(clip.original) for clip in clips) / frames_a_second

    stacked = len(clips) == 1 and (seconds > SIDE_BY_SIDE_UP_TO or width == "column")
    rows, columns = (3, 1) if stacked else (len(clips), 3)
    panel_width = min(max(2.2, seconds * 0.55), 12.0 if stacked else 4.6)
    pictured = any(clip.picture is not None for clip in clips)
    widths = [columns * panel_width + 1.3, *([columns * _PICTURE_INCHES] if pictured else [])]
    row_inches = 1.55 if width is None else 1.25
    figure = new_figure(width, sum(widths), row_inches * rows + 0.75, title)
    figure.set_layout_engine("constrained", h_pad=0.04, w_pad=0.05, hspace=0.03, wspace=0.02)
    halves = figure.add_gridspec(1, len(widths), width_ratios=widths)
    grid = halves[0].subgridspec(rows, columns).subplots(squeeze=False, sharex=True, sharey=True)
    if pictured:
        _draw_pictures(halves[1].subgridspec(rows, columns).subplots(squeeze=False).reshape(len(clips), 3), clips)
    axes = grid.reshape(len(clips), 3)
    for ax, values in zip(axes.flat, itertools.chain(*panels)):
        extent = (0, len(values) / frames_a_second, 0, values.shape[1])  # time to the right, frequency upwards
        ax.imshow(
            values.T, COLOURS, vmin=-span, vmax=0, origin="lower", aspect="auto", interpolation="nearest", extent=extent
        )
        ax.tick_params(labelsize=TICK_SIZE, length=2.5, width=0.6)
        ax.spines[:].set_linewidth(0.6)
    for ax, name in zip(axes[:, 0], names or ()):
        place = ((0, 1), (0, 3), "axes fraction", "offset points")
        ax.annotate(name, *place, va="bottom", fontsize=LABEL_SIZE, weight="bold", parse_math=False)
    for ax, column in zip(axes[0], COLUMNS):
        ax.set_title(column, fontsize=10, pad=5 if names is None or stacked else 17)
    for ax in grid[-1]:
        ax.set_xlabel("seconds", fontsize=LABEL_SIZE)
    for ax in grid[:, 0]:
        ax.set_ylabel("kHz (mel)", fontsize=LABEL_SIZE)
    ticks = frequency_ticks(front_end, front_end.num_mel_bins * TICK_SIZE / 72 / (row_inches - _BELOW_INCHES))
    first = axes[0, 0]  # whose axes all panels share
    first.set(xlim=(0, seconds), ylim=(0, front_end.num_mel_bins))
    first.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
    first.xaxis.set_major_formatter("{x:g}")
    first.set_yticks(list(ticks.values()), [f"{hz / 1000:g}" for hz in ticks])
    bar = figure.colorbar(first.images[0], ax=axes, fraction=0.03, pad=0.015, aspect=20 + 8 * rows)
    bar.set_label(wrap("dB relative to the maximum", (row_inches - 0.25) * rows, LABEL_SIZE), fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    return figure


def _draw_pictures(axes: np.ndarray, clips: Sequence[Reconstruction]) -> None:
    """Draw the pictures of clips on axes (clips, 3), which stay empty for a clip without one."""
    for ax in axes.flat:
        ax.set_axis_off()
    for row, clip in zip(axes, clips):
        for ax, pixels in zip(row, () if clip.picture is None else picture_panels(clip.picture)):
            ax.imshow(pixels)
    for ax, column in zip(axes[0], COLUMNS):
        ax.set_title(column, fontsize=10, pad=5)


def picture_panels(picture: FilledPicture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return original, masked and reconstructed picture, (S, S, 3) from 0 to 1 each; what is hidden is grey."""
    grey = torch.tensor(to_rgb(_HIDDEN))[:, None, None]
    masked = torch.where(picture.hidden, grey, picture.original)
    first, second, third = (
        values.permute(1, 2, 0).numpy() for values in (picture.original, masked, picture.reconstructed)
    )
    return first, second, third


def draw_clips(
    model: PretrainingModel, dataset: AudioDataset, clips: Sequence[int], names: Sequence[str] | None = None
) -> Figure:
    """Hide patches of some clips, reconstruct them and draw both.

    The masks depend on the clips only, so two models of the same grid are shown the same patches. The model computes
    as it does in validation and is left in the mode it was in. A note tells of normalised targets.

    Args:
        model: model of any system that draws, also inside fairseq's subclass, on any device.
        dataset: validation clips, neither augmented nor cropped at random.
        clips: indices of the clips; those that cannot be decoded are left out.
        names: names of the clips; their file names if None.

    Raises:
        ValueError: none of the clips can be decoded.
    """
    names = names or [Path(dataset.manifest[index].path).name for index in clips]
    decoded = [(name, item) for name, item in zip(names, (dataset[index] for index in clips)) if item is not None]
    if not decoded:
        raise ValueError(f"{dataset.manifest.path}: none of the clips {list(clips)} can be decoded")
    names, items = zip(*decoded)
    batch = dataset.collate(items)
    device = next(model.parameters()).device
    keys = ("source", "seed", "padding_mask", "image")
    inputs = {key: batch[key].to(device) for key in keys if key in batch}
    source = inputs["source"]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(**inputs)
            reconstructed = model.reconstruct(source, output["prediction"], output["mask"], inputs["padding_mask"])
            pictures = fill_pictures(model, dataset.input, inputs, output)
    finally:
        model.train(was_training)
    hidden = model.encoder.expand_mask(output["mask"], source.shape[1])
    original, reconstructed = (dataset.input.denormalize(values.double().cpu()) for values in (source, reconstructed))
    drawn = [
        Reconstruction(
            original[clip, :length],
            hidden[clip, :length].cpu(),
            reconstructed[clip, :length],
            windows=1,
            picture=picture,
        )
        for clip, (length, picture) in enumerate(itertools.zip_longest(batch["lengths"].tolist(), pictures))
    ]
    title = NORMALIZED_TARGETS if model.normalizes_targets else None
    return plot_reconstructions(drawn, dataset.input.front_end, names=names, title=title)


def decibel_panels(clip: Reconstruction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three spectrograms (T, F) of a clip in dB relative to the original's maximum, NaN where hidden.

    Raises:
        ValueError: their shapes differ.
    """
    shapes = [tuple(values.shape) for values in (clip.original, clip.hidden, clip.reconstructed)]
    if len(set(shapes)) > 1:
        raise ValueError(f"original, hidden part and reconstruction must have one shape, not {shapes}")
    original, reconstructed = (values.double().numpy() * DB_PER_NEPER for values in (clip.original, clip.reconstructed))
    peak = original.max()
    return original - peak, np.where(clip.hidden.numpy(), np.nan, original - peak), reconstructed - peak


def colour_span(*originals: np.ndarray) -> float:
    """Return the decibels that the colours stand for, the same for several originals (T, F) whose loudest is 0 dB."""
    return float(np.clip(max(-np.percentile(original, 2) for original in originals), _LEAST_DB, _MOST_DB))


def frequency_ticks(front_end: FrontEnd, distance: float = 0.0) -> dict[int, float]:
    """Return places by frequency in Hz on an axis whose band i covers i to i + 1.

    They are an octave apart, from the highest down to where octaves become narrower than a *distance* in bands.
    """
    edges = front_end.band_edges
    places = {hz: float(np.interp(hz, edges, np.arange(len(edges)))) for hz in _TICKS_HZ}
    inside = {hz: place for hz, place in places.items() if 0.5 < place < front_end.num_mel_bins - 0.5}
    return {hz: place for hz, place in inside.items() if inside.get(2 * hz, math.inf) - place >= distance}
