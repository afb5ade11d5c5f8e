import math
from types import SimpleNamespace

import pytest
import torch

from amae_plugin.models.base import summed_losses
from amae_plugin.modules.losses import cosine, feature_variance, info_nce, reconstruction


def some(seed=0, clips=3, tokens=7, values=5):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn(clips, tokens, values, generator=generator) for _ in range(2))
    mask = torch.zeros(clips, tokens, dtype=torch.bool)
    mask[0, 2:] = mask[1, [0, 3]] = mask[2] = True
    return prediction, target, mask


def test_reconstruction_is_the_squared_error_of_masked_tokens():
    prediction, target, mask = some()
    loss = reconstruction(prediction, target, mask)
    assert not loss[~mask].any()
    expected = torch.nn.functional.mse_loss(prediction[mask], target[mask])
    torch.testing.assert_close(loss.sum() / mask.sum(), expected)


def test_info_nce_finds_each_target_among_the_masked_targets_of_its_clip():
    prediction, target, mask = some()
    loss = info_nce(prediction, target, mask)
    assert not loss[~mask].any()
    for clip in range(3):
        scores = prediction[clip, mask[clip]] @ target[clip, mask[clip]].T
        expected = torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)), reduction="none")
        torch.testing.assert_close(loss[clip, mask[clip]], expected)


def test_info_nce_of_equal_targets_is_the_logarithm_of_their_number():
    prediction, target, mask = some()
    loss = info_nce(prediction, target[:, :1].expand_as(target), mask)
    assert loss[0, 2].item() == pytest.approx(math.log(5), abs=1e-5)
    assert loss[1, 0].item() == pytest.approx(math.log(2), abs=1e-5)


def test_cosine_compares_directions_with_targets_of_any_level_and_spread():
    _, target, mask = some()
    for prediction, expected in (
        (target - target.mean(-1, keepdim=True), 0.0),
        (target.mean(-1, keepdim=True) - target, 4.0),
    ):
        loss = cosine(7 * prediction, 3 * target + 5, mask)
        torch.testing.assert_close(loss, expected * mask.float(), rtol=1e-4, atol=1e-4)


def test_the_variance_of_features_is_over_tokens_and_not_within_them():
    features = torch.randn(3, 7, 5)
    torch.testing.assert_close(feature_variance(features), features.flatten(0, 1).var(0, correction=0).mean())
    assert feature_variance(features[:1, :1].expand(3, 7, 5)) < 1e-12


def test_an_objective_of_whole_clips_is_a_mean_over_clips_however_the_batch_is_cut():
    generator = torch.Generator().manual_seed(0)
    tokens, clips = torch.rand(4, 6, generator=generator), torch.rand(4, generator=generator)
    mask = torch.tensor([True] * 4 + [False] * 2).expand(4, 6)
    sums = []
    for cut in (slice(0, 4), slice(0, 1), slice(1, 4)):
        losses = {"frame": tokens[cut] * mask[cut], "utterance": clips[cut]}
        model = SimpleNamespace(token_losses=lambda output: output, loss_weights={"frame": 1.0, "utterance": 192.0})
        sums.append(summed_losses(model, losses, mask[cut]))
    whole, *parts = sums
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    torch.testing.assert_close(whole["utterance"] / mask.sum(), clips.mean())
    torch.testing.assert_close(whole["loss"] / mask.sum(), tokens[mask].mean() + 192 * clips.mean())


@pytest.mark.parametrize("loss", [reconstruction, info_nce, cosine])
def test_visible_tokens_have_no_influence_and_get_no_gradient(loss):
    prediction, target, mask = some()
    changed = torch.where(mask[..., None], target, 50.0)
    assert torch.equal(loss(prediction, target, mask), loss(prediction, changed, mask))
    prediction.requires_grad_()
    loss(prediction, target, mask).sum().backward()
    assert not prediction.grad[~mask].any()
    assert prediction.grad[mask].any(dim=-1).all()


@pytest.mark.parametrize("loss", [reconstruction, info_nce, cosine])
def test_a_clip_with_nothing_masked_costs_nothing_and_has_no_gradient(loss):
    prediction, target, mask = some()
    mask[1] = False
    prediction.requires_grad_()
    losses = loss(prediction, target, mask)
    losses.sum().backward()
    assert not losses[1].any()
    assert not prediction.grad[1].any()
    assert prediction.grad.isfinite().all()
