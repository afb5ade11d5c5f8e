import pytest
import torch
from archives import load_published

from amae_plugin.errors import UserError
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.mae_ast.published import MAEASTPretrained

BLOCK = {
    "attn.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "norm2": "final_layer_norm",
}


rename = MAEASTPretrained().rename
SIZES = {"patch_size": (2, 128), "num_heads": 2}


def published(decoder_embed_dim=32):
    """A tiny state dict under the published names, and the model it is of."""
    torch.manual_seed(0)
    config = MAEASTConfig(
        patch_size=(2, 128),
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        decoder_embed_dim=decoder_embed_dim,
        decoder_depth=1,
        decoder_num_heads=2,
        decoder_mlp_ratio=4.0,
    )
    model = MAEAST(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = model.state_dict()
    state = {
        "encoder_mask_emb": torch.zeros(64),
        "layer_norm.weight": torch.ones(128),
        "layer_norm.bias": torch.zeros(128),
        "enc_sine_pos_embed.pe": torch.zeros(1, 10, 64),
        "dec_sine_pos_embed.pe": torch.zeros(1, 10, 64),
        "decoder_mask_emb": ours["decoder.mask_token"].flatten(),
        "post_extract_proj.weight": ours["encoder.patch_embed.proj.weight"].flatten(1),
        "post_extract_proj.bias": ours["encoder.patch_embed.proj.bias"],
    }
    for kind in ("weight", "bias"):
        if decoder_embed_dim != 64:
            state[f"post_enc_proj.{kind}"] = ours[f"decoder.embed.{kind}"]
        for head in ("reconstruction", "classification"):
            state[f"final_proj_{head}.{kind}"] = ours[f"{head}_head.{kind}"]
        for part, depth in (("encoder", 2), ("decoder", 1)):
            state[f"{part}.layer_norm.{kind}"] = ours[f"{part}.norm_pre.{kind}"]
            for index in range(depth):
                block, layer = f"{part}.blocks.{index}", f"{part}.layers.{index}"
                for name, official in BLOCK.items():
                    state[f"{layer}.{official}.{kind}"] = ours[f"{block}.{name}.{kind}"]
                for letter, tensor in zip("qkv", ours[f"{block}.attn.qkv.{kind}"].chunk(3)):
                    state[f"{layer}.self_attn.{letter}_proj.{kind}"] = tensor
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        state[f"batch_norm.{name}"] = ours[f"encoder.input_norm.{name}"]
    return state, model.eval()


@pytest.mark.parametrize("decoder_embed_dim", [32, 64])
def test_a_published_state_dict_gives_its_model(decoder_embed_dim):
    state, expected = published(decoder_embed_dim)
    model = load_published(state, **SIZES).eval()
    assert model.config == expected.config
    source, seed = torch.randn(2, 64, 128), torch.tensor([1, 2])
    for name in ("prediction", "classification"):
        assert torch.equal(model(source, seed=seed)[name], expected(source, seed=seed)[name])


def test_heads_are_64_wide_where_nothing_else_is_said():
    state, _ = published(decoder_embed_dim=64)
    config = load_published(state, patch_size=(2, 128)).config
    assert (config.num_heads, config.decoder_num_heads) == (1, 1)


@pytest.mark.parametrize("head", ["reconstruction", "classification"])
def test_a_head_that_the_weights_lack_is_not_built(head):
    state, _ = published()
    model = load_published({name: value for name, value in state.items() if f"final_proj_{head}" not in name}, **SIZES)
    assert getattr(model, f"{head}_head") is None


def test_a_head_without_weight_is_left_out():
    state, _ = published()
    content = {"model": state, "cfg": {"criterion": {"classification_weight": 0.0}}}
    assert load_published(content, **SIZES).classification_head is None


def test_an_unknown_tensor_is_an_error_that_names_it():
    state, _ = published()
    with pytest.raises(UserError, match=r"pos_conv\.weight"):
        load_published({**state, "pos_conv.weight": torch.zeros(7)}, **SIZES)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.1.fc2.bias",
        "decoder.layers.0.self_attn.q_proj.weight",
        "decoder.layer_norm.bias",
        "batch_norm.running_var",
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(name):
    state, _ = published()
    del state[name]
    with pytest.raises(UserError, match=rename(name.replace("self_attn.q_proj", "attn.qkv")).replace(".", r"\.")):
        load_published(state, **SIZES)


@pytest.mark.parametrize("letter", ["k", "v"])
def test_a_missing_part_of_the_attention_is_an_error_that_names_it(letter):
    state, _ = published()
    name = f"encoder.layers.1.self_attn.{letter}_proj.weight"
    del state[name]
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_published(state, **SIZES)
