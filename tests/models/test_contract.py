"""The contract of every pretraining model, run over the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amae_plugin.models.base import PretrainingModel, summed_losses
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.embedding import patchify, unpatchify
from amae_plugin.modules.masking import MASKINGS

# 64 frames x 32 bands are 8 x 4 patches of 8 x 8; settings that a system does not have are ignored.
SIZES = {
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
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.0,
    "clones": 3,
    "image_size": 16,
    "image_patch_size": 4,
}
PAIRS = "amae_cav_mae pairs"  # of a sound and a picture; without a picture it is like any other system
VARIANTS = {
    **{name: (name, {}) for name in SYSTEMS},
    "amae_audio_mae hybrid": ("amae_audio_mae", {"decoder": "hybrid"}),
    "amae_audio_mae global": ("amae_audio_mae", {"decoder": "global"}),
    "amae_audio_mae multi_window": ("amae_audio_mae", {"decoder": "multi_window", "decoder_num_heads": 4}),
    "amae_cav_mae sounds": ("amae_cav_mae", {"modalities": ("audio",)}),
    PAIRS: ("amae_cav_mae", {"modalities": ("audio", "image")}),
}
Variant = tuple[str, dict[str, object]]


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


def build(variant: Variant, **changes: object) -> PretrainingModel:
    torch.manual_seed(0)
    model = SYSTEMS[variant[0]].model({**SIZES, **variant[1], **changes})
    if variant is VARIANTS[PAIRS]:
        model.register_forward_pre_hook(with_pictures, with_kwargs=True)
    return model


def with_pictures(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model with a picture for each clip, by its seed."""
    clips = kwargs["seed"] if "seed" in kwargs else torch.arange(len(args[0]))
    pictures = torch.arange(9 * 3 * 16 * 16, device=clips.device).square().sin().view(9, 3, 16, 16)
    return args, {**kwargs, "image": pictures[clips % 9]}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def clones(model: PretrainingModel) -> int:
    """Masks of a clip."""
    return getattr(model.config, "clones", 1)


def mean_loss(model: PretrainingModel, output: dict[str, Tensor]) -> Tensor:
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def width(model: PretrainingModel) -> int:
    """The values of a patch, or of a teacher's features."""
    return 64 if model.teacher is None else 24


def predictions(model: PretrainingModel, output: dict[str, Tensor]) -> list[Tensor]:
    return [output[name] for name in ("prediction", "classification") if name in output]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_have_shapes_and_types(variant: Variant, bf16: bool) -> None:
    model = build(variant, bf16=bf16, masking="random")
    output = model(noise(5, 64, 32))
    masks = 5 * clones(model)
    assert model.draws == ("reconstruction" in model.loss_weights)
    assert predictions(model, output)
    assert ("target_variance" in output) == (model.teacher is not None)
    assert (output["target"].shape, output["target"].dtype) == ((5, 32, width(model)), torch.float32)
    for values in predictions(model, output):
        assert (values.shape, values.dtype) == ((masks, 32, width(model)), torch.float32)
    assert output["mask"].shape == (masks, 32) and output["mask"].dtype == torch.bool
    assert ((~output["mask"]).sum(1) == 8).all()
    losses = model.token_losses(output)
    assert losses.keys() <= model.loss_weights.keys()
    assert losses.keys() == model.loss_weights.keys() or variant is VARIANTS["amae_cav_mae"]
    assert all(values.shape in ((masks, 32), (masks,)) for values in losses.values())
    assert all(not values[~output["mask"]].any() for values in losses.values() if values.dim() == 2)


@pytest.mark.parametrize("masking", MASKINGS)
def test_every_masking_strategy_trains(variant: Variant, masking: str) -> None:
    model = build(variant, masking=masking, mask_ratio=0.5, mask_ratio_time=0.25, mask_ratio_frequency=0.5)
    output = model(noise(2, 64, 32), seed=torch.tensor([3, 4]))
    assert (~output["mask"]).sum(1).tolist() == [model.masking.num_visible((8, 4))] * 2 * clones(model)
    assert mean_loss(model, output).isfinite()


def test_a_given_mask_is_used_and_hidden_patches_have_no_influence(variant: Variant) -> None:
    model = build(variant).eval()
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :20] = mask[1, 12:] = True
    source = noise(2, 64, 32)
    patches = patchify(source, (8, 8))
    changed = unpatchify(torch.where(mask[..., None], 7.0, patches), (8, 4), (8, 8))
    seed = torch.tensor([3, 4])
    one, other = model(source, mask=mask, seed=seed), model(changed, mask=mask, seed=seed)
    assert torch.equal(one["mask"], mask)
    for before, after in zip(predictions(model, one), predictions(model, other)):
        assert torch.equal(before, after)
        assert not torch.allclose(before[0, 0], before[0, 1])  # but its place is seen


@pytest.mark.parametrize("masking", ["random", "chunk", "span"])
def test_a_seed_gives_a_clip_the_same_mask_in_any_batch(variant: Variant, masking: str) -> None:
    model = build(variant, masking=masking).eval()
    source, seed = noise(4, 64, 32), torch.tensor([5, 6, 7, 8])
    together, alone = model(source, seed=seed), model(source[2:3], seed=seed[2:3])
    of_clip = slice(2 * clones(model), 3 * clones(model))
    assert torch.equal(alone["mask"], together["mask"][of_clip])
    assert_close(alone["prediction"], together["prediction"][of_clip])
    assert len(together["mask"].unique(dim=0)) == len(together["mask"])  # no two clips, no two clones alike


def test_without_seeds_masks_come_from_pytorchs_generator(variant: Variant) -> None:
    model, masks = build(variant), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(model(noise(2, 64, 32))["mask"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("frames", [8, 40, 48, 104])
def test_any_multiple_of_the_patch_is_a_valid_length(variant: Variant, frames: int) -> None:
    model = build(variant)
    output = model(noise(2, frames, 32), seed=torch.tensor([1, 2]))
    assert output["prediction"].shape == (2 * clones(model), frames // 2, width(model))
    mean_loss(model, output).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_features_are_the_encoder_with_nothing_hidden(variant: Variant) -> None:
    model, source = build(variant).eval(), noise(2, 64, 32)
    features, padding = model.extract_features(source)
    prefix = model.encoder.num_prefix_tokens
    assert padding is None and features.shape == (2, prefix + 32, 24)
    patches, grid = model.encoder.patches(source)
    assert grid == (8, 4)
    assert_close(features, model.encoder(patches, grid))
    order = torch.randperm(32).expand(2, -1)  # visible patches in any order
    shuffled = model.encoder(patches, grid, order)
    assert_close(shuffled[:, prefix:], features[:, prefix:].gather(1, order[..., None].expand(-1, -1, 24)))
    steps = model.encoder.time_steps(features[:, prefix:], model.encoder.joins_bands)
    assert steps.shape == (2, 8, 96 if model.encoder.joins_bands else 24)
    assert_close(model.features(source), steps.mean(1))
    assert_close(model.encoder.mean_of_patches(features, None), features[:, prefix:].mean(1))
    assert torch.equal(model.outputs(source), features) and model.output_name == "features"


def test_padding_has_no_influence_on_the_features_of_the_rest(variant: Variant) -> None:
    model, source = build(variant).eval(), noise(2, 64, 32)
    frames = torch.zeros(2, 64, dtype=torch.bool)
    frames[0, 40:] = True
    frames[1, 17:] = True  # the third column of patches is partly real
    features, padding = model.extract_features(source, frames)
    expected = torch.zeros(2, 8, 4, dtype=torch.bool)
    expected[0, 5:] = expected[1, 3:] = True
    prefix = torch.zeros(2, model.encoder.num_prefix_tokens, dtype=torch.bool)
    assert torch.equal(padding, torch.cat([prefix, expected.flatten(1)], dim=1))
    changed = source.clone()
    changed[0, 40:] = changed[1, 24:] = 1e3
    assert_close(model.extract_features(changed, frames)[0][~padding], features[~padding])


def test_a_clip_that_is_all_padding_gives_finite_features(variant: Variant) -> None:
    model = build(variant).eval()
    padding = torch.zeros(2, 64, dtype=torch.bool)
    padding[1] = True
    assert model.extract_features(noise(2, 64, 32), padding)[0].isfinite().all()


def test_a_reconstruction_keeps_what_is_visible_and_uses_nothing_of_what_is_hidden(variant: Variant) -> None:
    model, source = build(variant).eval(), noise(2, 64, 32)
    if not model.draws:
        return
    output = model(source, seed=torch.tensor([1, 2]))
    mask = output["mask"]
    drawn = model.reconstruct(source, output["prediction"], mask)
    kept = patchify(drawn, (8, 8))[~mask]
    assert_close(kept, patchify(source, (8, 8))[~mask])
    changed = unpatchify(torch.where(mask[..., None], 7.0, patchify(source, (8, 8))), (8, 4), (8, 8))
    assert_close(model.reconstruct(changed, output["prediction"], mask), drawn)


def test_bf16_keeps_float32_weights_and_nearly_the_same_loss(variant: Variant) -> None:
    losses = []
    for bf16 in (False, True):
        model = build(variant, bf16=bf16)
        loss = mean_loss(model, model(noise(4, 64, 32), seed=torch.arange(4)))
        loss.backward()
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


# Together they have every kind of block: windowed, pre-norm and post-norm.
@pytest.mark.parametrize("name", ["amae_audio_mae", "amae_mae_ast"])
def test_compiled_blocks_give_the_same_numbers_and_gradients(name: str) -> None:
    sizes = {"depth": 1, "decoder_depth": 1}
    plain, compiled = (build(VARIANTS[name], **sizes).eval() for _ in range(2))
    compiled.compile_blocks()
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    for model in (plain, compiled):
        mean_loss(model, model(source, seed=seed)).backward()
    assert_close(compiled(source, seed=seed)["prediction"], plain(source, seed=seed)["prediction"])
    for (parameter, one), other in zip(plain.named_parameters(), compiled.parameters()):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=parameter)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_state_dict_restores_the_model(variant: Variant, tmp_path: Path) -> None:
    one, other = build(variant).eval(), build(variant).eval()
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(one.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    source, seed = noise(2, 64, 32), torch.tensor([1, 2])
    for first, second in zip(predictions(one, one(source, seed=seed)), predictions(other, other(source, seed=seed))):
        assert torch.equal(first, second)


@pytest.mark.parametrize("frames", [64, 40])
def test_a_model_first_used_in_inference_mode_can_be_trained(variant: Variant, frames: int) -> None:
    model, source = build(variant), noise(2, frames, 32)
    with torch.inference_mode():
        model(source)
        model.extract_features(source)
    mean_loss(model, model(source)).backward()
    assert model.encoder.patch_embed.proj.weight.grad.isfinite().all()


def test_every_parameter_is_trained(variant: Variant) -> None:
    model = build(variant, masking="random")
    mean_loss(model, model(noise(2, 64, 32))).backward()
    of_teacher = {f"teacher.{name}" for name, _ in model.teacher.named_parameters()} if model.teacher else set()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == of_teacher


def test_a_teacher_follows_the_encoder_after_an_update_and_any_other_model_stays_as_it_is(variant: Variant) -> None:
    model = build(variant)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.after_update(1, 10)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("teacher.")}
    for name in changed:
        old, online = before[name], before[name.replace("teacher.", "encoder.", 1)]
        assert_close(model.state_dict()[name], old + (1 - model.teacher.decay.at(1, 10)) * (online - old))


def test_a_batch_is_learned_in_every_objective(variant: Variant) -> None:
    model, source = build(variant), 0.5 * noise(4, 64, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        output = model(source, seed=torch.arange(4))
        loss = mean_loss(model, output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value.mean()) for name, value in model.token_losses(output).items()})
    for name in history[0]:
        assert history[-1][name] < 0.9 * history[0][name], name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": "checkerboard"}, "'checkerboard'; there are: random, time, frequency"),
        ({"mask_ratio": 1.0, "masking": "random"}, "mask_ratio must be at least 0 and below 1, not 1.0"),
        ({"masking": "chunk", "mask_options": {"side": 3}}, "masking chunk has no side"),
        ({"embed_dim": 28}, "width of 28 cannot be divided among 3 heads"),
        ({"num_mel_bins": 30}, r"frames x 30 bands cannot be cut into patches of 8 frames x 8 bands"),
    ],
)
def test_settings_that_make_no_model_are_refused(variant: Variant, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(variant, **changes)


@pytest.mark.parametrize(
    ("source", "mask", "message"),
    [
        ((2, 60, 32), None, "60 frames x 32 bands"),
        ((2, 64, 32), (2, 30), r"mask.*\(2, 32\), not \(2, 30\)"),
        ((2, 64, 32), (1, 32), r"mask.*\(2, 32\), not \(1, 32\)"),
        ((64, 32), None, r"\(clips, frames, bands\), not \(64, 32\)"),
    ],
)
def test_inputs_of_the_wrong_shape_are_refused(
    variant: Variant, source: tuple[int, ...], mask: tuple[int, int] | None, message: str
) -> None:
    given = None if mask is None else torch.zeros(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        build(variant)(torch.zeros(source), mask=given)
