"""How far away the first line of a run's log is, which some recipes on some machines write after hours."""

import logging
import time
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from amae_plugin.recipe_files import recipe_folder

logger = logging.getLogger(__name__)
_LONG_S = 300.0


class FirstLine:
    """A warning of a first line that is more than minutes away, once, as soon as two batches show how long one takes.

    Args:
        batches: batches of a device up to the line.
        advice: what to do instead.
        clock: seconds.
    """

    def __init__(self, batches: int, advice: str, clock: Callable[[], float] = time.monotonic):
        self.batches = batches
        self.advice = advice
        self._clock = clock
        self._ends: list[float] = []

    def after_batch(self) -> None:
        """Take the time of the second batch, since the first one also prepares what the others reuse."""
        if len(self._ends) < 2:
            self._ends.append(self._clock())
            if len(self._ends) == 2:
                self._warn(self._ends[1] - self._ends[0])

    def _warn(self, seconds: float) -> None:
        left = seconds * (self.batches - 2)
        if left > _LONG_S:
            time_left = f"{left / 3600:.1f} hours" if left > 5400 else f"{left / 60:.0f} minutes"
            batches = f"{self.batches} batches of {seconds:.1f} s"
            logger.warning(f"the first line of the log comes in about {time_left}, after {batches}: {self.advice}")


def first_line(cfg: DictConfig, updates: int, epoch_itr: Any) -> FirstLine:
    """Say how far the first line of a run is: at the end of the log interval or of the epoch.

    Args:
        cfg: settings of the run.
        updates: those that it has made.
        epoch_itr: its batches.
    """
    frequencies = cfg.optimization.update_freq
    frequency = frequencies[min(epoch_itr.next_epoch_idx, len(frequencies)) - 1]
    to_line = cfg.common.log_interval - updates % cfg.common.log_interval
    batches = min(to_line * frequency, len(epoch_itr) - epoch_itr.iterations_in_epoch)
    return FirstLine(batches, _advice(cfg))


def _advice(cfg: DictConfig) -> str:
    recipe = cfg.task.get("recipe") or ""
    system = str(OmegaConf.select(cfg, "model.encoder._name") or cfg.model._name).removeprefix("amae_")
    small = f"{recipe.split('_', 1)[0]}_{system}_tiny"
    others = "lower task.clips_per_update and common.log_interval, or train on GPUs"
    if small == recipe or not (recipe_folder() / f"{small}.yaml").is_file():
        return others
    return f"take --config-name={small}, {others}"
