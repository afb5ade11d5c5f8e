import pytest
import torch

from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.embedding import patchify

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
        ({"reconstruction_weight": 0.0, "info_nce_weight": 0.0}, "not both 0, but are 0.0 and 0.0"),
        ({"info_nce_weight": -1.0}, "must be at least 0"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
