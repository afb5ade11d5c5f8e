"""Checkpoints are read as plain values and tensors, and what is wrong with a file is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.registry import SYSTEMS

ENCODER = {
    "_name": "amae_audio_mae",
    "input_length": 64,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def save(path: Path, settings: dict[str, Any], state: dict[str, torch.Tensor], **more: Any) -> Path:
    torch.save({"cfg": {"model": settings}, "model": state, **more}, path)
    return path


def pretrained(tmp_path: Path) -> Path:
    return save(tmp_path / "pretrained.pt", ENCODER, SYSTEMS["amae_audio_mae"].model(ENCODER).state_dict())


def classifier(**config: Any) -> Classifier:
    return Classifier(ClassifierConfig(encoder=ENCODER, num_classes=3, **config))


def test_models_compute_what_was_saved(tmp_path: Path) -> None:
    source = torch.randn(2, 64, 128)
    model = classifier().eval()
    settings = {
        "_name": "amae_classifier",
        "encoder": ENCODER,
        "num_classes": 3,
        "pooling": "mean",
        "layer_decay": 0.75,
    }
    checkpoint = Checkpoint.read(save(tmp_path / "c.pt", settings, model.state_dict(), task_state={"classes": ["a"]}))
    assert checkpoint.downstream is Classifier and checkpoint.task_state == {"classes": ["a"]}
    assert torch.equal(checkpoint.model()(source)["logits"], model(source)["logits"])
    assert Checkpoint.read(pretrained(tmp_path)).downstream is None


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoders_are_taken_from_pretraining_and_from_classifiers(tmp_path: Path, pooling: str) -> None:
    checkpoint = Checkpoint.read(pretrained(tmp_path))
    first = classifier(pooling=pooling)
    checkpoint.load_encoder(first)
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, checkpoint.state[f"encoder.{name}"])
    settings = {"_name": "amae_classifier", "encoder": ENCODER, "num_classes": 3, "pooling": pooling}
    again = Checkpoint.read(save(tmp_path / "again.pt", settings, first.state_dict()))
    second = classifier(pooling="mean")
    again.load_encoder(second)
    assert all(torch.equal(v, first.encoder.state_dict()[name]) for name, v in second.encoder.state_dict().items())
    if pooling == "mean":
        with pytest.raises(UserError, match=r"no final norm.*model\.pooling must be mean"):
            again.load_encoder(classifier(pooling="cls"))


def test_encoders_of_other_sizes_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(pretrained(tmp_path))
    other = Classifier(ClassifierConfig(encoder={**ENCODER, "embed_dim": 64}, num_classes=3))
    with pytest.raises(UserError, match=r"pretrained\.pt: the encoder's weights do not fit"):
        checkpoint.load_encoder(other)


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = save(tmp_path / "evil.pt", ENCODER, {}, extra_state={"best": Trap(tmp_path / "made")})
    with pytest.raises(UserError, match=r"evil\.pt: holds more than tensors and plain values: \S*mkdir"):
        Checkpoint.read(path)
    assert not (tmp_path / "made").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt: cannot read the checkpoint"):
        Checkpoint.read(tmp_path / "none.pt")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        Checkpoint.read(tmp_path)
    whole = pretrained(tmp_path).read_bytes()
    for name, content in (("empty", b""), ("text", b"hello " * 100), ("torn", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not a checkpoint"):
            Checkpoint.read(tmp_path / name)
    torch.save({"model": {}}, tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"bare\.pt: not a checkpoint of a fairseq run"):
        Checkpoint.read(tmp_path / "bare.pt")
    with pytest.raises(UserError, match="a checkpoint of wav2vec2, which is not a model of this plugin"):
        Checkpoint.read(save(tmp_path / "other.pt", {"_name": "wav2vec2"}, {}))


def test_weights_that_do_not_fit_the_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)weights do not fit the settings.*Missing"):
        Checkpoint.read(save(tmp_path / "c.pt", ENCODER, {})).model()
