from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from archives import assert_same, load_published
from safetensors.torch import save_file
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.models.published import PublishedFile
from amae_plugin.models.ssast import SSAST, SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.published import SSASTPretrained, load_image_weights
from amae_plugin.modules.embedding import resize_grid

SIZES = {"embed_dim": 64, "depth": 2, "num_heads": 1}


def published(seed: int = 0) -> tuple[dict[str, Tensor], SSAST]:
    """A tiny state dict under the published names, as DataParallel wrote it, and the model it is of."""
    torch.manual_seed(seed)
    model = SSAST(SSASTConfig(input_length=64, num_mel_bins=128, mlp_ratio=2.0, **SIZES)).eval()
    own = {"mask_token": "mask_embed", "encoder.positions.pos_embed": "v.pos_embed"}
    state = {"module.p_input_fdim": torch.tensor(128), "module.p_input_tdim": torch.tensor(64)}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            published_name = own.get(name, f"v.{name.removeprefix('encoder.')}")
        else:
            published_name = own.get(name, name.replace("classification_head", "cpredlayer"))
            published_name = published_name.replace("reconstruction_head", "gpredlayer")
        if not name.endswith("table_grid"):
            state[f"module.{published_name}"] = band_by_band(name, tensor)
    return state, model


def band_by_band(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a model of 64 frames and 128 bands in the published order."""
    if name.endswith("patch_embed.proj.weight"):
        return tensor.transpose(2, 3).contiguous()
    if name.endswith("pos_embed"):
        return torch.cat([tensor[:, :2], tensor[:, 2:].unflatten(1, (4, 8)).transpose(1, 2).flatten(1, 2)], dim=1)
    if "_head.2." in name:
        return tensor.unflatten(0, (16, 16)).transpose(0, 1).flatten(0, 1)
    return tensor


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_published_state_dict_gives_its_model(prefix: str) -> None:
    state, expected = published()
    state = {name.replace("module.", prefix): tensor for name, tensor in state.items()}
    model = load_published(state).eval()
    assert model.config == expected.config
    source, seed = torch.randn(2, 64, 128), torch.tensor([1, 2])
    for name, value in model(source, seed=seed).items():
        assert torch.equal(value, expected(source, seed=seed)[name])


def test_the_imagenet_heads_that_published_checkpoints_carry_are_left_out() -> None:
    state, _ = published()
    heads = {f"module.v.{head}.weight": torch.zeros(1000, 64) for head in ("head", "head_dist")}
    assert isinstance(load_published({**state, **heads}), SSAST)


def test_an_unknown_or_missing_tensor_is_an_error_that_names_it() -> None:
    state, _ = published()
    with pytest.raises(UserError, match=r"extra\.weight"):
        load_published({**state, "module.extra.weight": torch.zeros(7, 64)})
    for name in ("module.v.blocks.1.attn.proj.bias", "module.cpredlayer.2.bias", "module.mask_embed"):
        with pytest.raises(UserError, match=SSASTPretrained().rename(name.removeprefix("module.")).replace(".", r"\.")):
            load_published({key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match=r"pos_embed"):
        load_published({**state, "module.v.pos_embed": torch.zeros(1, 20, 64)})


def image_model(distilled: bool, image: int) -> nn.Module:
    """A tiny model of timm with random weights, none of them zero."""
    torch.manual_seed(1)
    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    model = timm.create_model(name, pretrained=False, img_size=image, **SIZES).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def time_by_time(tokens: Tensor, side: int) -> Tensor:
    """Tokens (B, 2 + side x side, D) in time-major order."""
    first, rest = tokens.tensor_split([2], dim=1)
    return torch.cat([first, rest.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)], dim=1)


def encoder(frames: int, bands: int, **changes: object) -> SSASTEncoder:
    torch.manual_seed(2)
    return SSASTEncoder(SSASTConfig(**{"input_length": frames, "num_mel_bins": bands, **SIZES, **changes})).eval()


def test_on_its_own_size_the_encoder_computes_what_the_image_model_does() -> None:
    image = image_model(distilled=True, image=64)
    model = encoder(64, 64)
    load_image_weights(model, image.state_dict())
    source = torch.randn(2, 64, 64)
    features = model(*model.patches(source))
    # The spectrogram as a grey image, low bands in the first row; tokens of an image run row by row.
    expected = image.forward_features(source.transpose(1, 2)[:, None].expand(-1, 3, -1, -1))
    assert_same(features, time_by_time(expected, 4))


@pytest.mark.parametrize(("frames", "stride"), [(256, (16, 16)), (48, (16, 16)), (104, (10, 10))])
def test_square_positions_are_cut_or_interpolated_to_the_grid(frames: int, stride: tuple[int, int]) -> None:
    image = image_model(distilled=True, image=96)  # 6 x 6
    model = encoder(frames, 128, patch_stride=stride)
    load_image_weights(model, image.state_dict())
    grid = model.positions.grid
    assert grid == model.patches(torch.randn(1, frames, 128))[1]
    square = image.pos_embed[0, 2:].view(6, 6, 64).permute(2, 1, 0)[None]  # rows are bands
    expected = resize_grid(square, grid)[0].flatten(1).T
    assert torch.equal(model.positions.pos_embed[0, 2:], expected)
    assert torch.equal(model.positions.pos_embed[0, :2], image.pos_embed[0, :2])
    assert_same(model.patch_embed.proj.weight[:, 0], image.patch_embed.proj.weight.sum(1).transpose(1, 2))


def test_a_vit_has_no_distillation_token_so_the_encoders_own_stays() -> None:
    image, model = image_model(distilled=False, image=64), encoder(64, 64)
    own = model.dist_token.clone(), model.positions.pos_embed[:, 1].clone()
    load_image_weights(model, image.state_dict())
    assert torch.equal(model.dist_token, own[0])
    assert torch.equal(model.positions.pos_embed[:, 1], own[1])
    assert torch.equal(model.cls_token, image.cls_token)
    square = image.pos_embed[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(model.positions.pos_embed[:, 2:], square)
    assert torch.equal(model.positions.pos_embed[:, :1], image.pos_embed[:, :1])
    assert torch.equal(model.blocks[1].mlp.fc2.weight, image.blocks[1].mlp.fc2.weight)


def test_image_models_that_do_not_fit_are_refused() -> None:
    state = image_model(distilled=False, image=64).state_dict()
    with pytest.raises(RuntimeError, match=r"blocks\.2\."):
        load_image_weights(encoder(64, 64, depth=3), state)
    with pytest.raises(RuntimeError, match=r"patch_embed\.proj\.weight"):
        load_image_weights(encoder(64, 64, patch_size=(2, 64)), state)
    with pytest.raises(ValueError, match="16 positions are not those of a square image"):
        load_image_weights(encoder(64, 64), {**state, "pos_embed": torch.zeros(1, 16, 64)})


def test_a_file_of_imagenet_weights(tmp_path: Path) -> None:
    image_model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    save_file(image_model.state_dict(), tmp_path / "a.safetensors")
    torch.save({"model": image_model.state_dict()}, tmp_path / "a.pth")
    encoders = [SSASTEncoder(SSASTConfig(embed_dim=192, depth=1, num_heads=3)) for _ in range(2)]
    for encoder, name in zip(encoders, ("a.safetensors", "a.pth")):
        load_image_weights(encoder, PublishedFile.read(tmp_path / name).state)
    one, other = (encoder.state_dict() for encoder in encoders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["blocks.0.attn.qkv.weight"], image_model.state_dict()["blocks.0.attn.qkv.weight"])
