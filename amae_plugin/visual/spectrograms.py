"""Spectrograms as they were, as the encoder saw them, and as the decoder filled them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from amae_plugin.data.log_mel import DB_PER_NEPER, LOW_HZ, FrontEnd, LogMel
from amae_plugin.modules.embedding import Size2d, grid_size, unpatchify
from amae_plugin.visual.style import add_title

COLUMNS = ("original", "masked", "reconstructed")
NORMALIZED_TARGETS = "Predicted: the pattern in hidden patches; level and spread come from visible ones"
"""What is to be said of pictures of a model with normalised targets."""

SIDE_BY_SIDE_UP_TO = 4.0
"""Seconds of a clip whose three panels fit side by side; those of a longer one need the width of a page each."""
_HIDDEN = "#a9b4bd"  # a cool grey, which the colour map does not contain
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)
_LEAST_DB, _MOST_DB = 30.0, 80.0  # of the colour scale


def plot_reconstructions(
    original: Tensor,
    mask: Tensor,
    reconstructed: Tensor,
    *,
    patch_size: Size2d,
    mean: float,
    std: float,
    lengths: Sequence[int] | Tensor | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    features: FrontEnd | None = None,
) -> Figure:
    """One row a clip: the spectrogram, the patches that the encoder saw, and what the decoder made of them.

    A single clip of more than four seconds has them below each other instead.

    Colours are decibels below the loudest value of the clip's original, the same in all three columns.

    Args:
        original: (B, T, F) log-mel, normalised as ``(x - mean) / (2 std)``.
        mask: (B, L) bool, True = hidden; time-major patches, L together.
        reconstructed: (B, T, F), normalised in the same way, as a model's ``reconstruct`` gives it.
        patch_size: frames and bands of a patch.
        mean: of the normalisation.
        std: of the normalisation.
        lengths: (B,) frames of each clip before its padding begins, which is not drawn; all T if None.
        names: of the clips, written above the rows.
        title: of the figure.
        features: the front end, whose frame shift and mel bands give the axes; Audio-MAE's with F bands if None.

    Raises:
        ValueError: there are no clips, or the shapes do not agree.
    """
    clips, frames, bands = original.shape
    grid = grid_size(frames, bands, patch_size)
    if not clips or reconstructed.shape != original.shape or mask.shape != (clips, grid[0] * grid[1]):
        raise ValueError(
            f"originals {tuple(original.shape)}, reconstructions {tuple(reconstructed.shape)} and masks "
            f"{tuple(mask.shape)} do not belong together: (B, T, F) twice and (B, {grid[0] * grid[1]}), B at least 1"
        )
    features = features or LogMel(num_mel_bins=bands)
    ends = [frames] * clips if lengths is None else [min(max(int(length), 1), frames) for length in lengths]
    shown = min(max(ends), frames)
    hidden = unpatchify(mask[..., None].expand(-1, -1, patch_size[0] * patch_size[1]), grid, patch_size).cpu().numpy()
    originals, reconstructions = (_decibels(values, mean, std) for values in (original, reconstructed))
    peaks = [float(clip[:end].max()) for clip, end in zip(originals, ends)]
    floors = [float(np.percentile(clip[:end], 2)) for clip, end in zip(originals, ends)]
    span = colour_span(max(p - f for p, f in zip(peaks, floors)))

    seconds_a_frame = features.shift_samples / features.sample_rate
    stacked = clips == 1 and shown * seconds_a_frame > SIDE_BY_SIDE_UP_TO
    rows, columns = (3, 1) if stacked else (clips, 3)
    panel_width = min(max(2.2, shown * seconds_a_frame * 0.55), 12.0 if stacked else 4.6)
    figure = Figure(figsize=(columns * panel_width + 1.3, 1.55 * rows + 0.75), dpi=150)
    figure.set_layout_engine("constrained", h_pad=0.04, w_pad=0.05, hspace=0.03, wspace=0.02)
    grid_of_axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    axes = grid_of_axes.reshape(clips, 3)
    for row in range(clips):
        masked = np.where(hidden[row], np.nan, originals[row])
        for column, values in enumerate((originals[row], masked, reconstructions[row])):
            _draw(axes[row, column], values[: ends[row]] - peaks[row], span)
        if names is not None:
            axes[row, 0].annotate(
                names[row],
                (0, 1),
                (0, 3),
                "axes fraction",
                "offset points",
                va="bottom",
                fontsize=8.5,
                weight="bold",
                parse_math=False,
            )
    _label_axes(grid_of_axes, shown, seconds_a_frame, features)
    for column, name in enumerate(COLUMNS):
        axes[0, column].set_title(name, fontsize=10, pad=17 if names is not None and rows == clips else 5)
    bar = figure.colorbar(axes[0, 0].images[0], ax=axes, fraction=0.03, pad=0.015, aspect=20 + 8 * rows)
    bar.set_label("dB below the loudest value of the clip", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    add_title(figure, title)
    return figure


def colours() -> Colormap:
    """Of spectrograms; what is hidden has one that no value has."""
    return colormaps["magma"].with_extremes(bad=_HIDDEN)


def colour_span(range_db: float) -> float:
    """Decibels that the colours stand for, for values that lie in a range of so many."""
    return min(max(range_db, _LEAST_DB), _MOST_DB)


def time_ticks(seconds: float) -> list[float]:
    """About five round times from 0 on, for an axis of this duration."""
    step = round_step(seconds)
    return np.arange(0, seconds + step / 100, step).tolist()


def frequency_ticks(features: FrontEnd) -> dict[int, float]:
    """Frequencies in Hz, an octave apart, and where they lie on an axis whose band i covers i to i + 1."""
    places = {hz: _band(hz, features) for hz in _TICKS_HZ}
    return {hz: place for hz, place in places.items() if 0.5 < place < features.num_mel_bins - 0.5}


def hz_of_band(place: float, features: FrontEnd) -> float:
    """The frequency at a place on an axis whose band i covers i to i + 1."""
    low, width = _mel_axis(features)
    return 700 * (math.exp((low + (place + 0.5) * width) / 1127) - 1)


def _decibels(values: Tensor, mean: float, std: float) -> np.ndarray:
    log_mel = values.detach().to("cpu", torch.float64) * (2 * std) + mean
    return (log_mel * DB_PER_NEPER).numpy()


def _draw(ax: Axes, values: np.ndarray, span: float) -> None:
    """(frames, bands) with time to the right and frequency upwards; the axes count frames and bands."""
    ax.imshow(
        np.ma.masked_invalid(values.T),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=colours(),
        vmin=-span,
        vmax=0,
        extent=(0, values.shape[0], 0, values.shape[1]),
    )


def _label_axes(axes: np.ndarray, frames: int, seconds_a_frame: float, features: FrontEnd) -> None:
    seconds = time_ticks(frames * seconds_a_frame)
    places = frequency_ticks(features)
    axes[0, 0].set_xlim(0, frames)
    axes[0, 0].set_ylim(0, features.num_mel_bins)
    axes[0, 0].set_xticks([value / seconds_a_frame for value in seconds], [f"{value:g}" for value in seconds])
    axes[0, 0].set_yticks(list(places.values()), [f"{hz / 1000:g}" for hz in places])
    for ax in axes.flat:
        ax.tick_params(labelsize=7.5, length=2.5, width=0.6)
        ax.spines[:].set_linewidth(0.6)
    for ax in axes[-1]:
        ax.set_xlabel("seconds", fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("kHz", fontsize=8)


def _band(hz: float, features: FrontEnd) -> float:
    """Where a frequency lies on the axis of the mel bands, whose band i covers i to i + 1."""
    low, width = _mel_axis(features)
    return (_mel(hz) - low) / width - 0.5


def _mel_axis(features: FrontEnd) -> tuple[float, float]:
    """Where the lowest band begins, and how far it is from the centre of a band to the next, on the mel scale."""
    low, high = _mel(LOW_HZ), _mel(features.sample_rate / 2)
    return low, (high - low) / (features.num_mel_bins + 1)


def _mel(hz: float) -> float:
    return 1127 * math.log(1 + hz / 700)  # Kaldi's scale


def round_step(duration: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that makes about five ticks."""
    power = 10.0 ** math.floor(math.log10(duration / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if duration / (factor * power) <= 6)
