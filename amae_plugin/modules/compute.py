"""Devices and compilation."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch._functorch.config
from torch import nn

from amae_plugin.errors import UserError

_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)


def choose_device(name: str | torch.device) -> torch.device:
    """Find a device by name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which prefers a GPU.

    Raises:
        UserError: no device has that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or str(device) not in ("cpu", "cuda", f"cuda:{device.index}"):
        raise UserError(f"device {name}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"device {name}: PyTorch finds no such GPU, as it finds {count}; use another or cpu")
    return device


@contextmanager
def enough_memory(device: torch.device, what: str) -> Iterator[None]:
    """Turn the errors of memory that does not suffice, on a CPU or a GPU, into messages.

    Args:
        device: device of the block's work.
        what: the work, and advice, which end the message.

    Raises:
        UserError: the memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(f"the memory of {device} does not suffice for {what}") from None
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that the memory of a CPU or a GPU does not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_NO_MEMORY.search(str(error)))


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
