import math

import pytest
import torch

from amae_plugin.modules.losses import info_nce, reconstruction


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


@pytest.mark.parametrize("loss", [reconstruction, info_nce])
def test_visible_tokens_have_no_influence_and_get_no_gradient(loss):
    prediction, target, mask = some()
    changed = torch.where(mask[..., None], target, 50.0)
    assert torch.equal(loss(prediction, target, mask), loss(prediction, changed, mask))
    prediction.requires_grad_()
    loss(prediction, target, mask).sum().backward()
    assert not prediction.grad[~mask].any()
    assert prediction.grad[mask].any(dim=-1).all()


@pytest.mark.parametrize("loss", [reconstruction, info_nce])
def test_a_clip_with_nothing_masked_costs_nothing_and_has_no_gradient(loss):
    prediction, target, mask = some()
    mask[1] = False
    prediction.requires_grad_()
    losses = loss(prediction, target, mask)
    losses.sum().backward()
    assert not losses[1].any()
    assert not prediction.grad[1].any()
    assert prediction.grad.isfinite().all()
