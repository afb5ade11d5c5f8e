from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amae_plugin.models.registry import find_system
from amae_plugin.models.ssast import SSAST, SSASTConfig
from amae_plugin.modules.masking import ClipNoise


def tiny(**changes: object) -> SSAST:
    """A model for 64 x 32 inputs: 8 x 4 patches of 8 x 8."""
    torch.manual_seed(0)
    sizes: dict[str, object] = {
        "input_length": 64,
        "num_mel_bins": 32,
        "patch_size": (8, 8),
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "mask_ratio": 0.75,
    }
    return SSAST(SSASTConfig(**{**sizes, **changes}))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def joint_loss(model: SSAST, output: dict[str, Tensor]) -> Tensor:
    losses = model.token_losses(output)
    return sum(model.loss_weights[name] * loss.sum() for name, loss in losses.items()) / output["mask"].sum()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch_size", "masking"), [((16, 16), "cluster"), ((2, 128), "random")])
def test_published_number_of_hidden_tokens(patch_size: tuple[int, int], masking: str) -> None:
    model = tiny(
        input_length=1024, num_mel_bins=128, patch_size=patch_size, masking=masking, depth=0, mask_ratio=0.78125
    )
    mask = model(noise(3, 1024, 128), seed=torch.arange(3))["mask"]
    assert mask.shape == (3, 512)
    assert mask.sum(1).tolist() == [400] * 3
    assert SSASTConfig().mask_ratio == 0.78125


def test_published_sizes() -> None:
    sizes = {
        "tiny": {"embed_dim": 192, "num_heads": 3},
        "small": {"embed_dim": 384, "num_heads": 6},
        "base": {"embed_dim": 768, "num_heads": 12},
    }
    with torch.device("meta"):
        millions = {
            name: sum(p.numel() for p in SSAST(SSASTConfig(**s)).encoder.parameters()) / 1e6
            for name, s in sizes.items()
        }
    # Published: 6, 23 and 89 million, the last of them with the heads of pretraining.
    assert millions == pytest.approx({"tiny": 5.5, "small": 21.6, "base": 85.7}, abs=0.1)


def test_sampled_masks_are_those_of_the_strategy() -> None:
    model, seed = tiny(), torch.arange(20)
    assert torch.equal(model(noise(20, 64, 32), seed=seed)["mask"], model.masking(ClipNoise(seed), (8, 4)))


def test_checkpoints_of_frequency_major_weights_are_turned_when_they_are_loaded() -> None:
    torch.manual_seed(3)
    model = tiny(patch_size=(4, 16))
    grid = model.encoder.positions.grid  # 16 x 2
    old = dict(model.state_dict())
    old["encoder.patch_embed.proj.weight"] = old["encoder.patch_embed.proj.weight"].transpose(2, 3)
    table = old["encoder.positions.pos_embed"]
    by_band = table[:, 2:].unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    old["encoder.positions.pos_embed"] = torch.cat([table[:, :2], by_band], dim=1)
    old["encoder.positions.grid_shape"] = old.pop("encoder.positions.table_grid").flip(0)
    for head in ("reconstruction_head.2", "classification_head.2"):
        for part in ("weight", "bias"):
            rows = old[f"{head}.{part}"]
            old[f"{head}.{part}"] = rows.unflatten(0, (4, 16)).transpose(0, 1).flatten(0, 1)
    loaded = tiny(patch_size=(4, 16))
    loaded.load_state_dict(old)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def looped_info_nce(output: dict[str, Tensor]) -> float:
    """The definition, clip by clip and patch by patch; the mean loss and the share that is found."""
    losses = []
    for target, prediction, mask in zip(output["target"], output["classification"], output["mask"]):
        target, prediction = target[mask], prediction[mask]
        probability = torch.stack([(prediction @ patch).softmax(0) for patch in target])
        losses += [-probability[i, i].log() for i in range(len(target))]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("hidden", [(24, 24), (30, 3), (1, 32)])
def test_info_nce_is_its_definition_whatever_the_number_of_hidden_patches(hidden: tuple[int, int]) -> None:
    mask = torch.arange(32) < torch.tensor(hidden)[:, None]
    mask = mask[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    target = noise(2, 32, 64).flip(1)
    classification = noise(2, 32, 64) / 8 + 0.1 * target
    output = {"prediction": classification, "classification": classification, "target": target, "mask": mask}
    losses, loss = tiny().token_losses(output)["info_nce"], looped_info_nce(output)
    assert (losses.sum() / mask.sum()).item() == pytest.approx(loss, rel=1e-5)
    assert not losses[~mask].any()


def test_a_perfect_prediction_has_no_error() -> None:
    target = 3 * noise(2, 32, 64)
    mask = torch.arange(32).expand(2, -1) % 4 > 0
    output = {"prediction": target, "classification": target, "target": target, "mask": mask}
    losses = tiny().token_losses(output)
    assert losses["info_nce"].max() < 1e-3
    assert not losses["reconstruction"].any()


def test_a_clip_in_which_nothing_is_hidden_leaves_the_gradients_finite() -> None:
    model = tiny()
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :5] = True
    loss = joint_loss(model, model(noise(2, 64, 32), mask))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_perfect_prediction_reconstructs_the_source() -> None:
    model, source = tiny(), noise(2, 64, 32)
    output = model(source)
    assert torch.equal(model.reconstruct(source, output["target"], output["mask"]), source)


def test_the_system_is_built_from_the_settings_of_a_recipe() -> None:
    settings = {"_name": "amae_ssast", "input_length": 32, "patch_size": [2, 128], "embed_dim": 24, "num_heads": 3}
    system = find_system(settings)
    model = system.model({**settings, "patch_stride": None})
    assert model.config == SSASTConfig(input_length=32, patch_size=(2, 128), embed_dim=24, num_heads=3)
    assert system.encoder({**settings, "patch_stride": [1, 128]}).positions.grid == (31, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_stride": (5, 5)}, "overlap in fine-tuning only"),
        ({"masking": "checkerboard"}, "'checkerboard'; there are: random, time, frequency"),
        ({"mask_ratio": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"input_length": 60}, "60 frames x 32 bands cannot be cut into patches of 8 frames x 8 bands"),
        ({"embed_dim": 28}, "width of 28 cannot be divided among 3 heads"),
        ({"patch_stride": (5, 0)}, "5 frames and 0 bands apart"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
