import pytest
import torch
from archives import load_published

from amae_plugin.errors import UserError
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.audio_mae.published import AudioMAEPretrained
from amae_plugin.modules.embedding import sincos_2d

PUBLISHED_NAMES = {
    "encoder.positions.pos_embed": "pos_embed",
    "decoder.positions.pos_embed": "decoder_pos_embed",
    "decoder.mask_token": "mask_token",
}


def published_name(name):
    if name in PUBLISHED_NAMES:
        return PUBLISHED_NAMES[name]
    part, rest = name.split(".", 1)
    return rest if part == "encoder" else f"decoder_{rest}"


def published(decoder="shifted", seed=0):
    """A tiny state dict under the published names, with position tables of its own, and the model it is of."""
    torch.manual_seed(seed)
    config = AudioMAEConfig(
        input_length=128,
        num_mel_bins=128,
        embed_dim=64,
        depth=2,
        num_heads=1,
        mlp_ratio=2.0,
        decoder=decoder,
        decoder_embed_dim=32,
        decoder_depth=3,
        decoder_num_heads=16,
        decoder_global_blocks={"shifted": 0, "hybrid": 1, "global": 3}[decoder],
    )
    model = AudioMAE(config).eval()
    model.encoder.positions.pos_embed[0, 1:] = sincos_2d((8, 8), 64).flip(0)
    model.decoder.positions.pos_embed[0, 1:] = sincos_2d((8, 8), 32).flip(0)
    return {published_name(name): tensor for name, tensor in model.state_dict().items()}, model


@pytest.mark.parametrize("decoder", ["shifted", "hybrid", "global"])
def test_a_published_state_dict_gives_its_model(decoder):
    state, expected = published(decoder)
    model = load_published(state, decoder_num_heads=16).eval()
    assert model.config == expected.config
    source, seed = torch.randn(2, 128, 128), torch.tensor([1, 2])
    assert torch.equal(model(source, seed=seed)["prediction"], expected(source, seed=seed)["prediction"])


rename = AudioMAEPretrained().rename


def test_names_are_those_of_the_published_code():
    assert rename("blocks.3.attn.qkv.weight") == "encoder.blocks.3.attn.qkv.weight"
    assert rename("decoder_blocks.3.attn.meta_mlp.fc1.bias") == "decoder.blocks.3.attn.meta_mlp.fc1.bias"
    assert rename("norm.weight") == "encoder.norm.weight"
    assert rename("decoder_pred.bias") == "decoder.pred.bias"
    assert rename("patch_embed.proj.weight") == "encoder.patch_embed.proj.weight"
    assert rename("head.weight") == "head.weight"


def test_a_position_table_of_other_bands_is_understood_when_they_are_told():
    state, _ = published()
    config = load_published(state, num_mel_bins=64).config
    assert (config.input_length, config.num_mel_bins) == (256, 64)


def test_an_unknown_tensor_is_an_error_that_names_it():
    state, _ = published()
    with pytest.raises(UserError, match=r"extra\.weight"):
        load_published({**state, "extra.weight": torch.zeros(7, 64)})


@pytest.mark.parametrize("name", ["blocks.1.attn.proj.bias", "decoder_norm.weight", "mask_token", "decoder_pos_embed"])
def test_a_missing_tensor_is_an_error_that_names_it(name):
    state, _ = published()
    del state[name]
    with pytest.raises(UserError, match=rename(name).replace(".", r"\.")):
        load_published(state)


def test_a_tensor_of_another_size_is_an_error_that_names_it():
    state, _ = published()
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(5)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.bias"):
        load_published(state)


def test_the_positions_of_the_source_are_kept_and_other_lengths_interpolated_from_them():
    state, _ = published()
    model = load_published(state)
    assert torch.equal(model.encoder.positions((8, 8)), state["pos_embed"])
    assert torch.equal(model.decoder.positions((8, 8)), state["decoder_pos_embed"])
    longer = model.encoder.positions((16, 8))
    assert torch.equal(longer[:, :1], state["pos_embed"][:, :1])
    grid = state["pos_embed"][:, 1:].view(8, 8, 64)
    halves = longer[:, 1:].view(8, 2, 8, 64)
    # Every source row lies half way between its two finer ones.
    assert (halves.mean(1) - grid)[1:-1].abs().max() < 0.1
    own_layout = sincos_2d((16, 8), 64).view(16, 8, 64)
    assert (longer[:, 1:].view(16, 8, 64) - own_layout).abs().mean() > 0.2
    features, _ = model.extract_features(torch.randn(1, 256, 128))
    assert features.shape == (1, 1 + 128, 64)
