"""Moving average of a network's weights: a teacher that follows the network that learns from it.

The teacher computes targets without gradient, in evaluation mode. It changes after each optimizer step only, by a rate
that depends on nothing but the number of updates, so accumulation steps, ranks and a resumed run need no care.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.errors import UserError


@dataclass(frozen=True)
class LinearDecay:
    """Decay of a moving average, which grows linearly and then stays.

    Attributes:
        start: decay at update ``first``.
        end: decay from update ``updates`` on.
        updates: number of an update, the first one is 1; None: the last one of the run.
        first: number of an update, 0 for the state before the first one.

    Raises:
        ValueError: a decay is outside [0, 1], or the number of updates is below 1.
    """

    start: float
    end: float
    updates: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"the decay of a teacher lies between 0 and 1, not {self.start} to {self.end}")
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"the decay of a teacher changes over 1 update or more, not {self.updates}")

    def at(self, num_updates: int, max_update: int) -> float:
        """Return the decay at an update of a run of *max_update* updates.

        Raises:
            UserError: the decay changes over the run, whose length is unknown (0).
        """
        updates = self.updates or max_update
        if updates < 1:
            raise UserError(
                "the teacher's decay changes over the run, whose length is unknown: set optimization.max_update, or "
                "model.teacher_decay_updates"
            )
        share = (num_updates - self.first) / max(updates - self.first, 1)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def __str__(self) -> str:
        over = "the run" if self.updates is None else f"{self.updates:,} updates"
        return f"{self.start:g}" if self.start == self.end else f"{self.start:g} to {self.end:g} over {over}"


class MovingAverage(nn.Module):
    """Copies of parts of a module, which follow it slowly.

    The copies are float32, have the names of the parts that they follow, need no gradient and always are in evaluation
    mode. They belong to the state dict of the model that holds this module.

    Args:
        module: module that is followed, in its initial state.
        parts: names of its submodules and parameters to copy; dots lead into submodules.
        decay: schedule of the decay.

    Attributes:
        parts: names of the copied parts.
        decay: schedule of the decay.
    """

    def __init__(self, module: nn.Module, parts: Iterable[str], decay: LinearDecay):
        super().__init__()
        self.decay = decay
        self.parts = tuple(parts)
        for part in self.parts:
            own = copy.deepcopy(operator.attrgetter(part)(module))
            setattr(self, part, nn.Parameter(own.detach().float()) if isinstance(own, Tensor) else own.float())
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def follow(self, module: nn.Module, num_updates: int, max_update: int) -> None:
        """Move towards the module that is followed, after an optimizer step.

        Args:
            module: module that is followed.
            num_updates: number of updates so far, this one included.
            max_update: updates of the run, 0 if unknown.

        Raises:
            UserError: see :meth:`LinearDecay.at`.
        """
        weight = 1 - self.decay.at(num_updates, max_update)
        own, followed = self._pairs(module)
        torch._foreach_lerp_(own, [tensor.float() for tensor in followed], weight)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parts of a module with the copies that follow them."""
        own, followed = self._pairs(module)
        torch._foreach_copy_(followed, own)

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        names, own = zip(*self.named_parameters())
        return list(own), [module.get_parameter(name) for name in names]

    @override
    def train(self, mode: bool = True) -> MovingAverage:
        return super().train(False)
