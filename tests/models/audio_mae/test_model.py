import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.modules.embedding import patchify, unpatchify
from amae_plugin.modules.local_attention import padded_grid

DECODERS = ["shifted", "hybrid", "global"]


def tiny(**changes):
    """A model for 64 x 32 inputs: 8 x 4 patches of 8 x 8."""
    torch.manual_seed(0)
    sizes = {
        "input_length": 64,
        "num_mel_bins": 32,
        "patch_size": (8, 8),
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "decoder_embed_dim": 16,
        "decoder_depth": 3,
        "decoder_num_heads": 2,
        "decoder_global_blocks": 1,
        "mask_ratio": 0.75,
    }
    return AudioMAE(AudioMAEConfig(**{**sizes, **changes}))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def loss_of(output):
    return (output["prediction"] - output["target"]).square().mean(-1)[output["mask"]].mean()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_latent_tokens_follow_the_grid():
    model = tiny(depth=0).eval()
    source = noise(1, 64, 32)
    mask = torch.ones(1, 32, dtype=torch.bool)
    mask[0, [3, 17, 30]] = False
    everything, _ = model.extract_features(source)
    assert_close(model(source, mask)["latent"], everything[:, [0, 4, 18, 31]])


def test_another_length_is_the_same_function_as_a_model_built_for_it():
    model, longer = tiny().eval(), tiny(input_length=104).eval()
    source, seed = noise(2, 104, 32), torch.tensor([1, 2])
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("pos_embed")}
    longer.load_state_dict(weights, strict=False)
    assert torch.equal(model(source, seed=seed)["prediction"], longer(source, seed=seed)["prediction"])


class Poison(torch.nn.Module):
    """A window block that first overwrites the padding of the grid."""

    def __init__(self, block, grid, padded, value):
        super().__init__()
        self.block, self.value = block, value
        row, column = torch.arange(padded[0]), torch.arange(padded[1])
        self.padding = ((row >= grid[0])[:, None] | (column >= grid[1])[None]).flatten()

    def forward(self, x, plan):
        return self.block(torch.where(self.padding[plan.order][:, None], self.value, x), plan)


@settings(max_examples=20)
@given(
    grid=st.tuples(st.integers(1, 11), st.integers(1, 6)),
    shift=st.sampled_from([(2, 0), (2, 2), (1, 3)]),
    tau=st.sampled_from([1.0, 0.01]),
    value=st.floats(-1e3, 1e3),
)
def test_padding_of_windows_that_do_not_divide_the_grid_has_no_influence(grid, shift, tau, value):
    model = tiny(num_mel_bins=8 * grid[1], input_length=8 * grid[0], decoder_shift=shift, mask_ratio=0.5).eval()
    for block in model.decoder.blocks:
        torch.nn.init.constant_(block.attn.tau, tau)
    source, seed = noise(2, 8 * grid[0], 8 * grid[1]), torch.tensor([1, 2])
    expected = model(source, seed=seed)["prediction"]
    padded = padded_grid(grid, (4, 4))
    for index, block in enumerate(model.decoder.blocks):
        model.decoder.blocks[index] = Poison(block, grid, padded, value)
    assert_close(model(source, seed=seed)["prediction"], expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_windows_limit_what_a_prediction_sees(decoder):
    """Patches that no chain of windows connects to a visible patch are predicted as if it were absent."""
    model = tiny(decoder=decoder, depth=0, input_length=256, decoder_depth=2).eval()
    source = noise(1, 256, 32)
    mask = torch.ones(1, 128, dtype=torch.bool)
    mask[0, 0] = False
    changed = source.clone()
    changed[:, :8, :8] += 5
    difference = (model(source, mask)["prediction"] - model(changed, mask)["prediction"]).abs().amax((0, 2))
    reached = (difference > 1e-7).view(32, 4).any(1)
    # Windows of rows 0-3, then shifted ones of rows 2-5.
    assert reached.tolist() == ([True] * 6 + [False] * 26 if decoder == "shifted" else [True] * 32)


def test_targets_are_normalised_by_each_patchs_own_statistics():
    source = 3 + 5 * noise(2, 64, 32)
    target = tiny()(source)["target"]
    patches = patchify(source, (8, 8))
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    assert_close(target, (patches - mean) / (variance + 1e-6).sqrt())
    assert torch.equal(tiny(norm_pix_loss=False)(source)["target"], patches)


def test_a_perfect_prediction_reconstructs_the_source():
    model = tiny(norm_pix_loss=False)
    source = 3 + 5 * noise(2, 64, 32)
    output = model(source)
    assert torch.equal(model.reconstruct(source, output["target"], output["mask"]), source)


def test_level_and_spread_of_normalised_targets_are_interpolated_from_visible_patches():
    model = tiny()
    levels = torch.linspace(-1, 1, 8)[:, None].expand(8, 4).reshape(1, 32, 1)
    patches = patchify(noise(1, 64, 32), (8, 8))
    patches = levels + 0.2 * (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)
    source = unpatchify(patches, (8, 4), (8, 8))
    mask = torch.arange(32)[None] % 3 != 0
    target = model(source, mask)["target"]
    found = patchify(model.reconstruct(source, target, mask), (8, 8))
    assert (found.mean(-1, keepdim=True) - levels).abs().max() < 0.25
    assert (found.std(-1) - 0.2).abs().max() < 0.01


def test_padding_says_nothing_about_the_level_of_patches():
    model = tiny()
    source = noise(1, 64, 32)
    source[:, 20:] = 50.0
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[0, 7] = True
    padding_mask = torch.arange(64)[None] >= 20
    prediction = torch.zeros(1, 32, 64)
    assert model.reconstruct(source, prediction, mask)[0, 8:16, 24:].mean() > 2
    assert model.reconstruct(source, prediction, mask, padding_mask)[0, 8:16, 24:].abs().max() < 0.5
    everything = torch.ones(1, 64, dtype=torch.bool)
    assert not model.reconstruct(source, prediction, mask, everything)[0, 8:16, 24:].any()


def test_every_parameter_is_trained_but_the_fixed_positions():
    model = tiny(decoder="hybrid")
    loss_of(model(noise(2, 64, 32))).backward()
    untrained = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert untrained == []
    assert not any(name.endswith("pos_embed") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "conv"}, "'conv'; there are: shifted, hybrid, global"),
        ({"masking": "checkerboard"}, "'checkerboard'; there are: random, time, frequency, time_frequency"),
        ({"mask_ratio": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"masking": "time_frequency", "mask_ratio_time": -0.5}, "at least 0 and below 1, not -0.5"),
        ({"input_length": 60}, "60 frames x 32 bands cannot be cut into patches of 8 frames x 8 bands"),
        ({"decoder": "hybrid", "decoder_global_blocks": 3}, "needs 1 to 2 global ones"),
        ({"embed_dim": 30}, "multiple of 4, not 30"),
        ({"embed_dim": 28}, "width of 28 cannot be divided among 3 heads"),
        ({"decoder_embed_dim": 20, "decoder_num_heads": 3}, "width of 20 cannot be divided among 3 heads"),
        (
            {"decoder_embed_dim": 20, "decoder_num_heads": 3, "decoder": "global"},
            "width of 20 cannot be divided among 3 heads",
        ),
        ({"decoder_window": (0, 4)}, r"decoder_window=\(0, 4\)"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_masks_that_hide_different_numbers_are_refused():
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(ValueError, match=r"same number of tokens visible; these leave \[31, 32\]"):
        tiny()(noise(2, 64, 32), mask)
