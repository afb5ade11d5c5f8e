"""What several folders of tests need: checkpoints and labelled clips, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import soundfile
import torch
from hydra.core.config_store import ConfigStore
from PIL import Image
from torch import nn

from amae_plugin.data.labels import write_labels, write_names
from amae_plugin.data.manifest import write_manifest
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.ctc import CTC
from amae_plugin.models.registry import SYSTEMS

# Hydra would copy all that is registered for each recipe that it composes.
ConfigStore.__deepcopy__ = lambda store, memo: store

# The time of an example says nothing: the first one warms up, and cores are shared.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ENCODER = {
    "_name": "amae_audio_mae",
    "input_length": 64,
    "num_mel_bins": 64,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}

SEEING = {
    "_name": "amae_cav_mae",
    **{name: value for name, value in ENCODER.items() if name != "_name"},
    "depth": 2,
    "image_size": 32,
}
"""An encoder that takes pictures as well."""


@pytest.fixture(scope="session")
def seeing() -> dict[str, Any]:
    return dict(SEEING)


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """Writes a checkpoint as fairseq does: of a classifier of some classes, or of a pretraining model without any.

    Its input is 64 frames (10,480 samples at 16 kHz) of 64 bands. The weights depend on nothing but the settings.
    """

    def write(
        path: Path,
        classes: Sequence[str] | None,
        *,
        multi_label: bool = False,
        loss: str = "bce",
        encoder: Mapping[str, Any] = ENCODER,
        pooling: str = "mean",
    ) -> Path:
        torch.manual_seed(0)
        task = {"target_length": 64, "num_mel_bins": 64, "mean": -6.0, "std": 4.0}
        if classes is None:
            settings: dict[str, Any] = dict(encoder)
            model: nn.Module = SYSTEMS[encoder["_name"]].model(settings)
            sections: dict[str, Any] = {"task": {**task, "_name": "amae_pretraining"}, "criterion": {}}
            task_state: dict[str, Any] = {}
        else:
            settings = {"_name": "amae_classifier", "encoder": dict(encoder), "num_classes": len(classes)}
            settings["pooling"] = pooling
            model = Classifier(ClassifierConfig.from_settings(settings))
            nn.init.normal_(model.head.weight, std=0.3)  # the published initialisation predicts nearly nothing
            sections = {
                "task": {**task, "_name": "amae_classification", "multi_label": multi_label},
                "criterion": {"_name": "amae_classification", "loss": loss},
            }
            task_state = {"classes": list(classes)}
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {"model": settings, **sections}
        content = {"cfg": config, "model": model.state_dict(), "task_state": task_state, "extra_state": {}}
        torch.save(content, path)
        return path

    return write


@pytest.fixture(scope="session")
def write_recogniser() -> Callable[..., Path]:
    """Writes a checkpoint of a recogniser of letters, whose input is that of `write_checkpoint`.

    Its weights are random, so it hears something. By default it hears 4 columns of patches in 64 frames.
    """

    def write(
        path: Path,
        symbols: Sequence[str] = ("|", "A", "B", "C"),
        encoder: Mapping[str, Any] = ENCODER,
        sub_steps: int = 2,
    ) -> Path:
        torch.manual_seed(0)
        units = {"labels": "ltr", "symbols": ["<s>", "<pad>", "</s>", "<unk>", *symbols], "post_process": "letter"}
        settings = {"_name": "amae_ctc", "encoder": dict(encoder), "num_units": len(symbols) + 4}
        settings |= {"input_length": 64, "sub_steps": sub_steps}
        model = CTC.from_settings(settings)
        nn.init.normal_(model.head.weight)
        nn.init.constant_(model.head.bias[1:4], -100.0)  # fairseq's own symbols, which are in no transcript
        task = {"_name": "amae_ctc", "target_length": 64, "num_mel_bins": 64, "mean": -6.0, "std": 4.0}
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {"model": settings, "task": task, "criterion": {"_name": "amae_ctc"}}
        content = {"cfg": config, "model": model.state_dict(), "task_state": {"units": units}, "extra_state": {}}
        torch.save(content, path)
        return path

    return write


@pytest.fixture(scope="session")
def write_split() -> Callable[..., Path]:
    """Writes clips, their manifest and their labels to a folder; clip i is ``<i>.flac``.

    A clip is (labels, seconds, sample rate): a tone whose pitch and loudness change from its beginning to its end.
    Pictures, one a clip, are names of files; those that end in .png are written, noise of a colour each.
    """

    def write(
        folder: Path,
        clips: Sequence[tuple[Sequence[str], float, int]],
        classes: Sequence[str] = (),
        split: str = "test",
        pictures: Sequence[str] = (),
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index, (_, seconds, rate) in enumerate(clips):
            rng = np.random.default_rng(index)
            time = np.arange(int(seconds * rate)) / rate
            low, high = rng.uniform(100, 3500, 2)
            sweep = np.sin(2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds)))
            samples = 0.2 * sweep * np.linspace(rng.uniform(0.1, 1), 1, len(time)) + rng.normal(0, 0.01, len(time))
            soundfile.write(folder / f"{index}.flac", samples, rate)
            rows.append((f"{index}.flac", len(samples), *pictures[index : index + 1]))
        for name in {name for name in pictures if name.endswith(".png")}:
            rng = np.random.default_rng(sum(name.encode()))
            pixels = rng.integers(0, 255, 3) * rng.uniform(0.5, 1, (40, 60, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        write_manifest(folder / f"{split}.tsv", ".", rows)
        if classes:
            write_names(folder / "labels.txt", classes)
            write_labels(folder / f"{split}.lbl", [labels for labels, _, _ in clips])
        return folder

    return write
