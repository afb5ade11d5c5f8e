"""The recogniser over the registry of systems: its steps, padding, batches, and what it does at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from amae_plugin.models.ctc import CTC, CTCConfig, StepCount
from amae_plugin.models.downstream import build_model
from amae_plugin.models.registry import SYSTEMS

SIZES = {"input_length": 96, "num_mel_bins": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0}
ENCODERS = {
    **{name: {"_name": name, "patch_size": [16, 16]} for name in SYSTEMS},
    "frames": {"_name": "amae_mae_ast", "patch_size": [2, 32]},
    "overlap": {"_name": "amae_ssast", "patch_size": [16, 16], "patch_stride": [10, 10]},
}
LENGTHS = (96, 41, 33, 3)


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**SIZES, **QUIET, **ENCODERS[request.param]}


def build(encoder: dict[str, Any], **settings: object) -> CTC:
    torch.manual_seed(0)
    config = {"num_units": 9, "input_length": 96, "sub_steps": 3, "dropout": 0.0, "drop_path": 0.0, **settings}
    model = CTC(CTCConfig.from_settings({"encoder": encoder, **config}))
    if encoder["_name"] == "amae_ssast":
        nn.init.normal_(model.encoder.positions.pos_embed)  # so that a place makes a difference
    return model


def clips(lengths: tuple[int, ...] = LENGTHS, frames: int = 96, padding: float = 0.5) -> tuple[Tensor, Tensor]:
    """A batch of spectrograms, each the same whatever its place, and its padding mask."""
    sources = [torch.randn(length, 32, generator=torch.Generator().manual_seed(length)) for length in lengths]
    padded = [nn.functional.pad(source, (0, 0, 0, frames - len(source)), value=padding) for source in sources]
    return torch.stack(padded), torch.arange(frames) >= torch.tensor(lengths)[:, None]


def emitted(output: dict[str, Tensor], clip: int) -> Tensor:
    return output["log_probs"][clip][~output["padding"][clip]]


@torch.no_grad()
def test_the_outputs_of_a_clip_do_not_depend_on_its_batch(encoder: dict[str, Any]) -> None:
    model = build(encoder).eval()
    source, padding = clips()
    together = model(source, padding_mask=padding)
    assert together["log_probs"].dtype == torch.float32
    torch.testing.assert_close(together["log_probs"].exp().sum(-1), torch.ones(together["padding"].shape))
    for clip, length in enumerate(LENGTHS):
        steps = int(model.steps(torch.tensor(length)))
        assert int((~together["padding"][clip]).sum()) == steps == int(model.steps(np.array(length)))
        frames = -(-length // 16) * 16
        one, alone = clips((length,), frames)
        output = model(one, padding_mask=alone)
        assert output["log_probs"].shape == (1, steps, 9)
        torch.testing.assert_close(emitted(output, 0), emitted(together, clip), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output["features"][0], together["features"][clip], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output["features"], model.features(one, alone))
    torch.testing.assert_close(model(source[:1])["log_probs"], model.outputs(source[:1]))
    assert emitted(together, 1).std(dim=0).min() > 0  # its steps differ


@torch.no_grad()
def test_whole_columns_of_padding_have_no_influence(encoder: dict[str, Any]) -> None:
    model = build(encoder).eval()
    source, padding = clips((96, 32))
    other = source.masked_fill(padding[..., None], 7.0)
    one, two = model(source, padding_mask=padding), model(other, padding_mask=padding)
    assert torch.equal(emitted(one, 1), emitted(two, 1))


def test_everything_trains_and_what_is_random_depends_on_the_clips_seed_alone(encoder: dict[str, Any]) -> None:
    model = build(encoder, drop_path=0.5, mask_ratio_time=0.5, mask_length=2, mask_length_frequency=4).train()
    nn.init.normal_(model.head.weight)
    source, padding = clips()
    seed = torch.tensor([5, 6, 7, 8])
    model(source, seed=seed, padding_mask=padding)["log_probs"].square().mean().backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not unused
    if encoder["_name"] == "amae_mae_ast":
        return  # it normalises its input by the batch
    together = model(source, seed=seed, padding_mask=padding)
    again = model(source, seed=seed, padding_mask=padding)
    assert torch.equal(together["log_probs"], again["log_probs"])
    other = model(source, seed=seed + 1, padding_mask=padding)
    assert not torch.allclose(emitted(together, 0), emitted(other, 0), atol=1e-3)
    one, alone = clips((41,), 48)
    torch.testing.assert_close(
        emitted(model(one, seed=seed[1:2], padding_mask=alone), 0), emitted(together, 1), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_blanked_columns_have_no_influence(encoder: dict[str, Any]) -> None:
    model = build({**encoder, "patch_stride": encoder["patch_size"]}).eval()
    source, _ = clips((96,))
    columns = 96 // encoder["patch_size"][0]
    mask = torch.zeros(1, columns, dtype=torch.bool)
    mask[:, 1:3] = True
    changed = source.clone()
    changed[:, encoder["patch_size"][0] : 3 * encoder["patch_size"][0]] = 7.0
    assert torch.equal(model(source, mask)["log_probs"], model(changed, mask)["log_probs"])
    assert not torch.allclose(model(source)["log_probs"], model(source, mask)["log_probs"], atol=1e-4)
    with pytest.raises(ValueError, match=rf"the mask must be \(B, C\) = \(1, {columns}\)"):
        model(source, mask[:, :-1])


def test_spans_of_bands_are_blanked_in_all_patches_of_a_clip() -> None:
    model = build({**SIZES, **ENCODERS["amae_ssast"]}, mask_ratio_time=0.0, mask_ratio_frequency=0.25).train()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    source, _ = clips((96,))
    model(source.abs() + 1, seed=torch.tensor([3]))
    blank = (seen[0].view(6, 2, 16, 16) == 0).permute(1, 3, 0, 2).reshape(32, -1)
    assert (blank.all(dim=1) | ~blank.any(dim=1)).all()
    assert int(blank.all(dim=1).sum()) == 8


def test_a_frozen_encoder_computes_as_in_evaluation_and_gets_gradients_of_0(encoder: dict[str, Any]) -> None:
    model = build({**encoder, "dropout": 0.5}, mask_ratio_time=0.0, mask_ratio_frequency=0.0).train()
    model.freeze(True)
    state = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    source, padding = clips()
    output = model(source, padding_mask=padding)
    assert torch.equal(output["log_probs"], model.train()(source, padding_mask=padding)["log_probs"])
    output["log_probs"][..., 0].sum().backward()
    assert all(not parameter.grad.any() for parameter in model.encoder.parameters())
    assert model.head.weight.grad.any()
    assert all(torch.equal(value, state[name]) for name, value in model.encoder.state_dict().items())
    model.freeze(False)
    assert all(module.training for module in model.modules())
    model(source, padding_mask=padding)["log_probs"][..., 0].sum().backward()
    assert any(parameter.grad.any() for parameter in model.encoder.parameters())


@given(st.integers(1, 300), st.sampled_from([(2, 2), (16, 16), (16, 10), (4, 1)]), st.integers(1, 4))
def test_steps_cover_all_frames_or_all_but_a_stride(frames: int, patch: tuple[int, int], sub_steps: int) -> None:
    size, stride = patch
    steps = StepCount(size, stride, sub_steps)(np.array(frames))
    columns, rest = divmod(int(steps), sub_steps)
    assert rest == 0 and columns >= 1
    covered = size + (columns - 1) * stride
    if size == stride:
        assert covered - size < frames <= covered
    else:
        assert columns == 1 or covered <= frames < covered + stride


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_units": 1}, "a recogniser needs units besides the blank"),
        ({"sub_steps": 0}, "model.sub_steps must be at least 1"),
        ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
        ({"drop_path": -0.1}, "model.drop_path must be"),
        ({"mask_ratio_time": 1.0}, "mask_ratio must be at least 0 and below 1"),
        ({"mask_length": 0}, "a masked span is at least 1 token long"),
        ({"input_length": 90}, "cannot be cut into patches"),
    ],
)
def test_settings_that_make_no_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({**SIZES, **ENCODERS["amae_audio_mae"]}, **settings)


def test_a_spectrogram_beyond_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match="112 frames are more than the model's input, 96"):
        build({**SIZES, **ENCODERS["amae_audio_mae"]})(torch.zeros(1, 112, 32))


def test_frame_tokens_with_one_step_each_need_no_layer_before_the_head() -> None:
    model = build({**SIZES, **ENCODERS["frames"]}, sub_steps=1)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder", "head"}
    again = build_model({"_name": "amae_ctc", "encoder": {**SIZES, **ENCODERS["frames"]}, "num_units": 9})
    assert isinstance(again, CTC)
