"""Published files of EAT: with and without a teacher, settings and positions, pretrained and fine-tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from archives import Archive, assert_same, load_published, read_published
from torch import Tensor
from torch.nn.functional import layer_norm

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.modules.embedding import sincos_2d

MODALITY = "modality_encoders.IMAGE."
POSITIONS = f"{MODALITY}fixed_positional_encoder.positions"


@pytest.fixture(scope="module")
def golden() -> Archive:
    return Archive("eat")


def positions(rows: int) -> Tensor:
    return sincos_2d((rows, 8), 48)[None]


def test_the_positions_of_the_published_code_are_those_of_this_package(golden: Archive) -> None:
    torch.testing.assert_close(golden["positions"], positions(16), rtol=0, atol=1e-6)


def test_a_checkpoint_of_fairseq_has_the_teacher_inside_its_state_dict(golden: Archive) -> None:
    table = {POSITIONS: positions(768)}  # which covers two minutes
    state = {**golden.state, **table, "_ema": {**golden.part("teacher/"), **table}}
    image = {"mask_prob": 0.75, "mask_length": 3, "mask_prob_adjust": 0.1, "mask_noise_std": 0.02}
    model = {
        "_name": "data2vec_multi",
        "num_heads": 4,
        "clone_batch": 8,
        "ema_decay": 0.9,
        "ema_end_decay": 1.0,
        "modalities": {"image": image},
    }
    task = {"_name": "mae_image_pretraining", "target_length": 256}
    checkpoint = read_published({"model": state, "cfg": {"model": model, "task": task}, "extra_state": {"epoch": 3}})
    settings = checkpoint.model_settings
    assert (settings["num_heads"], settings["clones"], settings["input_length"]) == (4, 8, 256)
    assert (settings["mask_ratio"], settings["mask_options"]) == (0.75, {"side": 3, "surplus": 0.1})
    assert (settings["decoder_noise_std"], settings["teacher_decay"]) == (0.02, [0.9, 1.0])
    assert checkpoint.config["task"]["target_length"] == 256 and checkpoint.untrained == ()
    output = checkpoint.model()(golden["spectrogram"], golden["mask"])
    assert_same(output["target"], golden["target"])
    assert_same(output["prediction"], golden["prediction"])


def test_the_teacher_of_a_file_without_one_is_a_copy_of_the_encoder(golden: Archive) -> None:
    model = load_published(golden.state, num_heads=4)
    for name, tensor in model.teacher.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, model.encoder.state_dict()[name])
    assert_same(model.extract_features(golden["spectrogram"])[0], golden["features"])


def test_a_file_without_decoder_gives_an_encoder(golden: Archive) -> None:
    state = {name: tensor for name, tensor in golden.state.items() if ".decoder." not in name}
    checkpoint = read_published(state, num_heads=4)
    assert checkpoint.untrained and all(name.startswith("decoder.") for name in checkpoint.untrained)


def finetuned(golden: Archive) -> dict[str, Tensor]:
    state = {f"model.{name}": tensor for name, tensor in golden.state.items() if ".decoder." not in name}
    generator = torch.Generator().manual_seed(0)
    head = {"head.weight": (5, 48), "head.bias": (5,), "fc_norm.weight": (48,), "fc_norm.bias": (48,)}
    return {**state, **{name: torch.randn(shape, generator=generator) for name, shape in head.items()}}


@pytest.mark.parametrize("rows", [None, 8, 768])
def test_a_fine_tuned_file_classifies_the_normalised_class_token(golden: Archive, rows: int | None) -> None:
    state = finetuned(golden)
    table = {} if rows is None else {f"model.{POSITIONS}": positions(rows)}
    checkpoint = read_published({"model": {**state, **table}}, num_heads=4)
    assert checkpoint.config["task"]["target_length"] == (128 if rows == 8 else 1024)
    cls = layer_norm(golden["features"][:, 0], (48,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    logits = cls @ state["head.weight"].T + state["head.bias"]
    assert_same(checkpoint.model()(golden["spectrogram"])["logits"], logits)


@pytest.mark.parametrize(
    ("task", "statistics"),
    [
        ({}, (-4.2677393, 4.5689974)),
        ({"esc50_eval": False, "spcv2_eval": False}, (-4.2677393, 4.5689974)),
        ({"esc50_eval": True}, (-6.627, 5.359)),
        ({"esc50_eval": False, "spcv2_eval": True}, (-6.846, 5.565)),
    ],
)
def test_the_statistics_of_a_fine_tuning_are_those_of_its_corpus(
    golden: Archive, task: dict[str, Any], statistics: tuple[float, float]
) -> None:
    checkpoint = read_published({"model": finetuned(golden), "cfg": {"task": task}}, num_heads=4)
    assert (checkpoint.input.mean, checkpoint.input.std) == statistics


def test_the_pooling_of_a_fine_tuning_is_that_of_its_settings(golden: Archive) -> None:
    state = finetuned(golden)

    def read(mode: str, **options: Any) -> Checkpoint:
        return read_published({"model": state, "cfg": {"model": {"prediction_mode": mode}}}, num_heads=4, **options)

    assert read("CLS_TOKEN").model_settings["pooling"] == read("LIN_SOFTMAX", pooling="cls").model_settings["pooling"]
    mean = layer_norm(golden["features"][:, 1:].mean(1), (48,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    logits = mean @ state["head.weight"].T + state["head.bias"]
    assert_same(read("MEAN_POOLING").model()(golden["spectrogram"])["logits"], logits)
    with pytest.raises(UserError, match=r"cfg\.model\.prediction_mode is LIN_SOFTMAX, .* one of CLS_TOKEN, MEAN_POO"):
        read("LIN_SOFTMAX")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_targets": False}, "its cfg.model.layer_norm_targets is False"),
        (
            {"modalities": {"image": {"use_alibi_encoder": True}}},
            "cfg.model.modalities.image.use_alibi_encoder is True",
        ),
    ],
)
def test_a_model_of_another_function_is_refused(golden: Archive, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_published({"model": golden.state, "cfg": {"model": settings}}, num_heads=4)


def test_positions_of_other_bands_are_refused(golden: Archive) -> None:
    with pytest.raises(UserError, match=r"127 positions are not those of 128 bands .* 8 to a time step; give --num"):
        read_published({**golden.state, POSITIONS: positions(16)[:, :127]}, num_heads=4)
