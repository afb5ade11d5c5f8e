"""``amae embed --format hubert``: the files as fairseq's learn_kmeans.py and dump_km_label.py read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from amae_plugin import load_model
from amae_plugin.cli.main import main

CLIPS = [((), seconds, 16_000) for seconds in (0.3, 1.2, 0.5, 0.2, 0.7)]


@pytest.fixture(scope="module")
def checkpoint(write_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pretrained.pt", None)


@pytest.fixture
def manifest(write_split: Callable[..., Path], tmp_path: Path) -> Path:
    return write_split(tmp_path / "clips", CLIPS, split="train") / "train.tsv"


def embed(checkpoint: Path, *arguments: object) -> int:
    given = [checkpoint, *arguments, "--format", "hubert", "--workers", 0, "--device", "cpu"]
    return main(["embed", *map(str, given)])


def read(folder: Path, split: str, rank: int, shards: int) -> list[np.ndarray]:
    """The features of each clip, as the scripts cut them out."""
    lengths = [int(line.rstrip()) for line in (folder / f"{split}_{rank}_{shards}.len").open()]
    features = np.load(folder / f"{split}_{rank}_{shards}.npy", mmap_mode="r")
    offsets = [0, *np.cumsum(lengths[:-1]).tolist()]
    assert features.dtype == np.float32
    assert features.shape[0] == offsets[-1] + lengths[-1]
    return [features[offset : offset + length] for offset, length in zip(offsets, lengths)]


@pytest.mark.parametrize("layer", [1, 0])
def test_shards_hold_the_layer_of_all_clips_in_the_manifests_order(
    checkpoint: Path, manifest: Path, tmp_path: Path, layer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        assert embed(checkpoint, manifest, "--layer", layer, "--rank", rank, "--shards", 2, "--out", tmp_path) == 0
    assert f" of 3 clips, 32 values each: {tmp_path / 'train_1_2.npy'}" in capsys.readouterr().out
    shards = [read(tmp_path, "train", rank, 2) for rank in range(2)]
    assert [len(shard) for shard in shards] == [round(5 / 2), 5 - round(5 / 2)]
    model = load_model(checkpoint, device="cpu")
    for index, features in enumerate(shards[0] + shards[1]):
        expected = model.extract_features(manifest.parent / f"{index}.flac", layer=layer)
        torch.testing.assert_close(torch.tensor(features), expected, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.glob("*_2.*")) == [
        f"train_{rank}_2.{kind}" for rank in range(2) for kind in ("len", "npy")
    ]


def test_what_cannot_be_written_is_refused_in_a_sentence(
    checkpoint: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = ["--out", tmp_path / "features"], tmp_path / "other" / "train.tsv"
    shutil.copytree(manifest.parent, other.parent)
    cases: dict[str, list[object]] = {
        "--format hubert writes one layer: give its number": [manifest],
        "layer 9: this encoder has the layers 0 to 1": [manifest, "--layer", 9],
        "--rank 2: the ranks of 2 shards are 0 to 1": [manifest, "--layer", 1, "--rank", 2, "--shards", 2],
        "shard 0 of 50 is empty, as there are 5 clips": [manifest, "--layer", 1, "--shards", 50],
        "--timestamps and --pooling go with --format npz": [manifest, "--layer", 1, "--pooling", "cls"],
        "train_0_1.npy; use two folders": [manifest, other, "--layer", 1],
    }
    for sentence, arguments in cases.items():
        assert embed(checkpoint, *arguments, *out) == 2
        assert sentence in capsys.readouterr().err
    (manifest.parent / "2.flac").write_bytes(b"no audio")
    assert embed(checkpoint, manifest, "--layer", 1, *out) == 2
    assert "2.flac" in capsys.readouterr().err
    assert not list((tmp_path / "features").glob("*.npy"))
    given = ["embed", checkpoint, manifest.parent, "--out", tmp_path / "x.npz", "--layer", 1]
    assert main([*map(str, given)]) == 2
    assert "--layer, --rank and --shards go with --format hubert" in capsys.readouterr().err
