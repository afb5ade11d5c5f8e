"""``index.html``: what the demo did, to look at and listen to, and what to do next. It needs the folder around it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from matplotlib.image import imsave

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import DB_PER_NEPER, FrontEnd
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.settings import FINE_TUNING, FROM_SCRATCH, PRETRAINED, PRETRAINING, Demo
from amae_plugin.evaluation.frozen import POOLING
from amae_plugin.evaluation.maps import NAME as MAP
from amae_plugin.files import replacing
from amae_plugin.inference.clips import load_waveform
from amae_plugin.inference.reconstruction import Reconstructor
from amae_plugin.runs.training import COMMAND, Training, read_losses, read_probes
from amae_plugin.visual import plot_loss, plot_reconstructions
from amae_plugin.visual.page import ClipView, template
from amae_plugin.visual.spectrograms import COLOURS, COLUMNS, colour_span, decibel_panels
from amae_plugin.visual.style import save

_HEARD, _FILLED_IN = 4, 3  # clips on the page: of the corpus, and reconstructed
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}
_RECORDINGS, _OUT = "/your/recordings", "outputs"


class Accuracy(NamedTuple):
    """Accuracy of a classifier, and the ends of its 95% interval, all in [0, 1]."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


class Clip(NamedTuple):
    """Clip of the corpus: its file, its word and the name of its voice."""

    path: Path
    word: str
    voice: str

    @property
    def name(self) -> str:
        """Name for people."""
        return f"“{self.word}”, {self.voice}"

    @classmethod
    def of_split(cls, demo: Demo, split: str) -> list[Clip]:
        """List the clips of a split in the order of its manifest, which is sorted by word."""
        manifest = Manifest.read(demo.manifests / f"{split}.tsv")
        voices = {speaker.hash: speaker.name for speaker in demo.speakers}
        names = [Path(manifest.name(index)) for index in range(len(manifest))]
        return [cls(demo.corpus / name, name.parent.name, voices[name.name.split("_")[0]]) for name in names]


def next_steps(demo: Demo) -> list[tuple[str, str]]:
    """Give the commands that do the same with one's own recordings, each with its purpose."""
    train = shlex.join([COMMAND, "--config-dir", str(demo.config_dir)])
    statistics = "task.mean=auto task.std=auto"
    checkpoints = {name: f"{_OUT}/{name}/checkpoints/checkpoint_best.pt" for name in (PRETRAINING, FINE_TUNING)}
    return [
        (
            "List the recordings, and pretrain on them for minutes on two CPU cores (on GPUs, take "
            "pretrain_audio_mae_base, the paper's recipe)",
            f"{shlex.join(['source', str(Path(sys.prefix) / 'bin' / 'activate')])}\n"
            f"amae manifest folder {_RECORDINGS} --out manifests/mine\n"
            f"{train} --config-name {PRETRAINING} task.data=manifests/mine \\\n    {statistics}",
        ),
        (
            "See and hear what the model fills in",
            f"amae reconstruct {checkpoints[PRETRAINING]} {_RECORDINGS} --out page",
        ),
        (
            "With a folder for each class: probe the frozen features, fine-tune, and test",
            "amae manifest folder /your/classes --labels --valid-fraction 0.1 --test-fraction 0.1 "
            "--out manifests/labelled\n"
            f"amae probe {checkpoints[PRETRAINING]} --data manifests/labelled --pooling {POOLING}\n"
            f"{train} --config-name {FINE_TUNING} task.data=manifests/labelled \\\n    {statistics}\n"
            f"amae evaluate {checkpoints[FINE_TUNING]} --data manifests/labelled",
        ),
    ]


def write_page(
    demo: Demo, pretraining: Training, classifier: Training, accuracies: Mapping[str, Mapping[str, Accuracy]]
) -> None:
    """Write ``index.html`` and what only it shows: ``loss.png``, ``reconstruction.png``, and clips in ``page/``.

    Args:
        demo: the demo, whose trainings, probes and evaluations are done.
        pretraining: its pretraining.
        classifier: the fine-tuning whose confusions and map are shown.
        accuracies: accuracies by labels and start.
    """
    clips = {split: Clip.of_split(demo, split) for split in _SPLITS}
    losses = read_losses(pretraining.log)
    probes = [(probe.update, probe.value) for probe in read_probes(pretraining.log)]
    figure = plot_loss(losses, title="Pretraining of a tiny Audio-MAE on spoken words", probe=probes)
    save(figure, demo.root / "loss.png")
    reconstructor = Reconstructor(Checkpoint.read(pretraining.checkpoint))
    front_end = reconstructor.input.front_end
    maps = {
        "Frozen features after pretraining, which saw no label": demo.probe,
        f"Features after fine-tuning ({classifier.description})": demo.maps,
    }
    page = template("index.html.jinja", __package__).render(
        demo=demo,
        splits=[
            (title, len(clips[name]), len({clip.voice for clip in clips[name]})) for name, title in _SPLITS.items()
        ],
        heard=[_show(demo, clip, front_end) for clip in _spread(clips["train"], _HEARD)],
        losses={name: (points[0], points[-1]) for name, points in losses.items() if points},
        hidden=reconstructor.masking,
        filled_in=_fill_in(demo, reconstructor, _spread(clips["valid"], _FILLED_IN)),
        accuracies=accuracies,
        starts=(PRETRAINED, FROM_SCRATCH),
        best=accuracies[f"{max(demo.fractions):.0%} of the labels"],
        chance=1 / len(demo.words),
        updates={f"{fraction:.0%} of the labels": updates for fraction, updates in demo.fractions.items()},
        probe=json.loads((demo.probe / "probe.json").read_text(encoding="utf-8")),
        confusion=_address(demo, classifier.folder / "evaluation" / "test" / "confusion.png"),
        predictions=_address(demo, classifier.folder / "evaluation" / "test" / "predictions.csv"),
        classifier=classifier.description,
        maps=[
            (title, [_address(demo, path) for path in sorted(folder.glob(f"{MAP}_*.png"), reverse=True)])
            for title, folder in maps.items()
        ],
        steps=next_steps(demo),
    )
    with replacing(demo.page) as partial:
        partial.write_text(page, encoding="utf-8")


def _spread(clips: Sequence[Clip], number: int) -> list[Clip]:
    """Take clips far apart in a list, so that their words and voices differ."""
    places = np.linspace(0, len(clips) - 1, 2 * min(number, len(clips)) + 1).round().astype(int)[1::2]
    return [clips[place] for place in places]


def _address(demo: Demo, path: Path) -> str:
    """Return the address of a file relative to the page."""
    return quote(path.relative_to(demo.root).as_posix())


def _show(demo: Demo, clip: Clip, front_end: FrontEnd) -> dict[str, object]:
    """Draw a clip, and give what the page says of it."""
    waveform = load_waveform(clip.path, features=front_end)
    decibels = front_end(waveform).double().numpy() * DB_PER_NEPER
    picture = demo.root / "page" / f"{clip.path.parent.name}_{clip.path.stem}.png"
    _draw(picture, decibels - decibels.max(), colour_span(decibels - decibels.max()))
    seconds = len(decibels) * front_end.shift_samples / front_end.sample_rate
    return {
        "name": clip.name,
        "seconds": seconds,
        "picture": _address(demo, picture),
        "sound": _address(demo, clip.path),
    }


def _fill_in(demo: Demo, reconstructor: Reconstructor, clips: Sequence[Clip]) -> list[dict[str, object]]:
    """Have the model fill in hidden parts of clips; draw ``reconstruction.png``, and write pictures and sounds."""
    front_end, shown, views = reconstructor.input.front_end, [], []
    for number, clip in enumerate(clips, start=1):
        waveform = load_waveform(clip.path, features=front_end)
        reconstructor.seed = number  # or the same part of every clip would be hidden
        view = ClipView.make(clip.name, reconstructor(waveform), front_end, len(waveform))
        views.append(view)
        folder = demo.root / "page" / f"reconstruction_{number}"
        view.write(folder, front_end)
        panels = decibel_panels(view.reconstruction)
        span = colour_span(panels[0])
        for column, panel in zip(COLUMNS, panels):
            _draw(folder / f"{column}.png", panel, span)
        shown.append(
            {
                "name": clip.name,
                "seconds": len(panels[0]) * front_end.shift_samples / front_end.sample_rate,
                "hidden": float(view.reconstruction.hidden.double().mean()),
                "error": view.reconstruction.error.total_rms,
                "reference": view.reconstruction.reference.total_rms,
                "panels": {name: _address(demo, folder / name) for name in COLUMNS},
            }
        )
    names = [view.name for view in views]
    picture = plot_reconstructions([view.reconstruction for view in views], front_end, names)
    save(picture, demo.root / "reconstruction.png")
    return shown


def _draw(path: Path, decibels: np.ndarray, span: float) -> None:
    """Draw (frames, bands), NaN where hidden, with time to the right and frequency upwards, a pixel a value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        imsave(partial, decibels.T, vmin=-span, vmax=0, cmap=COLOURS, format="png", origin="lower")
