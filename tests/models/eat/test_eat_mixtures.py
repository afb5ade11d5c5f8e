"""SSLAM's second stage on EAT: mixtures by maximum, and targets that keep both sources."""

from __future__ import annotations

import pytest
import torch
from test_eat_model import SEED, SIZES, SOURCE, build, random_mask
from torch import Tensor

from amae_plugin.models.base import summed_losses
from amae_plugin.models.eat.mixtures import Mixtures
from amae_plugin.modules.embedding import patchify
from amae_plugin.modules.masking import ClipNoise

GRID = (64, 2)  # two stretches of 15 columns
PATCHES = torch.randn(300, 128, 16, generator=torch.Generator().manual_seed(1))


def test_a_mixture_is_the_louder_of_two_clips_except_in_two_stretches() -> None:
    mixtures = Mixtures.draw(PATCHES, GRID, ClipNoise(torch.arange(300)))
    own = PATCHES.eq(mixtures.patches).all(-1).unflatten(1, GRID).all(-1)
    starts = []
    for index, columns in enumerate(own.tolist()):
        runs = [start for start in range(50) if all(columns[start : start + 15])]
        starts.append((runs[0], runs[-1]))
        mixed = torch.maximum(PATCHES[index], PATCHES[index - 1])
        kept = torch.zeros(64, dtype=torch.bool)
        kept[runs[0] : runs[0] + 15] = kept[runs[-1] : runs[-1] + 15] = True
        places = (~kept).repeat_interleave(2).nonzero()[:, 0]
        assert torch.equal(mixtures.places[index], places) and len(places) == 68
        assert torch.equal(mixtures.patches[index][places], mixed[places])
        assert torch.equal(mixtures.second[index], PATCHES[index - 1][places])
    # As published: starts in the first half, then anywhere behind with a column after it.
    firsts, seconds = zip(*starts)
    assert (min(firsts), max(firsts), max(seconds)) == (0, 31, 48)
    assert min(second - first for first, second in starts) == 15


def test_a_mixture_is_seen_under_its_clips_masks_and_keeps_both_sources() -> None:
    model, clones = build(mixtures=True, clones=2).eval(), random_mask(4, 32)
    output = model(SOURCE, mask=clones, seed=SEED)
    mixtures = Mixtures.draw(patchify(SOURCE, (8, 8)), (8, 4), ClipNoise(SEED))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "prediction": (8, 32, 32),
        "target": (4, 32, 32),
        "mask": (8, 32),
        "latent": (8, 9, 32),
        "target_variance": (),
        "last_block": (4, 32, 32),
        "retained": (2, 32, 32),
    }
    plain = build(clones=2).eval()
    mixed = Tensor(mixtures.patches).unflatten(1, (8, 4)).unflatten(3, (8, 8)).transpose(2, 3).reshape(2, 64, 32)
    for number, source in enumerate((SOURCE, mixed)):
        alone = plain(source, mask=clones)
        for name in ("prediction", "latent", "mask"):
            torch.testing.assert_close(output[name].unflatten(0, (2, 2, 2))[:, number].flatten(0, 1), alone[name])
        torch.testing.assert_close(output["target"][number::2], alone["target"])
    for clip in range(2):
        places = mixtures.places[clip]
        positions = model.encoder.positions((8, 4))[:, 1:]
        other, _ = model.teacher.targets(patchify(SOURCE, (8, 8))[1 - clip, places][None], positions[:, places])
        expected = output["target"][2 * clip].clone()
        expected[places] = (expected[places] + other[0]) / 2
        torch.testing.assert_close(output["retained"][clip], expected)


def test_losses_of_mixtures() -> None:
    model = build(mixtures=True, clones=2)
    output = model(SOURCE, seed=SEED)
    mask = output["mask"]
    sums = summed_losses(model, output, mask)
    means = {name: float(value.detach() / mask.sum()) for name, value in sums.items()}
    errors = (output["prediction"] - output["target"].repeat_interleave(2, dim=0)).square().sum(-1) / 32**0.5
    assert means["frame"] == pytest.approx(float(errors.detach()[mask].mean()), rel=1e-5)
    whole = output["last_block"].mean(dim=1).repeat_interleave(2, dim=0)
    errors = (output["latent"][:, 0] - whole).square().sum(-1) / 32**0.5
    assert means["utterance"] == pytest.approx(float(errors.detach().mean()), rel=1e-5)
    of_mixtures = output["prediction"].unflatten(0, (2, 2, 2))[:, 1]
    errors = (of_mixtures - output["retained"][:, None]).square().sum(-1) / 32**0.5
    hidden = mask.unflatten(0, (2, 2, 2))[:, 1]
    assert means["mixture"] == pytest.approx(float(errors.detach()[hidden].mean()), rel=1e-5)
    assert means["loss"] == pytest.approx(means["frame"] + 192 * means["utterance"] + means["mixture"], rel=1e-5)
    sums["loss"].backward()
    assert all((p.grad is None) == name.startswith("teacher.") for name, p in model.named_parameters())


@pytest.mark.parametrize("frames", [8, 40])
def test_short_clips_have_short_stretches(frames: int) -> None:
    output = build(mixtures=True)(SOURCE[:, :frames])
    assert all(value.isfinite().all() for value in output.values())
    assert SIZES["input_length"] > frames
