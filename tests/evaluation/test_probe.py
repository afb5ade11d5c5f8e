"""Probes of the layers of an encoder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amae_plugin.cli.main import main
from amae_plugin.evaluation.frozen import Examples, embed_split, frozen_accuracies
from amae_plugin.evaluation.probe import _weighted
from amae_plugin.inference.model import load_model

CLASSES = ["low", "middle", "high"]
SPLITS = ("train", "valid", "test")


def layers(clips: int, seed: int, several: bool = False) -> Examples:
    """Four layers of which the third tells the classes, and the others nothing."""
    rng = np.random.default_rng(seed)
    hot = rng.random((clips, 3)) < 0.4 if several else np.eye(3)[rng.integers(0, 3, clips)]
    features = rng.standard_normal((clips, 4, 3))
    features[:, 2] = 50 * hot + 5 * features[:, 2]
    return Examples(features.astype(np.float32), hot.astype(np.float32) if several else hot.argmax(axis=1))


@pytest.mark.parametrize("several", [False, True])
def test_the_layer_that_tells_the_classes_gets_the_weight(several: bool) -> None:
    value, weights = _weighted([layers(clips, seed, several) for seed, clips in enumerate((200, 100, 200))], several)
    assert value > 0.95
    assert weights.argmax() == 2 and weights[2] > 0.5 and weights.sum() == pytest.approx(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_split: Callable[..., Path]) -> Callable[[bool], Path]:
    """Manifests of clips with one label each, or with one or two."""

    def write(several: bool) -> Path:
        folder = tmp_path_factory.mktemp("corpus")
        for split, clips in zip(SPLITS, (12, 6, 6)):
            labels = [CLASSES[index % 3 : index % 3 + 1 + (several and index % 2)] for index in range(clips)]
            write_split(
                folder, [(each, 0.4 + 0.02 * index, 16_000) for index, each in enumerate(labels)], CLASSES, split
            )
        return folder

    return write


def run(checkpoint: Path, data: Path, *arguments: str) -> dict:
    command = ["probe", str(checkpoint), "--data", str(data), "--workers", "0", "--device", "cpu", *arguments]
    assert main(command) == 0
    folder = checkpoint.parent.parent / "probe"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".csv", ".tex", ".png"}
    with (folder / "probe.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    found = json.loads((folder / "probe.json").read_text())
    assert [row[0] for row in rows[1:]] == [*map(str, range(len(found["layers"]["k-NN"]))), "all, weighted"]
    for (_, *cells), *values in zip(rows[1:], *found["layers"].values(), found["weighted"]["weights"]):
        assert cells[:3] == [f"{value:.4f}" for value in values]
    return found


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_the_last_layer_is_that_of_embed(
    classes: list[str] | None, corpus: Callable[[bool], Path], tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    path, data = write_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", classes), corpus(False)
    found = run(path, data)
    assert (found["measure"], found["clips"], found["equal_error_rates"]) == ("accuracy", 6, None)
    assert (path.parent.parent / "probe" / "map_class.png").exists()
    if classes is None:
        expected = frozen_accuracies(*(embed_split(load_model(path, "cpu"), data, split) for split in SPLITS))
        assert {name: values[-1] for name, values in found["layers"].items()} == expected


def test_several_labels_a_clip_and_trials(
    corpus: Callable[[bool], Path], tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    data = corpus(True)
    (data / "trials.tsv").write_bytes((data / "train.tsv").read_bytes())
    (data / "trials.txt").write_text("1 0.flac 3.flac\n0 0.flac 1.flac\n1 1.flac 4.flac\n0 2.flac 3.flac\n")
    found = run(write_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", None), data)
    assert found["measure"] == "mAP"
    assert not list((tmp_path / "run" / "probe").glob("map*"))
    assert all(0 < value <= 1 for values in found["layers"].values() for value in values)
    assert len(found["equal_error_rates"]) == len(found["layers"]["k-NN"])


def test_trials_of_one_kind_are_refused_before_the_work(
    corpus: Callable[[bool], Path], tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    path, data = write_checkpoint(tmp_path / "last.pt", None), corpus(False)
    (data / "trials.tsv").write_bytes((data / "train.tsv").read_bytes())
    (data / "trials.txt").write_text("1 0.flac 3.flac\n1 1.flac 4.flac\n")
    assert main(["probe", str(path), "--data", str(data), "--workers", "0", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "trials.txt: needs trials of both kinds, 1 and 0, and there are 2 and 0" in error
    assert "features of" not in error


def test_a_corpus_without_a_split_is_refused_before_the_work(
    corpus: Callable[[bool], Path], tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    path, data = write_checkpoint(tmp_path / "last.pt", None), corpus(False)
    (data / "valid.tsv").unlink()
    assert main(["probe", str(path), "--data", str(data), "--workers", "0", "--device", "cpu"]) == 2
    assert "valid.tsv" in capsys.readouterr().err
