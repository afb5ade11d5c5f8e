"""How a model's arithmetic is carried out: precision of matrix products, compilation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch._functorch.config
from torch import nn

from amae_plugin.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of that name; of ``"auto"``, a GPU if there is one.

    Raises:
        UserError: there is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name}: must be auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: PyTorch finds no such GPU; use cpu")
    return device


def matrix_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Context in which matrix products run in bfloat16 if wanted; everything else stays in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Have PyTorch compile transformer blocks, in place, at their first use (needs a C++ compiler on CPU).

    The blocks take nearly all the time; compiled, their element-wise work is fused, and what is cheap to compute again
    is not kept for the backward pass.
    """
    # Below 1, activations are recomputed in the backward pass wherever that costs next to no time; measured on ViT-B,
    # this saves a quarter of the memory and no time is lost.
    torch._functorch.config.activation_memory_budget = 0.9
    for block in blocks:
        block.compile()
