from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from amae_plugin.modules.blocks import Block, PostNormBlock, init_linear
from amae_plugin.modules.local_attention import WindowBlock, plan_windows


@pytest.mark.parametrize(("dim", "heads", "ratio"), [(24, 3, 4.0), (32, 8, 2.0)])
def test_block_is_timms_with_the_same_weights(dim, heads, ratio):
    torch.manual_seed(0)
    theirs = TimmBlock(dim, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = Block(dim, heads, ratio)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, dim)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_post_norm_block_is_pytorchs_with_the_same_weights():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, activation="gelu", batch_first=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    ours = PostNormBlock(24, 3, 2.0)
    state = theirs.state_dict()
    for official, name in names.items():
        state = {key.replace(official, name): value for key, value in state.items()}
    ours.load_state_dict(state)
    x = torch.randn(3, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_of_post_norm_blocks_acts_in_training_only(rates):
    torch.manual_seed(0)
    block, x = PostNormBlock(24, 3, **rates), torch.randn(1, 16, 24)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_post_norm_branches_that_are_scaled_to_nothing_leave_the_norms():
    torch.manual_seed(0)
    block, x = PostNormBlock(24, 3), torch.randn(2, 5, 24)
    plain = block(x)
    for scale, expected in ((1.0, plain), (0.0, block.norm2(block.norm1(x)))):
        block.drop_path1.scale = block.drop_path2.scale = torch.full((2, 1, 1), scale)
        torch.testing.assert_close(block(x), expected)


def test_linear_layers_are_initialised_by_the_function_and_without_biases():
    torch.manual_seed(0)
    block = PostNormBlock(96, 3)
    init_linear(block, partial(nn.init.normal_, std=0.02))
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.attn.qkv.bias.any()


@pytest.mark.parametrize("kind", [Block, PostNormBlock])
def test_padding_is_as_if_it_were_not_there(kind):
    torch.manual_seed(0)
    block = kind(24, 3)
    x = torch.randn(2, 9, 24)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[:, 6:] = True
    torch.testing.assert_close(block(x, padding)[:, :6], block(x[:, :6]), rtol=1e-5, atol=1e-5)


def test_tokens_of_different_windows_do_not_see_each_other():
    torch.manual_seed(0)
    block = WindowBlock(24, 3).eval()
    plan = plan_windows((8, 4), (4, 4), (0, 0), torch.device("cpu"))
    x = torch.randn(1, 32, 24)
    changed = x.clone()
    changed[:, 16:] = torch.randn(1, 16, 24)
    before, after = block(x, plan), block(changed, plan)
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:])


def test_the_temperature_is_bounded_from_below():
    torch.manual_seed(0)
    block = WindowBlock(24, 3).eval()
    plan = plan_windows((4, 4), (4, 4), (0, 0), torch.device("cpu"))
    x = torch.randn(1, 16, 24)
    outputs = []
    for tau in (0.01, 1e-9, -5.0):
        nn.init.constant_(block.attn.tau, tau)
        outputs.append(block(x, plan))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_position_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block = WindowBlock(24, 3)
    plan = plan_windows((4, 4), (4, 4), (0, 0), torch.device("cpu"))
    x = torch.randn(1, 16, 24)
    assert not torch.equal(block(x, plan), block(x, plan))
    block.eval()
    assert torch.equal(block(x, plan), block(x, plan))


def test_equal_tokens_and_zero_tokens_give_finite_gradients():
    torch.manual_seed(0)
    block = WindowBlock(24, 3)
    plan = plan_windows((4, 4), (4, 4), (0, 0), torch.device("cpu"))
    for parameter in (block.attn.qkv.bias, block.mlp.fc2.bias):
        nn.init.zeros_(parameter)
    x = torch.zeros(1, 16, 24, requires_grad=True)
    block(x, plan).sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in block.parameters())):
        assert gradient.isfinite().all()
