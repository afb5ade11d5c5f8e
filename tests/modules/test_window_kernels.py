"""The GPU's kernels, run on the CPU by Triton's interpreter; ``tests/gpu`` runs them on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from amae_plugin.modules.blocks import split_heads
from amae_plugin.modules.local_attention import cosine_attention, plan_windows

CLIPS, HEADS, WIDTH, WINDOW = 2, 3, 16, (4, 4)


def inputs(windows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, of which one is 0; temperatures, of which one is too low; biases."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(CLIPS * windows, 16, 3 * HEADS * WIDTH, generator=generator)
    qkv[0, 0, :WIDTH] = 0
    tau = torch.tensor([1.0, 0.2, 0.005])
    bias = torch.randn(HEADS, 16, 16, generator=generator)
    return qkv.requires_grad_(), tau.requires_grad_(), bias.requires_grad_()


def compare(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    """Compare the kernels with the operations that they replace."""
    from amae_plugin.modules import window_kernels

    plan = plan_windows(grid, WINDOW, shift, torch.device("cpu"))
    qkv, tau, bias = inputs(len(plan.order) // plan.window_length)
    expected = cosine_attention(*split_heads(qkv, HEADS), tau, bias, plan.separation).flatten(2)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    of_qkv, of_tau, of_bias = torch.autograd.grad(expected, (qkv, tau, bias), gradient)
    scale = 1 / tau.clamp(min=0.01)
    arguments = [value.detach() for value in (qkv, scale, bias)]
    output = window_kernels.forward(*arguments, plan.separation)
    torch.testing.assert_close(output, expected.detach(), rtol=1e-4, atol=1e-5)
    found, of_scale, biases = window_kernels.backward(gradient, *arguments, plan.separation)
    # Relative to the largest of its token, since those of the query that is 0 are large.
    largest = of_qkv.abs().amax(dim=-1, keepdim=True)
    torch.testing.assert_close(found / largest, of_qkv / largest, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(biases, of_bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(scale, tau, of_scale)[0], of_tau, rtol=1e-3, atol=1e-4)


def test_kernels_compute_cosine_attention_and_its_gradients() -> None:
    pytest.importorskip("triton", reason="PyTorch brings Triton on Linux alone")
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # which Triton reads when it is imported
    done = subprocess.run([sys.executable, __file__], env=interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    for grid, shift in (((8, 12), (0, 0)), ((8, 12), (2, 2)), ((7, 11), (2, 0))):
        compare(grid, shift)
