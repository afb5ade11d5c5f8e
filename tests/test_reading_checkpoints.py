"""Checkpoints are read as plain values and tensors, and what is wrong with a file is said."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.inspection import describe
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
        with pytest.raises(UserError, match=r"no final norm.*; .*, or, for a classifier, set model\.pooling=mean"):
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


def change(path: Path, place: str, value: object) -> Path:
    """Set a value in a checkpoint, such as ``cfg.task.std``, or remove it with ``del``."""
    content = torch.load(path)
    *parents, name = place.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    if value is del_:
        del part[name]
    else:
        part[name] = value
    torch.save(content, path)
    return path


del_ = object()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("cfg.model", del_, "which would have the entries cfg, with a section model and its _name, and model"),
        ("cfg.model", ["x"], "which would have the entries cfg, with a section model and its _name, and model"),
        ("cfg.model._name", del_, "which would have the entries cfg, with a section model and its _name, and model"),
        ("cfg.model._name", ["x"], "a checkpoint of \\['x'\\], which is not a model of this plugin"),
        ("cfg.task", "x", "its entry cfg.task is x, must be a section"),
        ("cfg.criterion", 3, "its entry cfg.criterion is 3, must be a section"),
        ("model", [1], "its entry model is \\[1\\], must be a section"),
        ("model.head", "x", "its entry model holds more than tensors"),
        ("model", {0: torch.zeros(1)}, "its entry model holds more than tensors and their names"),
        ("task_state.classes", [1, 2], "its entry task_state.classes must be the names of the 2 classes"),
        ("task_state.classes", ["a"], "its entry task_state.classes must be the names of the 2 classes"),
        ("task_state", "x", "its entry task_state is x, must be a section"),
        ("extra_state", 1, "its entry extra_state is 1, must be a section"),
        ("cfg.model.encoder", del_, "_name=None is no pretraining system"),
        ("cfg.model.encoder", 3, "its setting model.encoder is 3, must be a system's section"),
        ("cfg.model.encoder._name", "x", "_name=x is no pretraining system"),
        ("cfg.model.encoder.embed_dim", 10**9, r"model\.embed_dim is 1000000000, more than 100,000,000"),
        ("cfg.model.encoder.embed_dim", 999_996, r"model\.embed_dim is 999996, but the weights have 32"),
        ("cfg.model.encoder.embed_dim", "32", "model.embed_dim is '32', must be a whole number"),
        ("cfg.model.encoder.embed_dim", 0, "model.embed_dim is 0, but the weights have 32"),
        ("cfg.model.encoder.embed_dim", True, "model.embed_dim is True, must be a whole number"),
        ("cfg.model.encoder.depth", 999_999, r"model\.depth is 999999, but the weights have 1"),
        ("cfg.model.encoder.depth", -1, r"model\.depth is -1, but the weights have 1"),
        ("cfg.model.encoder.num_heads", 3, "model.num_heads is 3, which does not divide the width, 32"),
        ("cfg.model.encoder.num_heads", 0, "model.num_heads is 0, which does not divide the width, 32"),
        ("cfg.model.encoder.mlp_ratio", 1e6, "model.mlp_ratio is 1000000.0, but the weights of the encoder have 4"),
        ("cfg.model.encoder.mlp_ratio", float("nan"), "model.mlp_ratio is nan, must be a finite number"),
        ("cfg.model.encoder.input_length", 999_936, "model.input_length is 999936 .*but the weights have 17 positions"),
        ("cfg.model.encoder.input_length", 63, "a spectrogram of 63 frames x 64 bands cannot be cut into patches"),
        ("cfg.model.encoder.num_mel_bins", 999_936, "model.num_mel_bins 999936, .*but the weights have 17 positions"),
        ("cfg.model.encoder.patch_size", [16, 16, 16], "model.patch_size is .*, must be a pair of whole numbers"),
        ("cfg.model.encoder.patch_size", [999_999, 16], "but the weights have patches of 256 values"),
        ("cfg.model.num_classes", 999_999, "model.num_classes is 999999, but the weights have 2"),
        ("cfg.model.pooling", 3, "model.pooling is 3, must be a name"),
        ("cfg.model.pooling", "sum", "model.pooling is 'sum', must be one of"),
        ("cfg.task.target_length", "x", "its setting task.target_length is x, must be a whole number"),
        ("cfg.task.target_length", 10**9, "its setting task.target_length is 1000000000, must be 1 to 1,000,000"),
        ("cfg.task.target_length", 63, "a spectrogram of 63 frames x 64 bands cannot be cut into patches"),
        ("cfg.task.num_mel_bins", 10**9, "its setting task.num_mel_bins is 1000000000, must be the model's, 64"),
        ("cfg.task.std", 0, "its setting task.std is 0, must be above 0"),
        ("cfg.task.std", float("inf"), "its setting task.std is inf, must be a whole number or a finite number"),
        ("cfg.task.mean", "x", "its setting task.mean is x, must be a whole number or a finite number"),
        ("cfg.task.window_type", 3, "its setting task.window_type is 3, must be text"),
        ("cfg.task.data", 3, "its setting task.data is 3, must be text"),
        ("cfg.task.multi_label", "x", "its setting task.multi_label is x, must be true or false"),
        ("extra_state.metrics", [1], "its entry extra_state.metrics is not as fairseq writes it"),
        ("extra_state.val_loss", "x", "its entry extra_state.val_loss is x, must be a whole number or a finite number"),
        ("extra_state.train_iterator", 1, "its entry extra_state.train_iterator is 1, must be a section"),
    ],
)
def test_settings_that_make_no_sense_are_named_before_they_take_memory(
    tmp_path: Path, write_checkpoint: Callable[..., Path], place: str, value: object, message: str
) -> None:
    path = change(write_checkpoint(tmp_path / "x.pt", ["a", "b"]), place, value)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{message}"):
        describe(Checkpoint.read(path))


def test_a_missing_section_is_named_once(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> None:
    path = change(write_checkpoint(tmp_path / "x.pt", ["a", "b"]), "cfg.model.encoder", None)
    for read in (Checkpoint.model, lambda checkpoint: checkpoint.input):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: its setting model.encoder is None"):
            read(Checkpoint.read(path))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("decoder_embed_dim", 999_996, "model.decoder_embed_dim is 999996, but the weights have 16"),
        ("decoder_depth", 999_999, "model.decoder_depth is 999999, but the weights have 1"),
        ("decoder_num_heads", 3, "model.decoder_num_heads is 3, which does not divide the width, 16"),
        ("masking", "x", "no masking strategy is called 'x'"),
        ("mask_ratio", "x", "model.mask_ratio is 'x', must be a finite number"),
    ],
)
@pytest.mark.parametrize("system", ["amae_audio_mae", "amae_mae_ast"])
def test_settings_of_a_decoder_that_make_no_sense(
    tmp_path: Path, write_checkpoint: Callable[..., Path], system: str, place: str, value: object, message: str
) -> None:
    encoder = {**ENCODER, "_name": system, "num_mel_bins": 64}
    path = change(write_checkpoint(tmp_path / "x.pt", None, encoder=encoder), f"cfg.model.{place}", value)
    with pytest.raises(UserError, match=rf"x\.pt: .*{message}"):
        Checkpoint.read(path).model()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "module._orig_mod."])
def test_weights_behind_the_names_of_wrappers(
    tmp_path: Path, write_checkpoint: Callable[..., Path], prefix: str
) -> None:
    path = write_checkpoint(tmp_path / "x.pt", None)
    content = torch.load(path)
    wrapped = {prefix + name: value for name, value in content["model"].items()}
    torch.save({**content, "model": wrapped}, path)
    state = Checkpoint.read(path).model().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in content["model"].items())


@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_published_weights_are_sent_to_convert(tmp_path: Path, entry: str | None) -> None:
    path = tmp_path / "it's published.pth"
    command = f"amae convert '{tmp_path}/it'\"'\"'s published.pth' '{tmp_path}/it'\"'\"'s published.converted.pt'"
    state = {"module.post_extract_proj.weight": torch.zeros(2, 2), "module.decoder_mask_emb": torch.zeros(2)}
    torch.save({entry: state} if entry else state, path)
    with pytest.raises(UserError) as error:
        Checkpoint.read(path)
    what = "published weights (MAE-AST, pretrained), not a checkpoint of this plugin; make one of them: "
    assert str(error.value) == f"{path}: {what}{command}"
    torch.save({entry or "model": state, "cfg": {"model": {"_name": "mae_ast"}}}, path)
    with pytest.raises(UserError, match="amae convert"):
        Checkpoint.read(path)
    torch.save({"model": {"x": torch.zeros(2)}}, path)
    with pytest.raises(UserError, match=r"weights without the settings of a model, .*amae convert"):
        Checkpoint.read(path)


def test_weights_that_do_not_fit_the_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*weights do not fit the settings[^\n]*Missing[^\n]*$"):
        Checkpoint.read(save(tmp_path / "c.pt", ENCODER, {})).model()


def test_a_model_is_built_without_drawing_its_weights_first(tmp_path: Path) -> None:
    settings = {"_name": "amae_audio_mae", "input_length": 64, "num_mel_bins": 64, "embed_dim": 32, "depth": 1}
    settings |= {"num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    model = SYSTEMS["amae_audio_mae"].model(settings)
    task = {"_name": "amae_pretraining", "target_length": 64, "num_mel_bins": 64}
    torch.save({"cfg": {"model": settings, "task": task}, "model": model.state_dict()}, tmp_path / "checkpoint.pt")
    before = torch.get_rng_state()
    built = Checkpoint.read(tmp_path / "checkpoint.pt").model()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in built.state_dict().items())
