"""Devices and compilation."""

from collections.abc import Iterable

import torch
import torch._functorch.config
from torch import nn

from amae_plugin.errors import UserError


def choose_device(name: str) -> torch.device:
    """Find a device by name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which prefers a GPU.

    Raises:
        UserError: no device has that name.
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


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Let PyTorch compile modules, in place, at their first use; on a CPU this needs a C++ compiler.

    Compilation fuses the element-wise work of transformer blocks. The backward pass recomputes what is cheap instead of
    keeping it.
    """
    # Below 1, the backward pass recomputes activations wherever that costs next to no time. On ViT-B this saves a
    # quarter of the memory and costs no time.
    torch._functorch.config.activation_memory_budget = 0.9
    for module in modules:
        module.compile()
