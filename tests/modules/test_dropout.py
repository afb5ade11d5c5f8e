from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amae_plugin.modules.blocks import Dropout, attention, random_kept


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_elements_stay_with_their_probability_and_the_mean_is_kept(p: float) -> None:
    torch.manual_seed(0)
    elements = 400_003  # no multiple of the four that share a draw
    y = Dropout(p)(torch.ones(elements))
    stayed = (y != 0).double()
    # Five standard deviations: the chance that a right implementation fails is below one in a million.
    assert stayed.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / elements) ** 0.5)
    assert y[stayed.bool()].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)


def test_elements_are_independent() -> None:
    torch.manual_seed(0)
    stayed = random_kept((1_000_000,), 0.5).double()
    for distance in (1, 2, 3, 4, 8, 64):
        together = (stayed[:-distance] * stayed[distance:]).mean().item()
        assert together == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 1_000_000) ** 0.5 + 1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_at_rest_in_evaluation_and_without_a_probability() -> None:
    x = noise(5, 7)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_the_seed_decides_and_the_gradient_is_the_factor() -> None:
    x = noise(50, 20).requires_grad_()
    torch.manual_seed(3)
    y = Dropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(x), y)
    assert not torch.equal(Dropout(0.3)(x), y)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


def by_definition(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, p: float) -> Tensor:
    """Softmax, PyTorch's rule of dropout with the same draw, weighted sum."""
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    kept = random_kept((scores.shape[0] * scores.shape[1], *scores.shape[2:]), p).view(scores.shape)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None, :], -torch.inf)
    return (scores.softmax(-1) * kept / (1 - p)) @ value


@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_its_definition(padded: bool) -> None:
    qkv = [noise(3, 5, 20, 8).roll(turn).requires_grad_() for turn in range(3)]
    padding = torch.arange(20) >= torch.tensor([20, 13, 1])[:, None] if padded else None
    results = []
    for function in (attention, by_definition):
        torch.manual_seed(5)
        output = function(*qkv, padding, 0.25)  # a multiple of 2^-16
        results.append((output, *torch.autograd.grad(output, qkv, noise(3, 5, 20, 8).flip(0))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_scores_far_apart_stay_finite() -> None:
    qkv = [(100 * noise(1, 2, 9, 4)).requires_grad_() for _ in range(3)]
    output = attention(*qkv, None, 0.25)
    gradients = torch.autograd.grad(output.sum(), qkv)
    assert all(x.isfinite().all() for x in (output, *gradients))


def test_attention_in_bfloat16_is_nearly_that_in_float32() -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        qkv = [noise(2, 3, 40, 16).roll(turn).to(dtype).requires_grad_() for turn in range(3)]
        torch.manual_seed(5)
        output = attention(*qkv, None, 0.25)
        assert output.dtype == dtype
        gradients = torch.autograd.grad(output, qkv, torch.ones_like(output))
        assert {x.dtype for x in gradients} == {dtype}
        results.append([x.float().flatten() for x in (output, *gradients)])
    for full, half in zip(*results):
        assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.999


def test_what_the_compiler_is_told_of_the_operator_is_true() -> None:
    # Two calls differ, which is all that the last of opcheck's tests could compare.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(random_kept, ((3, 5), 0.5), test_utils=checks)
