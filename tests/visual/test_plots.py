from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import LogMel, ModelInput, fit_length
from amae_plugin.data.manifest import Manifest
from amae_plugin.inference.reconstruction import FilledPicture, Reconstruction
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.modules.embedding import unpatchify
from amae_plugin.visual import draw_clips, plot_comparison, plot_curves, plot_loss, plot_reconstructions

MEAN, STD = -6.0, 4.0
ONE_GRID = 1.295  # seconds, 128 frames


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 4) as saved."""
    with io.BytesIO() as file:
        figure.savefig(file, format="raw", dpi=figure.dpi)
        width, height = (round(side) for side in figure.canvas.get_width_height())
        return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)


def tone(hz: float, seconds: float, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(16_000 * seconds)) / 16_000)


def clip(hz: float, frames: int = 128) -> torch.Tensor:
    return fit_length(LogMel()(tone(hz, ONE_GRID)), frames)


def half_hidden(clip: torch.Tensor, louder: float = 0.0) -> Reconstruction:
    """Every second patch of 16 frames and bands, the first among them, and a reconstruction that is louder."""
    patches = (torch.arange(clip.numel() // 256) % 2 == 0)[None, :, None].expand(1, -1, 256)
    hidden = unpatchify(patches, (len(clip) // 16, clip.shape[1] // 16), (16, 16))[0]
    return Reconstruction(clip, hidden, clip + louder, windows=1)


def plotted(figure: Figure, row: int, column: int) -> np.ma.MaskedArray:
    """(frames, bands) in decibels."""
    return figure.axes[3 * row + column].images[0].get_array().T


@pytest.fixture
def figure() -> Figure:
    first, second = half_hidden(clip(300), louder=0.8), half_hidden(clip(3000))
    shorter = Reconstruction(second.original[:90], second.hidden[:90], second.reconstructed[:90], windows=1)
    return plot_reconstructions([first, shorter], LogMel(), names="ab")


def test_values_are_decibels_below_the_loudest(figure: Figure) -> None:
    for row, hz in enumerate((300, 3000)):
        log_mel = LogMel()(tone(hz, ONE_GRID))[: (128, 90)[row]].numpy()
        power = np.exp(log_mel.astype(np.float64))
        np.testing.assert_allclose(plotted(figure, row, 0), 10 * np.log10(power / power.max()), atol=1e-3)
    louder = plotted(figure, 0, 2) - plotted(figure, 0, 0)
    np.testing.assert_allclose(louder, 0.8 * 10 / math.log(10), atol=1e-3)


def test_hidden_patches_are_blank_and_the_others_are_not(figure: Figure) -> None:
    masked = np.ma.getmaskarray(plotted(figure, 0, 1))
    assert masked[:16, :16].all() and not masked[:16, 16:32].any()
    assert masked.mean() == 0.5
    assert not np.ma.getmaskarray(plotted(figure, 0, 0)).any()
    assert not np.ma.getmaskarray(plotted(figure, 0, 2)).any()


def test_hidden_patches_have_a_colour_that_no_value_has(figure: Figure) -> None:
    image = figure.axes[1].images[0]
    hidden = image.cmap.get_bad()[:3]
    values = image.cmap(np.linspace(0, 1, 256))[:, :3]
    assert np.abs(values - hidden).sum(axis=1).min() > 0.2


def test_clips_have_their_own_lengths(figure: Figure) -> None:
    assert plotted(figure, 0, 0).shape == (128, 128)
    assert plotted(figure, 1, 2).shape == (90, 128)


def test_columns_of_a_row_share_their_colours(figure: Figure) -> None:
    limits = {axes.images[0].get_clim() for axes in figure.axes[:6]}
    assert len(limits) == 1


@pytest.mark.parametrize("hz", [250, 500, 1000, 2000, 4000])
def test_a_tone_lies_at_its_tick(hz: int) -> None:
    figure = plot_reconstructions([half_hidden(clip(hz))], LogMel())
    axes = figure.axes[0]
    ticks = {text.get_text(): position for text, position in zip(axes.get_yticklabels(), axes.get_yticks())}
    loudest = plotted(figure, 0, 0)[60].argmax()
    assert abs(loudest + 0.5 - ticks[f"{hz / 1000:g}"]) <= 1


@pytest.mark.parametrize(("frames", "last"), [(128, "1.2"), (512, "5"), (1024, "10")])
def test_time_axis_is_in_seconds(frames: int, last: str) -> None:
    axes = plot_reconstructions([half_hidden(clip(500, frames))], LogMel()).axes[2]
    assert axes.get_xlim() == (0, frames / 100) and axes.images[0].get_extent()[1] == frames / 100
    ticks = {float(text.get_text()): at for text, at in zip(axes.get_xticklabels(), axes.get_xticks())}
    np.testing.assert_allclose(list(ticks), list(ticks.values()))
    seconds = [tick for tick in ticks if tick <= frames / 100]
    assert 3 <= len(seconds) <= 7 and seconds[-1] >= 0.75 * float(last)


def test_what_cannot_be_drawn_is_an_error() -> None:
    source = clip(500)
    with pytest.raises(ValueError, match=r"\(128, 128\), \(128, 60\)"):
        plot_reconstructions([Reconstruction(source, source[:, :60] > 0, source, windows=1)], LogMel())
    with pytest.raises(ValueError, match="no clips"):
        plot_reconstructions([], LogMel())


@pytest.mark.parametrize("names", [["a.wav"], None])
@pytest.mark.parametrize(
    ("frames", "place"), [(96, None), (128, None), (512, None), (96, "column"), (512, "column"), (128, "page")]
)
def test_no_text_is_cut_off_in_a_picture_of_one_clip(names: list[str] | None, frames: int, place: str | None) -> None:
    figure = plot_reconstructions([half_hidden(clip(500, frames))], LogMel(), names=names, title="one", width=place)
    pixels(figure)
    assert place is None or figure.get_figwidth() == {"column": 3.4, "page": 7.0}[place]
    ticks = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(ticks))
    width, height = figure.canvas.get_width_height()
    label = figure.axes[-1].yaxis.label
    assert label.get_text().replace("\n", " ") == "dB relative to the maximum"
    for text in (label, *(ax.xaxis.label for ax in figure.axes), *(ax.title for ax in figure.axes)):
        box = text.get_window_extent()
        assert not text.get_text() or min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1, text.get_text()


@pytest.mark.parametrize("frames", [128, 512])
def test_pictures_stand_beside_the_spectrograms(frames: int) -> None:
    original, hidden = torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.bool)
    original[0, :2], hidden[2:] = 1.0, True
    picture = FilledPicture(original, hidden, torch.where(hidden, 0.5, original))
    shown = replace(half_hidden(clip(500, frames)), picture=picture)
    axes = plot_reconstructions([shown], LogMel()).axes
    pictures = [ax.images[0].get_array() for ax in axes if ax.images and ax.images[0].get_array().ndim == 3]
    assert [tuple(values[0, 0]) for values in pictures] == [(1.0, 0.0, 0.0)] * 3
    assert [tuple(values[3, 3]) for values in pictures] == [(0.0,) * 3, to_rgb("#a9b4bd"), (0.5,) * 3]
    others = plot_reconstructions([shown, half_hidden(clip(500, frames))], LogMel()).axes
    assert sum(bool(ax.images) and ax.images[0].get_array().ndim == 3 for ax in others) == 3  # the other has none


@pytest.fixture
def dataset(tmp_path: Path) -> AudioDataset:
    lines = [str(tmp_path)]
    for hz in (300, 1000, 3000):
        soundfile.write(tmp_path / f"{hz}.wav", tone(hz, 1.0).numpy(), 16_000)
        lines.append(f"{hz}.wav\t16000")
    (tmp_path / "valid.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "300.wav").write_bytes(b"no audio")
    model_input = ModelInput(target_length=128, mean=MEAN, std=STD)
    return AudioDataset(Manifest.read(tmp_path / "valid.tsv"), model_input, on_bad_audio="skip")


@pytest.fixture
def model() -> AudioMAE:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_num_heads": 2}
    return AudioMAE(AudioMAEConfig(input_length=128, decoder_depth=1, **sizes))


def test_clips_of_a_data_set(model: AudioMAE, dataset: AudioDataset) -> None:
    model.train()
    state = torch.get_rng_state()
    figure = draw_clips(model, dataset, [0, 1, 2])
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["1000.wav", "3000.wav"]
    samples, _ = soundfile.read(Path(dataset.manifest.root) / "1000.wav", dtype="float32")
    log_mel = LogMel()(torch.from_numpy(samples)).double().numpy() * 10 / math.log(10)
    np.testing.assert_allclose(plotted(figure, 0, 0), log_mel - log_mel.max(), atol=1e-3)  # no padding
    assert np.ma.getmaskarray(plotted(figure, 0, 1))[:96].mean() == pytest.approx(0.8, abs=0.1)
    visible = ~np.ma.getmaskarray(plotted(figure, 1, 1))
    np.testing.assert_allclose(plotted(figure, 1, 2)[visible], plotted(figure, 1, 0)[visible], atol=1e-3)
    np.testing.assert_array_equal(pixels(figure), pixels(draw_clips(model, dataset, [1, 2])))


def test_no_readable_clip_is_an_error(model: AudioMAE, dataset: AudioDataset) -> None:
    with pytest.raises(ValueError, match=r"valid\.tsv"):
        draw_clips(model, dataset, [0])


def test_losses_over_updates() -> None:
    training = [(u, 1.0 / u) for u in range(1, 1000)]
    figure = plot_loss({"training": training, "validation": [(500, 0.01), (999, math.nan)]}, title="falls")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["training (last 0.001)"], training)
    np.testing.assert_array_equal(lines["validation (last 0.01)"], [(500, 0.01)])


def test_a_probe_is_drawn_below_the_loss_at_the_same_updates() -> None:
    figure = plot_loss({"training": [(1, 1.0), (9, 0.5)]}, probe=[(0, 0.1), (8, 0.4)], measure="mAP")
    loss, probe = figure.axes
    np.testing.assert_array_equal(probe.lines[0].get_xydata(), [(0, 0.1), (8, 0.4)])
    assert probe.get_ylabel() == "mAP" and probe.get_xlabel() == "updates" and loss.get_xlabel() == ""
    assert loss.get_xlim() == probe.get_xlim()


def test_curves_of_several_runs_are_a_mean_and_a_band_in_the_colour_of_the_system() -> None:
    losses = {"A": [], "B": [[(20, 4.0), (40, 2.0)], [(20, 2.0), (40, 1.6), (60, 1.5)]], "C": [[(20, 3.0)]]}
    probes = {"B": [[(0, 0.1), (50, 0.4)], [(0, 0.1), (70, 0.6)]], "C": [[(0, 0.2)]]}
    figure = plot_curves(losses, probes, ylabel="accuracy", chance=0.1)
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(20, 1), (40, 0.65)])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [(0, 0.1), (60, 0.5)])
    band = right.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.1, 0.5 + 0.1 * math.sqrt(2)], atol=1e-6)
    assert len(right.collections) == 1, "one run has no band"
    bars = plot_comparison({"all": dict.fromkeys("ABC", 0.5)}, ylabel="accuracy").axes[0].containers
    for name, container in zip("BC", bars[1:]):
        lines = [ax.lines["BC".index(name)] for ax in (left, right)]
        assert {to_rgb(line.get_color()) for line in lines} == {to_rgb(container[0].get_facecolor()[:3])}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["B", "C", "chance (10.0%)"]
    pixels(figure)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves({"A": []}, {}, ylabel="accuracy")


@pytest.mark.parametrize("losses", [(1.0, 0.9), (1.0, 0.3), (500.0, 0.01)])
def test_loss_axis_has_labels_whatever_it_spans(losses: tuple[float, float]) -> None:
    figure = plot_loss({"training": list(enumerate(losses))})
    pixels(figure)  # places the ticks
    low, high = figure.axes[0].get_ylim()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    inside = [text for text, at in zip(labels, figure.axes[0].get_yticks()) if low <= at <= high and text]
    assert len(inside) >= 3


def test_no_losses_are_an_error() -> None:
    with pytest.raises(ValueError, match="no loss"):
        plot_loss({"training": [], "validation": [(1, math.inf)]})


def test_nothing_global_of_matplotlib_is_touched() -> None:
    code = (
        "import sys, matplotlib, amae_plugin.visual as v;"
        "v.plot_loss({'training': [(1, 1.0), (2, 0.5)]}).savefig(sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'fairseq' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True, env={"DISPLAY": "nowhere:0"})
