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


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_output_has_the_shapes_and_types_of_the_contract(decoder, bf16):
    output = tiny(decoder=decoder, bf16=bf16)(noise(5, 64, 32))
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes == {"prediction": (5, 32, 64), "target": (5, 32, 64), "mask": (5, 32), "latent": (5, 1 + 8, 24)}
    assert output["prediction"].dtype == output["target"].dtype == torch.float32
    assert output["mask"].dtype == torch.bool
    assert ((~output["mask"]).sum(1) == 8).all()


def test_a_given_mask_is_used_and_hidden_patches_have_no_influence():
    model = tiny().eval()
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :20] = mask[1, 12:] = True
    source = noise(2, 64, 32)
    patches = patchify(source, (8, 8))
    changed = unpatchify(torch.where(mask[..., None], 100.0, patches), (8, 4), (8, 8))
    one, other = model(source, mask), model(changed, mask)
    assert torch.equal(one["mask"], mask)
    assert torch.equal(one["prediction"], other["prediction"])
    assert torch.equal(one["latent"], other["latent"])
    assert not torch.equal(one["target"], other["target"])


def test_latent_tokens_follow_the_grid():
    model = tiny(depth=0).eval()
    source = noise(1, 64, 32)
    mask = torch.ones(1, 32, dtype=torch.bool)
    mask[0, [3, 17, 30]] = False
    everything, _ = model.extract_features(source)
    assert_close(model(source, mask)["latent"], everything[:, [0, 4, 18, 31]])


def test_a_seed_gives_a_clip_the_same_mask_in_any_batch():
    model = tiny().eval()
    source, seed = noise(4, 64, 32), torch.tensor([5, 6, 7, 8])
    together = model(source, seed=seed)
    torch.manual_seed(123)
    order = [2, 0]
    again = model(source[order], seed=seed[order])
    assert torch.equal(again["mask"], together["mask"][order])
    assert_close(again["prediction"], together["prediction"][order])
    assert len(together["mask"].unique(dim=0)) == 4


def test_without_seeds_masks_come_from_pytorchs_generator():
    model, source = tiny(), noise(4, 64, 32)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(model(source)["mask"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("masking", "visible"), [("random", 8), ("time", 2 * 4), ("frequency", 8 * 1), ("time_frequency", 4 * 2)]
)
def test_masking_is_chosen_by_config(masking, visible):
    model = tiny(masking=masking, mask_ratio_time=0.5, mask_ratio_frequency=0.5)
    assert ((~model(noise(3, 64, 32))["mask"]).sum(1) == visible).all()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("frames", [8, 40, 48, 64, 104])
def test_any_multiple_of_the_patch_is_a_valid_length(decoder, frames):
    model = tiny(decoder=decoder)
    output = model(noise(2, frames, 32))
    assert output["prediction"].shape == (2, frames // 2, 64)
    loss_of(output).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    features, padding = model.extract_features(noise(2, frames, 32))
    assert features.shape == (2, 1 + frames // 2, 24)
    assert padding is None


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


@settings(max_examples=20, deadline=None)
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


def test_features_are_the_encoder_with_nothing_hidden():
    model = tiny().eval()
    source = noise(2, 64, 32)
    features, padding = model.extract_features(source)
    assert padding is None
    assert features.dtype == torch.float32
    nothing_hidden = torch.zeros(2, 32, dtype=torch.bool)
    assert_close(features, model(source, nothing_hidden)["latent"])


def test_padding_has_no_influence_on_the_features_of_the_rest():
    model = tiny().eval()
    source = noise(2, 64, 32)
    frames = torch.zeros(2, 64, dtype=torch.bool)
    frames[0, 40:] = True
    frames[1, 17:] = True  # the third row of patches is partly real
    features, padding = model.extract_features(source, frames)
    assert features.shape == (2, 33, 24)
    expected = torch.zeros(2, 33, dtype=torch.bool)
    expected[0, 1 + 20 :] = expected[1, 1 + 12 :] = True
    assert torch.equal(padding, expected)
    changed = source.clone()
    changed[0, 40:] = changed[1, 24:] = 1e3
    assert_close(model.extract_features(changed, frames)[0][~padding], features[~padding])
    shorter, _ = model.extract_features(source[:1, :40])
    assert_close(features[:1, : 1 + 20], shorter)


def test_a_clip_that_is_all_padding_gives_finite_features():
    features, padding = tiny().extract_features(noise(1, 64, 32), torch.ones(1, 64, dtype=torch.bool))
    assert features.isfinite().all()
    assert padding.sum() == 32


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


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_reconstruction_keeps_what_is_visible_and_uses_nothing_of_what_is_hidden(norm_pix_loss):
    model = tiny(norm_pix_loss=norm_pix_loss)
    source = 3 + 5 * noise(2, 64, 32)
    prediction, mask = noise(2, 32, 64), torch.rand(2, 32) < 0.7
    patches = patchify(source, (8, 8))
    changed = unpatchify(torch.where(mask[..., None], 100.0 + 7 * patches, patches), (8, 4), (8, 8))
    one, other = (patchify(model.reconstruct(x, prediction, mask), (8, 8)) for x in (source, changed))
    assert torch.equal(one[~mask], patches[~mask])
    assert torch.equal(one[mask], other[mask])


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


@pytest.mark.parametrize("decoder", DECODERS)
def test_bf16_keeps_float32_weights_and_nearly_the_same_numbers(decoder):
    full, half = tiny(decoder=decoder), tiny(decoder=decoder, bf16=True)
    half.load_state_dict(full.state_dict())
    source, seed = noise(4, 64, 32), torch.arange(4)
    outputs = []
    for model in (full.eval(), half.eval()):
        output = model(source, seed=seed)
        loss_of(output).backward()
        outputs.append(output)
    assert torch.equal(outputs[0]["mask"], outputs[1]["mask"])
    assert torch.equal(outputs[0]["target"], outputs[1]["target"])
    assert loss_of(outputs[1]).item() == pytest.approx(loss_of(outputs[0]).item(), rel=0.01)
    difference = outputs[0]["prediction"] - outputs[1]["prediction"]
    assert 0 < difference.std() < 0.02 * outputs[0]["prediction"].std()  # bfloat16 has 8 bits: it is used, and works
    for name, parameter in half.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (full, half)]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.995


def test_compiled_blocks_give_the_same_numbers_and_gradients():
    plain, compiled = (tiny(depth=1, decoder_depth=2).eval() for _ in range(2))
    compiled.compile_blocks()
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    for model in (plain, compiled):
        loss_of(model(source, seed=seed)).backward()
    assert_close(compiled(source, seed=seed)["prediction"], plain(source, seed=seed)["prediction"])
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_state_dict_restores_the_model(decoder, tmp_path):
    one = tiny(decoder=decoder).eval()
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(one.state_dict(), tmp_path / "model.pt")
    other = tiny(decoder=decoder).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    assert torch.equal(one(source, seed=seed)["prediction"], other(source, seed=seed)["prediction"])


@pytest.mark.parametrize("frames", [64, 40])
def test_a_model_first_used_in_inference_mode_can_be_trained(frames):
    model, source = tiny(), noise(2, frames, 32)
    with torch.inference_mode():
        model(source)
        model.extract_features(source)
    loss_of(model(source)).backward()
    assert model.encoder.cls_token.grad.isfinite().all()


def test_every_parameter_is_trained_but_the_fixed_positions():
    model = tiny(decoder="hybrid")
    loss_of(model(noise(2, 64, 32))).backward()
    untrained = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert untrained == []
    assert not any(name.endswith("pos_embed") for name, _ in model.named_parameters())


def test_thirty_steps_learn_one_batch():
    model = tiny(decoder_depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    time, band = torch.arange(64)[:, None], torch.arange(32)[None]
    source = torch.stack([torch.sin(time / (2 + k) + band / (5 + k)) for k in range(4)])
    losses = []
    for _ in range(30):
        loss = loss_of(model(source, seed=torch.arange(4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


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


@pytest.mark.parametrize(
    ("source", "mask", "message"),
    [
        ((2, 60, 32), None, "60 frames x 32 bands"),
        ((2, 64, 32), (2, 30), r"mask.*\(2, 32\), not \(2, 30\)"),
        ((2, 64, 32), (1, 32), r"mask.*\(2, 32\), not \(1, 32\)"),
        ((2, 1, 64, 32), None, r"\(2, 1, 64, 32\)"),
    ],
)
def test_inputs_of_the_wrong_shape_are_refused(source, mask, message):
    mask = None if mask is None else torch.arange(mask[1]).expand(mask) % 2 == 0
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(source), mask)


def test_masks_that_hide_different_numbers_are_refused():
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(ValueError, match=r"same number of tokens visible; these leave \[31, 32\]"):
        tiny()(noise(2, 64, 32), mask)
