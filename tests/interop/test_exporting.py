"""What timm and onnxruntime make of an exported model is what the checkpoint computes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.data.labels import read_names
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import validation_dataset
from amae_plugin.interop.export import FORMATS, TOGETHER, export
from amae_plugin.interop.onnx_file import Onnx
from amae_plugin.interop.timm_vit import Timm
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.registry import SYSTEMS

SIZES = {"num_mel_bins": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
SYSTEM = {
    "amae_audio_mae": {
        **SIZES,
        "input_length": 64,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "amae_m2d": {
        **SIZES,
        "input_length": 64,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "amae_ssast": {**SIZES, "input_length": 64},
    "amae_mae_ast": {**SIZES, "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2},
    "amae_cav_mae": {**SIZES, "input_length": 64, "image_size": 32},
}
CLASSES = ("dog", "cat", "rain")
BANDS_SIDE_BY_SIDE = {"classifier": {"pooling": "time_concat", "mask_ratio_frequency": 0.0}}


def checkpoint_of(folder: Path, system: str, frames: int = 64, classifier: Any = None, **sizes: Any) -> Checkpoint:
    """A checkpoint with weights of which none is what initialisation makes it."""
    settings: dict[str, Any] = {"_name": system, **SYSTEM[system], **sizes}
    task = {"target_length": frames, "num_mel_bins": 32, "mean": -6.0, "std": 4.0}
    config: dict[str, Any] = {"model": settings, "task": {**task, "_name": "amae_pretraining", "data": "/home/me/man"}}
    torch.manual_seed(0)
    if classifier is None:
        model: nn.Module = SYSTEMS[system].model(settings)
    else:
        settings = {"_name": "amae_classifier", "encoder": settings, "num_classes": len(CLASSES), **classifier}
        config.update(model=settings, criterion={"loss": "bce"})
        model = Classifier(ClassifierConfig.from_settings(settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.7)
        elif name.endswith("running_mean"):
            nn.init.normal_(buffer)
    task_state = {} if classifier is None else {"classes": list(CLASSES)}
    checkpoint = Checkpoint(folder / "checkpoint.pt", config, model.state_dict(), task_state)
    checkpoint.write()
    return checkpoint


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("amae_audio_mae", {}),
    ("amae_audio_mae", {"classifier": {"pooling": "mean"}}),
    ("amae_audio_mae", {"classifier": {"pooling": "mean", "batch_norm": True, "bf16": True}}),
    ("amae_audio_mae", {"classifier": {"pooling": "cls"}, "frames": 96}),  # not what the positions were built for
    ("amae_audio_mae", {"classifier": {"pooling": "avgtok"}}),
    ("amae_audio_mae", {"classifier": {"pooling": "avgcls", "batch_norm": True}, "patch_size": (8, 16)}),
    ("amae_m2d", {"frames": 48}),
    ("amae_m2d", {"classifier": {"pooling": "token_mean", "batch_norm": True}}),
    ("amae_ssast", {}),
    ("amae_ssast", {"patch_size": (2, 32), "bf16": True}),
    ("amae_ssast", {"classifier": {"pooling": "avgcls"}, "frames": 48}),
    ("amae_ssast", {"classifier": {"pooling": "avgtok"}, "patch_stride": (10, 10), "frames": 70, "input_length": 70}),
    ("amae_ssast", {"classifier": {"pooling": "avgcls"}, "patch_stride": (10, 10), "frames": 75}),
    ("amae_ssast", {"classifier": {"pooling": "mean"}}),
    ("amae_ssast", {"classifier": {"pooling": "cls"}}),
    ("amae_ssast", {**BANDS_SIDE_BY_SIDE, "patch_size": (2, 32)}),  # of which there is one
]


@pytest.mark.parametrize(("system", "form"), FORMS)
def test_timm_loads_it_strictly_and_computes_the_same(tmp_path: Path, system: str, form: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(tmp_path, system, **form)
    out = tmp_path / "out"
    exported = export(checkpoint, out, ["timm"])
    assert exported.differences["timm"] < 1e-5
    config = json.loads((out / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"])
    assert model.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    assert type(model).__name__.startswith("VisionTransformer")
    assert config["pretrained_cfg"]["mean"] == [-6.0]
    assert config["pretrained_cfg"]["std"] == [4.0 if system == "amae_m2d" else 8.0]


def test_the_check_sees_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(tmp_path, "amae_audio_mae")
    write = Timm.write

    def write_otherwise(self: Timm, folder: Path) -> None:
        state = {**self.vit.state, "norm.bias": torch.zeros(32)}
        self.vit = replace(self.vit, state=state)
        write(self, folder)

    monkeypatch.setattr(Timm, "write", write_otherwise)
    with pytest.raises(UserError, match=r"checkpoint\.pt: not exported, since its outputs as timm differ"):
        export(checkpoint, tmp_path / "out", ["timm"])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_onnx_computes_the_same_for_any_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the weights beside the graph, as large models have them, wherever the two are moved together."""
    monkeypatch.setattr("amae_plugin.interop.onnx_file._INLINE_BYTES", 1000)
    checkpoint = checkpoint_of(
        tmp_path, "amae_audio_mae", classifier={"pooling": "cls", "batch_norm": True, "bf16": True}
    )
    exported = export(checkpoint, tmp_path / "out", ["onnx"])
    assert exported.differences["onnx"] < 1e-5
    assert [file.name for file in exported.files] == ["README.md", "labels.txt", "model.onnx", "model.onnx.data"]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    session = onnxruntime.InferenceSession(tmp_path / "elsewhere" / "model.onnx")
    (declared,) = session.get_inputs()
    assert (declared.name, declared.shape) == ("log_mel", ["batch", 64, 32])
    model, source = checkpoint.model(), torch.randn(4, 64, 32)
    model.config.bf16 = False
    for batch in (1, 4):
        (actual,) = session.run(None, {"log_mel": source[:batch].numpy()})
        torch.testing.assert_close(
            torch.from_numpy(actual), model(source[:batch])["logits"].detach(), atol=1e-4, rtol=1e-4
        )


def test_what_timm_has_no_model_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = str(checkpoint_of(tmp_path, "amae_mae_ast").path)
    out = tmp_path / "out"
    assert main(["export", path, str(out), "--format", "timm"]) == 2
    assert "timm has no model that computes what MAE-AST does" in capsys.readouterr().err
    assert not out.exists()
    assert main(["export", path, str(out)]) == 0
    assert "no timm: timm has no model" in capsys.readouterr().err
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "model.onnx"]
    # The same file once more, asked for together with what there is not.
    monkeypatch.setattr(Onnx, "write", lambda self, folder: shutil.copy(out / "model.onnx", folder))
    assert main(["export", path, str(out), "--format", "timm", "onnx"]) == 1
    assert "no timm: timm has no model" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["amae_m2d", "amae_ssast"])
def test_timm_has_no_pooling_of_bands_side_by_side(tmp_path: Path, system: str) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pt: timm has no pooling that keeps the bands of a time step"):
        export(checkpoint_of(tmp_path, system, **BANDS_SIDE_BY_SIDE), tmp_path / "out", ["timm"])


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_holds_a_model_of_pictures_alone(tmp_path: Path, form: str, capsys: pytest.CaptureFixture) -> None:
    path = checkpoint_of(tmp_path, "amae_cav_mae", classifier={"pooling": "avgtok"}, modalities=["image"]).path
    assert main(["export", str(path), str(tmp_path / "out"), "--format", form]) == 2
    said = capsys.readouterr().err
    assert said == f"amae: {path}: takes pictures alone and no sound, which no format here holds\n"


def test_an_impossible_input_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = checkpoint_of(tmp_path, "amae_audio_mae")
    checkpoint.config["task"]["std"] = -1.0
    checkpoint.write()
    assert main(["export", str(checkpoint.path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"amae: {checkpoint.path}: its setting task.std is -1.0, must be above 0\n"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(checkpoint_of(tmp_path, "amae_audio_mae", classifier={"pooling": "avgtok"}).path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    assert main(["export", path, str(other), "--format", "timm"]) == 2
    assert "other: holds files, and not those of an earlier export" in capsys.readouterr().err
    assert (other / "README.md").read_text() == "mine"
    out = tmp_path / "out"
    assert main(["export", path, str(out), "--format", "timm"]) == 0
    names = ["README.md", "config.json", "head.safetensors", "labels.txt", "model.safetensors"]
    assert sorted(file.name for file in out.iterdir()) == names
    checkpoint_of(tmp_path, "amae_audio_mae")
    (out / "notes.txt").write_text("mine")
    assert main(["export", path, str(out), "--format", "timm"]) == 0
    names = ["README.md", "config.json", "model.safetensors", "notes.txt"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert main(["export", path, str(tmp_path / "checkpoint.pt"), "--format", "timm"]) == 2
    assert "cannot write there" in capsys.readouterr().err


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("system", "form"),
    [
        ("amae_ssast", {"classifier": {"pooling": "avgcls"}, "patch_stride": (10, 10), "frames": 75}),
        ("amae_audio_mae", {}),
        ("amae_m2d", {}),
    ],
)
def test_the_model_card_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, system: str, form: dict[str, Any]
) -> None:
    """From sound to result by the code on the page alone, a clip that is too short and one that is too long."""
    checkpoint = checkpoint_of(tmp_path, system, **form)
    assert main(["export", str(checkpoint.path), str(tmp_path / "out")]) == 0
    assert list(TOGETHER) == re.findall(r"^(\w+): computes what", capsys.readouterr().out, flags=re.MULTILINE)
    page = (tmp_path / "out" / "README.md").read_text()
    assert "/home/me" not in page and re.search(r"^data +man$", page, flags=re.MULTILINE)
    rng = np.random.default_rng(0)
    waveforms = [rng.uniform(-0.5, 0.5, length).astype(np.float32) for length in (5000, 30_000)]
    for index, waveform in enumerate(waveforms):
        soundfile.write(tmp_path / f"{index}.wav", waveform, 16_000, subtype="FLOAT")
    write_manifest(tmp_path / "test.tsv", tmp_path, [(f"{i}.wav", len(w)) for i, w in enumerate(waveforms)])
    dataset = validation_dataset(checkpoint, Manifest.read(tmp_path / "test.tsv"), position=0.0)
    source = torch.stack([dataset[index]["source"] for index in range(2)])
    model = checkpoint.model()
    model.config.bf16 = False
    with torch.inference_mode():
        if checkpoint.downstream:
            expected = model(source)["logits"]
            assert read_names(tmp_path / "out" / "labels.txt") == CLASSES
            assert "probabilities are `torch.sigmoid(logits)`" in page
        else:
            expected = model.extract_features(source)[0]
            shape = " ".join(re.findall(r"`features` \(clips, (\d+), (\d+)\)", page)[0])
            assert shape == f"{expected.shape[1]} {expected.shape[2]}"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"waveforms": [torch.from_numpy(waveform) for waveform in waveforms]}
    given, *ways = code_of(page)
    exec(given, names)
    assert torch.allclose(names["log_mel"], source, atol=1e-4)
    assert len(ways) == 2
    for way in ways:
        scope = dict(names)
        with torch.inference_mode():
            exec(way, scope)
        actual = scope["logits" if checkpoint.downstream else "features"]
        actual = actual if isinstance(actual, Tensor) else torch.from_numpy(actual)
        assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(tmp_path, "amae_audio_mae")
    find: Callable = lambda name: None if name == "onnxruntime" else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(UserError, match=r"the export needs onnxruntime: pip install onnxruntime"):
        export(checkpoint, tmp_path / "out", TOGETHER)
