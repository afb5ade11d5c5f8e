"""Schedules of the learning rate: cosines that end with the run, and a plateau that goes on with a resumed run."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import time
from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch.distributed as dist
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.cosine_lr_scheduler import CosineLRSchedule, CosineLRScheduleConfig
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)
from omegaconf import II

from amae_plugin.errors import UserError


@register_lr_scheduler("amae_cosine", dataclass=CosineLRScheduleConfig)
class Cosine(CosineLRSchedule):
    """fairseq's cosine schedule, whose last value stays after the last update.

    fairseq sets, and logs, a learning rate for the update after it, which would be the first of the next period.
    """

    def step_update(self, num_updates: float) -> float:
        """Set the learning rate after an update."""
        endless = self.cfg.max_update <= 0  # periods of lr_period_updates, and a run that its epochs end
        return super().step_update(num_updates if endless else min(num_updates, self.cfg.max_update - 1))


@dataclass
class CosineByTimeConfig(CosineLRScheduleConfig):
    """Settings of :class:`CosineByTime`: those of fairseq's ``cosine``, and the time."""

    stop_time_hours: float = II("optimization.stop_time_hours")


@register_lr_scheduler("amae_cosine_by_time", dataclass=CosineByTimeConfig)
class CosineByTime(Cosine):
    """fairseq's cosine schedule for a run that ends with ``optimization.stop_time_hours``, however fast the machine is.

    The schedule's ``max_update`` updates are spread over the time, of which warm-up takes the share ``warmup_updates /
    max_update``. fairseq ends the run by the clock only if ``optimization.max_update`` exceeds the updates that fit
    into the time. A resumed run counts the time before. With several processes, the first one's clock counts.

    Raises:
        UserError: there is no time limit, or ``max_update`` is not above ``warmup_updates``.
    """

    def __init__(self, cfg: CosineByTimeConfig, optimizer: FairseqOptimizer):
        if cfg.stop_time_hours <= 0:
            raise UserError("lr_scheduler amae_cosine_by_time: optimization.stop_time_hours must be above 0")
        if cfg.max_update <= cfg.warmup_updates:
            problem = f"{cfg.max_update}, must be above lr_scheduler.warmup_updates, {cfg.warmup_updates}"
            raise UserError(f"lr_scheduler amae_cosine_by_time: optimization.max_update, {problem}")
        super().__init__(cfg, optimizer)
        # fairseq builds the schedule at the first update; its clock for the limit has run since it built the trainer.
        wall = metrics.get_meter("default", "wall")
        self._start = time.monotonic() - (wall.elapsed_time if wall is not None else 0.0)

    def step_update(self, num_updates: float) -> float:
        """Set the learning rate of this moment, whatever the number of updates."""
        seconds = [time.monotonic() - self._start]
        if dist.is_initialized():
            dist.broadcast_object_list(seconds, src=0)
        share = seconds[0] / (3600 * self.cfg.stop_time_hours)
        return super().step_update(share * self.cfg.max_update)

    def state_dict(self) -> Dict[str, Any]:
        """Add the time so far, in seconds, to fairseq's state; only the first process is asked for it."""
        return {**super().state_dict(), "seconds": time.monotonic() - self._start}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue from that time; with a checkpoint of another schedule, which has none, the time begins."""
        super().load_state_dict(state_dict)
        self._start = time.monotonic() - state_dict.get("seconds", 0.0)


@register_lr_scheduler("amae_plateau", dataclass=ReduceLROnPlateauLRScheduleConfig)
class Plateau(ReduceLROnPlateauLRSchedule):
    """fairseq's ``reduce_lr_on_plateau``, with which a resumed run goes on as if it had not stopped.

    fairseq keeps no count of the epochs without improvement, and leaves the learning rate to the optimizer's state.
    """

    lr: Optional[float]

    def step(self, epoch: int, val_loss: Optional[float] = None) -> float:
        """Reduce the learning rate at the end of an epoch, if its loss is one too many without improvement."""
        self.lr = super().step(epoch, val_loss)
        return self.lr

    def step_update(self, num_updates: int) -> float:
        """Set the learning rate after an update."""
        super().step_update(num_updates)
        if self.lr is None:
            self.lr = self.optimizer.get_lr()
        self.optimizer.set_lr(self.lr)
        return self.lr

    def state_dict(self) -> Dict[str, Any]:
        """Add the count, the learning rate that follows the warm-up, and the one of the settings."""
        peak = self.cfg.lr[0]
        lr = self.lr if self.warmup_end else peak
        return {**super().state_dict(), "bad_epochs": self.lr_scheduler.num_bad_epochs, "lr": lr, "peak": peak}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue, as many times below the learning rate of the settings; begin, if the state is another schedule's.

        A state of fairseq's schedule has no learning rate: the optimizer's holds.
        """
        if "last_epoch" not in state_dict:
            return
        super().load_state_dict(state_dict)
        self.lr_scheduler.num_bad_epochs = state_dict.get("bad_epochs", 0)
        self.lr = state_dict["lr"] * (self.cfg.lr[0] / state_dict["peak"]) if "lr" in state_dict else None
