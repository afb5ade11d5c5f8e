"""Devices and compilation."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amae_plugin.errors import UserError

_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)

_DRAWS = {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_, Tensor.erfinv_}
"""What PyTorch's initialisations at random come down to; the functions of ``nn.init`` are those that modes see."""


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


class NoDraws(TorchFunctionMode):
    """Context in which weights are not initialised at random, which takes most of the time of building a model.

    It is for models whose weights are loaded next.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Fill the tensor with zeros: draws within bounds go on until all values are in them."""
        options = kwargs or {}
        if func not in _DRAWS:
            return func(*args, **options)
        tensor: Tensor = (*args, *options.values())[0]
        tensor.detach().zero_()
        return tensor


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
