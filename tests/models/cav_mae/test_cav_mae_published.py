"""Published files of CAV-MAE: sizes, names, and what is wrong with a file."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from archives import load_published, read_published
from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.models.cav_mae.published import CAVMAEFineTuned, CAVMAEPretrained

WIDTH, NARROW = 64, 32


def norm(prefix: str, width: int) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": torch.randn(width) for name in ("weight", "bias")}


def linear(prefix: str, into: int, out: int) -> dict[str, Tensor]:
    return {f"{prefix}.weight": 0.1 * torch.randn(out, into), f"{prefix}.bias": torch.randn(out)}


def block(prefix: str, width: int) -> dict[str, Tensor]:
    norms = [norm(f"{prefix}.{name}{kind}", width) for name in ("norm1", "norm2") for kind in ("", "_a", "_v")]
    layers = (("attn.qkv", 1, 3), ("attn.proj", 1, 1), ("mlp.fc1", 1, 2), ("mlp.fc2", 2, 1))
    parts = [*norms, *(linear(f"{prefix}.{name}", width * into, width * out) for name, into, out in layers)]
    return {name: tensor for part in parts for name, tensor in part.items()}


def published(frames: int = 64, side: int = 48, own: int = 2, shared: int = 1) -> dict[str, Tensor]:
    """A state dict of the published code, whose patches are 8 bands x 16 frames and 12 x 12 pixels."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for kind, channels, patch, tokens, values in (
        ("a", 1, (8, 16), 128 // 8 * frames // 16, 128),
        ("v", 3, (12, 12), (side // 12) ** 2, 432),
    ):
        state[f"patch_embed_{kind}.proj.weight"] = 0.1 * torch.randn(WIDTH, channels, *patch)
        state[f"patch_embed_{kind}.proj.bias"] = torch.randn(WIDTH)
        for prefix, width in (("", WIDTH), ("decoder_", NARROW)):
            state[f"{prefix}pos_embed_{kind}"] = torch.randn(1, tokens, width)
            state[f"{prefix}modality_{kind}"] = torch.randn(1, 1, width)
        state |= norm(f"norm_{kind}", WIDTH) | linear(f"decoder_pred_{kind}", NARROW, values)
        for index in range(own):
            state |= block(f"blocks_{kind}.{index}", WIDTH)
    for index in range(shared):
        state |= block(f"blocks_u.{index}", WIDTH)
    state |= {"mask_token": torch.randn(1, 1, NARROW), **linear("decoder_embed", WIDTH, NARROW)}
    return {**state, **norm("norm", WIDTH), **norm("decoder_norm", NARROW), **block("decoder_blocks.0", NARROW)}


def fine_tuned(**sizes: int) -> dict[str, Tensor]:
    state = {name: tensor for name, tensor in published(**sizes).items() if not name.startswith(("decoder", "mask"))}
    return {**state, **norm("mlp_head.0", WIDTH), **linear("mlp_head.1", WIDTH, 9)}


@pytest.mark.parametrize(("own", "shared"), [(2, 1), (1, 2), (0, 2)])
def test_sizes_come_from_the_shapes(own: int, shared: int) -> None:
    model = load_published(published(96, 36, own, shared), decoder_num_heads=4)
    config = model.config
    assert (config.depth, config.shared_depth, config.num_heads, config.mlp_ratio) == (own + shared, shared, 1, 2.0)
    assert (config.patch_size, config.input_length, config.num_mel_bins) == ((16, 8), 96, 128)
    assert (config.image_patch_size, config.image_size) == (12, 36)
    assert (config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads) == (32, 1, 4)
    output = model(torch.randn(2, 96, 128), torch.randn(2, 3, 36, 36))
    assert output["prediction"].shape == (2, 96, 128) and output["image_prediction"].shape == (2, 9, 432)
    assert (
        load_published(published(96, 36, own, shared), decoder_num_heads=4, num_mel_bins=64).config.input_length == 192
    )


def test_wrappers_are_left_out_and_positions_are_those_of_the_file() -> None:
    state = published()
    model = load_published({f"module.{name}": tensor for name, tensor in state.items()}, decoder_num_heads=4)
    encoder, decoder = model.encoder, model.decoder
    assert torch.equal(encoder.image.positions((4, 4))[:, 1:], state["pos_embed_v"])
    turned = state["pos_embed_a"].unflatten(1, (16, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(encoder.positions((4, 16))[:, 1:], turned)
    assert torch.equal(decoder.image.positions((4, 4))[:, 1:], state["decoder_pos_embed_v"])
    assert encoder.image.positions((2, 2)).shape == (1, 5, 64)  # another size's are interpolated


def test_the_decoder_may_be_missing() -> None:
    state = {name: tensor for name, tensor in published().items() if not name.startswith(("decoder", "mask"))}
    checkpoint = read_published(state, decoder_num_heads=8)
    assert checkpoint.untrained and all(name.startswith("decoder.") for name in checkpoint.untrained)
    assert checkpoint.model_settings["decoder_num_heads"] == 8


def test_norms_without_effect_are_named_and_no_others() -> None:
    left_out = read_published(published(), decoder_num_heads=4).extra_state["conversion"]["left_out"]
    assert len(left_out) == (2 + 2 + 1) * 8  # own blocks of both modalities, and the decoder's
    assert all("blocks" in name and name.split(".")[2].endswith(("_a", "_v")) for name in left_out)


def test_a_classifier_of_both_modalities() -> None:
    checkpoint = read_published(fine_tuned(), classes=tuple("abcdefghi"))
    section = checkpoint.model_settings
    assert (section["num_classes"], section["pooling"], checkpoint.classes[8]) == (9, "avgtok", "i")
    assert section["encoder"]["modalities"] == ["audio", "image"]
    assert not checkpoint.untrained


@pytest.mark.parametrize("state", [published(), fine_tuned()], ids=["pretrained", "fine-tuned"])
def test_one_format_recognises_a_file(state: Mapping[str, Tensor]) -> None:
    found = [kind().recognises(state) for kind in (CAVMAEPretrained, CAVMAEFineTuned)]
    assert found == ["mlp_head.1.weight" not in state, "mlp_head.1.weight" in state]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks_u.0.norm1_v.weight", None, r"missing.*encoder\.image\.blocks\.2\.norm1\.weight"),
        ("blocks_v.1.attn.proj.bias", None, r"missing.*encoder\.image\.blocks\.1\.attn\.proj\.bias"),
        ("modality_v", None, r"missing.*encoder\.image\.modality_token"),
        ("norm.bias", None, r"missing.*encoder\.joint\.norm\.bias"),
        ("blocks_u.0.mlp.fc1.bias", torch.zeros(3), r"of another size: blocks_u\.0\.mlp\.fc1\.bias"),
        ("blocks_u.0.extra", torch.zeros(3), r"without a place, or of another size: blocks_u\.0\.extra"),
        ("pos_embed_v", torch.zeros(1, 15, 64), "15 positions are not those of a square image and 0 class tokens"),
        ("pos_embed_a", torch.zeros(1, 63, 64), "63 positions are not those of 128 bands in patches of 8"),
        ("pos_embed_a", None, "it has no tensor pos_embed_a"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(name: str, tensor: Tensor | None, message: str) -> None:
    state = {**published(), **({} if tensor is None else {name: tensor})}
    if tensor is None:
        del state[name]
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_published(state, decoder_num_heads=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 480}, "model.image_size is 480 and model.image_patch_size 12, which makes 1,600 patches"),
        ({"depth": 5}, "model.depth is 5, but the weights have 3"),
        ({"shared_depth": 2}, "the weights do not fit the settings"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_published(published(), changes, decoder_num_heads=4)
