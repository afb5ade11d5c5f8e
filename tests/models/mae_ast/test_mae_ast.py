import pytest
import torch

from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.embedding import patchify, unpatchify

MASKINGS = ["random", "random_batched", "chunk", "span"]
UNDISTURBED = {"dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0}
SIZES = {
    "num_mel_bins": 32,
    "patch_size": (8, 8),
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}


def tiny(**changes):
    """A model for 32 bands; a 64 x 32 input has 8 x 4 tokens of 8 x 8."""
    torch.manual_seed(0)
    return MAEAST(MAEASTConfig(**{**SIZES, **UNDISTURBED, **changes}))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def mean_losses(model, output):
    return {name: loss.sum() / output["mask"].sum() for name, loss in model.token_losses(output).items()}


def loss_of(model, output):
    return sum(model.loss_weights[name] * loss for name, loss in mean_losses(model, output).items())


def padding_of(frames, longest=64):
    return torch.arange(longest) >= torch.tensor(frames)[:, None]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("patch_size", "tokens"), [((8, 8), 32), ((2, 32), 32)])
@pytest.mark.parametrize("masking", MASKINGS)
def test_output_has_the_shapes_and_types_of_the_contract(masking, patch_size, tokens, bf16):
    output = tiny(masking=masking, patch_size=patch_size, bf16=bf16)(noise(5, 64, 32))
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    values = (5, tokens, 64)
    assert shapes == {"prediction": values, "classification": values, "target": values, "mask": (5, tokens)}
    assert all(output[name].dtype == torch.float32 for name in ("prediction", "classification", "target"))
    assert output["mask"].dtype == torch.bool
    assert (output["mask"].sum(1) == 24).all()


def test_a_given_mask_is_used_and_hidden_tokens_have_no_influence():
    model = tiny().eval()
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :20] = mask[1, 12:] = True
    source = noise(2, 64, 32)
    changed = unpatchify(torch.where(mask[..., None], 100.0, patchify(source, (8, 8))), (8, 4), (8, 8))
    one, other = model(source, mask), model(changed, mask)
    assert torch.equal(one["mask"], mask)
    assert torch.equal(one["prediction"], other["prediction"])
    assert torch.equal(one["classification"], other["classification"])
    assert not torch.equal(one["target"], other["target"])


def test_clips_that_hide_different_numbers_are_predicted_as_each_alone():
    model = tiny().eval()
    mask = torch.zeros(4, 32, dtype=torch.bool)
    mask[0, :20] = mask[1, 3:] = mask[2] = True  # and nothing of the last
    source = noise(4, 64, 32)
    together = model(source, mask)
    for clip in (0, 1, 3):
        alone = model(source[clip : clip + 1], mask[clip : clip + 1])
        assert_close(together["prediction"][clip : clip + 1], alone["prediction"])
    assert together["prediction"].isfinite().all()
    loss_of(model, together).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("masking", ["random", "chunk", "span"])
def test_a_seed_gives_a_clip_the_same_mask_in_any_batch(masking):
    model = tiny(masking=masking).eval()
    source, seed = noise(4, 64, 32), torch.tensor([5, 6, 7, 8])
    together = model(source, seed=seed)
    torch.manual_seed(123)
    order = [2, 0]
    again = model(source[order], seed=seed[order])
    assert torch.equal(again["mask"], together["mask"][order])
    assert_close(again["prediction"], together["prediction"][order])
    assert len(together["mask"].unique(dim=0)) == 4


@pytest.mark.parametrize("masking", ["random", "chunk", "span"])
@pytest.mark.parametrize("patch_size", [(8, 8), (2, 32)])
def test_a_padded_clip_has_the_mask_predictions_and_losses_that_it_has_alone(masking, patch_size):
    model = tiny(masking=masking, patch_size=patch_size).eval()
    source, seed, frames = noise(3, 64, 32), torch.tensor([5, 6, 7]), [40, 64, 16]
    padding = padding_of(frames)
    together = model(source.masked_fill(padding[..., None], 77.0), seed=seed, padding_mask=padding)
    losses = model.token_losses(together)
    for clip, valid in enumerate(frames):
        alone = model(source[clip : clip + 1, :valid], seed=seed[clip : clip + 1])
        tokens = alone["mask"].shape[1]
        assert torch.equal(together["mask"][clip, :tokens], alone["mask"][0])
        assert not together["mask"][clip, tokens:].any()
        for name in ("prediction", "classification", "target"):
            assert_close(together[name][clip, :tokens], alone[name][0])
        for name, loss in model.token_losses(alone).items():
            assert_close(losses[name][clip, :tokens], loss[0])
            assert not losses[name][clip, tokens:].any()


def test_a_partly_padded_token_counts_and_its_padding_does_not():
    model = tiny().eval()
    source, padding = noise(2, 64, 32), padding_of([64, 17])
    assert (~model.encoder.patch_padding(padding)).sum(1).tolist() == [32, 12]
    seed = torch.tensor([1, 2])
    expected = model(source, seed=seed, padding_mask=padding)
    changed = model(source.masked_fill(padding[..., None], 1e3), seed=seed, padding_mask=padding)
    assert all(torch.equal(changed[name], expected[name]) for name in expected)


def test_a_given_mask_hides_no_padding():
    model, padding = tiny(), padding_of([64, 40])
    mask = torch.ones(2, 32, dtype=torch.bool)
    mask[:, :5] = False
    output = model(noise(2, 64, 32), mask, padding_mask=padding)
    assert torch.equal(output["mask"], mask & ~model.encoder.patch_padding(padding))


def test_a_padding_mask_without_padding_changes_nothing():
    model = tiny().eval()
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    plain = model(source, seed=seed)
    masked = model(source, seed=seed, padding_mask=padding_of([64, 64]))
    assert all(torch.equal(plain[name], masked[name]) for name in plain)


def test_a_clip_that_is_all_padding_leaves_everything_finite():
    model = tiny()
    output = model(noise(2, 64, 32), padding_mask=padding_of([64, 0]))
    assert not output["mask"][1].any()
    loss = loss_of(model, output)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    features, padding = model.extract_features(noise(1, 64, 32), padding_of([0]))
    assert features.isfinite().all()
    assert padding.all()


@pytest.mark.parametrize("frames", [8, 48, 104, 1000])
def test_any_multiple_of_the_patch_is_a_valid_length(frames):
    model = tiny()
    output = model(noise(2, frames, 32))
    assert output["prediction"].shape == (2, frames // 2, 64)
    loss_of(model, output).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("weights", "built", "absent", "key"),
    [
        ((10.0, 0.0), "reconstruction", "classification", "prediction"),
        ((0.0, 1.0), "classification", "reconstruction", "classification"),
    ],
)
def test_a_weight_of_0_builds_no_head(weights, built, absent, key):
    model = tiny(reconstruction_weight=weights[0], info_nce_weight=weights[1])
    names = {name.split(".")[0] for name in model.state_dict()}
    assert f"{built}_head" in names
    assert f"{absent}_head" not in names
    output = model(noise(2, 64, 32))
    assert set(output) == {key, "target", "mask"}
    losses = mean_losses(model, output)
    assert list(losses) == list(model.loss_weights)
    loss_of(model, output).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_projection_is_there_only_between_different_widths():
    assert "decoder.embed.weight" in tiny().state_dict()
    same = tiny(decoder_embed_dim=24)
    assert "decoder.embed.weight" not in same.state_dict()
    assert same(noise(1, 64, 32))["prediction"].shape == (1, 32, 64)


def test_features_are_the_encoder_with_nothing_hidden_and_padding_has_no_influence():
    model = tiny().eval()
    source, padding = noise(2, 64, 32), padding_of([40, 64])
    features, token_padding = model.extract_features(source.masked_fill(padding[..., None], 9.0), padding)
    assert features.shape == (2, 32, 24)
    assert features.dtype == torch.float32
    assert torch.equal(token_padding, padding[:, ::8].repeat_interleave(4, dim=1))
    alone, nothing = model.extract_features(source[:1, :40])
    assert nothing is None
    assert_close(features[:1, :20], alone)


def test_everything_is_at_rest_in_evaluation_and_random_in_training():
    model = tiny(dropout=0.3, attention_dropout=0.3, dropout_input=0.3, layerdrop=0.3)
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    assert not torch.equal(model(source, seed=seed)["prediction"], model(source, seed=seed)["prediction"])
    model.eval()
    assert torch.equal(model(source, seed=seed)["prediction"], model(source, seed=seed)["prediction"])


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "dropout_input"])
def test_each_dropout_acts(name):
    model = tiny(**{name: 0.5})
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    assert not torch.equal(model(source, seed=seed)["prediction"], model(source, seed=seed)["prediction"])


def test_layerdrop_skips_blocks_of_the_encoder_as_often_as_told():
    model = tiny(layerdrop=0.25, depth=4)
    runs = [0] * 4
    for index, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    torch.manual_seed(0)
    source = noise(1, 16, 32)
    for _ in range(400):
        model(source)
    assert all(250 < count < 350 for count in runs)
    model.eval()(source)
    before = list(runs)
    model(source)
    assert runs == [count + 1 for count in before]


def test_predictions_are_brought_back_to_the_scale_of_the_source():
    model = tiny()
    source = -5 + 3 * noise(2, 64, 32)
    model(source)
    output = model.eval()(source)
    assert_close(model.reconstruct(source, output["target"], output["mask"]), source)
    visible_only = model.reconstruct(source, torch.full_like(output["target"], 9.0), output["mask"])
    kept = ~output["mask"]
    assert torch.equal(patchify(visible_only, (8, 8))[kept], patchify(source, (8, 8))[kept])


def test_bf16_keeps_float32_weights_and_nearly_the_same_numbers():
    full, half = tiny(), tiny(bf16=True)
    source, seed = noise(4, 64, 32), torch.arange(4)
    gradients = []
    for model in (full, half):
        loss = loss_of(model, model(source, seed=seed))
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.995
    assert not torch.equal(*gradients)


def test_compiled_blocks_give_the_same_numbers_and_gradients():
    # With dropout: compiled code draws what uncompiled code does.
    dropout = {"dropout": 0.1, "attention_dropout": 0.1, "dropout_input": 0.1}
    plain, compiled = (tiny(depth=1, decoder_depth=1, **dropout) for _ in range(2))
    compiled.compile_blocks()
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    losses = []
    for model in (plain, compiled):
        torch.manual_seed(3)
        losses.append(loss_of(model, model(source, seed=seed)))
        losses[-1].backward()
    assert_close(losses[1], losses[0])
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_model_first_used_in_inference_mode_can_be_trained():
    model, source = tiny(), noise(2, 64, 32)
    with torch.inference_mode():
        model.eval()(source)
    model.train()
    loss_of(model, model(source)).backward()
    assert model.encoder.patch_embed.proj.weight.grad.isfinite().all()


def test_every_parameter_is_trained():
    model = tiny()
    loss_of(model, model(noise(2, 64, 32))).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_forty_steps_learn_one_batch():
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    time, band = torch.arange(64)[:, None], torch.arange(32)[None]
    source = torch.stack([torch.sin(time / (2 + k) + band / (5 + k)) for k in range(4)])
    history = []
    for _ in range(40):
        losses = mean_losses(model, model(source, seed=torch.arange(4)))
        optimizer.zero_grad()
        sum(model.loss_weights[name] * loss for name, loss in losses.items()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in ("reconstruction", "info_nce"):
        assert history[-1][name] < 0.9 * history[0][name], name


SETTINGS = {"_name": "amae_mae_ast", **SIZES, "patch_size": [8, 8], **UNDISTURBED}


def test_the_system_is_built_from_a_recipes_settings_and_its_encoder_is_the_models():
    model, encoder = SYSTEMS["amae_mae_ast"].model(SETTINGS), SYSTEMS["amae_mae_ast"].encoder(SETTINGS)
    assert model.config == MAEASTConfig(**{**SIZES, **UNDISTURBED})
    prefix = "encoder."
    state = {name[len(prefix) :]: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    encoder.load_state_dict(state)


def test_the_classifier_takes_the_encoder():
    classifier = Classifier(ClassifierConfig(encoder=SETTINGS, num_classes=3))
    logits = classifier(noise(2, 64, 32), seed=torch.tensor([1, 2]))["logits"]
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert (
        classifier.layer_index("encoder.norm_pre.weight")
        == classifier.layer_index("encoder.patch_embed.proj.weight")
        == 0
    )
    assert classifier.layer_index("encoder.blocks.1.norm2.bias") == 2
    whole = Classifier(ClassifierConfig(encoder=SETTINGS, num_classes=3, drop_path=0.0)).eval()
    output = whole(noise(2, 64, 32))
    tokens = whole.encoder(*whole.encoder.patches(noise(2, 64, 32)))
    assert_close(output["features"], whole.fc_norm(tokens.mean(1)))


@pytest.mark.parametrize("pooling", ["cls", "avgcls"])
def test_a_classifier_cannot_pool_a_class_token_that_is_not_there(pooling):
    with pytest.raises(ValueError, match=f"pooling is {pooling}, but .* no class token: choose mean or avgtok"):
        Classifier(ClassifierConfig(encoder=SETTINGS, num_classes=3, pooling=pooling))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": "checkerboard"}, "'checkerboard'; there are: random"),
        ({"mask_ratio": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"masking": "span", "mask_length": 0}, "at least 1 token long, not 0"),
        ({"dropout": 1.0}, r"model\.dropout must be at least 0 and below 1, not 1.0"),
        ({"layerdrop": -0.1}, r"model\.layerdrop must be at least 0 and below 1, not -0.1"),
        ({"patch_size": (8, 7)}, "32 bands cannot be cut into patches of 8 frames x 7 bands"),
        ({"embed_dim": 28}, "width of 28 cannot be divided among 3 heads"),
        ({"embed_dim": 27}, "even width, not 27"),
        ({"decoder_embed_dim": 18, "decoder_num_heads": 4}, "width of 18 cannot be divided among 4 heads"),
        ({"reconstruction_weight": 0.0, "info_nce_weight": 0.0}, "one of them above, not 0.0 and 0.0"),
        ({"info_nce_weight": -1.0}, "must be at least 0"),
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
