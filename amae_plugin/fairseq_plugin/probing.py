"""Probes of a model while it pretrains: whether the loss that falls is worth anything."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar
from omegaconf import II, DictConfig, OmegaConf

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME
from amae_plugin.errors import UserError
from amae_plugin.evaluation.frozen import POOLING
from amae_plugin.evaluation.probe import NeighbourProbe
from amae_plugin.fairseq_plugin.hydra import user_path
from amae_plugin.inference.model import AudioModel
from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.settings import setting

logger = logging.getLogger(__name__)
_TAG = "probe"
_LARGEST_SHARE = 0.2
"""Share of the time so far from which on no probe is made for the time's sake."""


@dataclass
class ProbingConfig(FairseqDataclass):
    """When a run probes its model, and on what."""

    probe_interval: int = setting(0, "updates between k-NN probes of the features on labelled clips, 0: none")
    probe_minutes: float = setting(0.0, "the same in minutes of training, 0: none")
    probe_data: Optional[str] = setting(None, "folder of labelled manifests for it: train, valid; null: task.data")
    probe_train_clips: int = setting(1000, "training clips that vote in it, about, of each class the same share")
    probe_valid_clips: int = setting(500, "validation clips that it tells apart, about")
    log_format: Optional[str] = II("oc.select:common.log_format,null")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")


class Probing:
    """Probes of a run: before its first update, and after each interval.

    Probes by the clock take a fifth of the time at most; on a machine that is too slow for them, there are fewer.

    The first process probes its own copy of the model; the others wait for it at their next update. Nothing about the
    training depends on whether it is probed, or how often.

    Args:
        cfg: settings of the task.
        data: folder of labelled manifests, unless the settings name another.
        model: section of the model that is probed.

    Raises:
        UserError: the folder has no labels, or a file is malformed.
    """

    def __init__(self, cfg: Any, data: Path, model: DictConfig):
        self._cfg = cfg
        self._settings = model
        data = data if cfg.probe_data is None else user_path(cfg.probe_data)
        names = ("train.tsv", "valid.tsv", "train.lbl", "valid.lbl", LABELS_NAME)
        if missing := [name for name in names if not (data / name).is_file()]:
            key = "probe_interval" if cfg.probe_interval else "probe_minutes"
            raise UserError(
                f"task.{key}={cfg[key]}: {data} has no {', '.join(missing)} to measure features on; name a folder of "
                f"labelled manifests by task.probe_data (amae manifest makes one), or set task.{key}=0"
            )
        self._probe = NeighbourProbe.read(data, cfg.probe_train_clips, cfg.probe_valid_clips)
        self._start: Optional[float] = None
        self._periods = 0
        self._spent = 0.0
        self._model: Optional[AudioModel] = None

    @classmethod
    def wanted(cls, cfg: Any) -> bool:
        """Tell whether the settings of a task ask for probes."""
        return cfg.probe_interval > 0 or cfg.probe_minutes > 0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a stop included."""
        if self._start is None:
            # fairseq's clock has run since it built the trainer, as the one by which it ends a run.
            wall = metrics.get_meter("default", "wall")
            self._start = time.monotonic() - (wall.elapsed_time if wall is not None else 0.0)
        return time.monotonic() - self._start

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self._start = time.monotonic() - seconds
        self._periods = self._periods_in(seconds)

    def before_first(self, model: PretrainingModel, update: int) -> None:
        """Probe a model that has made no update yet, once."""
        if update == 0 and self._model is None and _is_first():
            self._run(model, 0)

    def after(self, model: PretrainingModel, update: int) -> None:
        """Probe a model after an update if it is time."""
        seconds = self.seconds
        due = self._cfg.probe_interval > 0 and update % self._cfg.probe_interval == 0
        if self._periods_in(seconds) > self._periods and self._spent < _LARGEST_SHARE * seconds:
            self._periods, due = self._periods_in(seconds), True
        if due and _is_first():
            self._run(model, update)

    def _periods_in(self, seconds: float) -> int:
        minutes = self._cfg.probe_minutes
        return int(seconds / 60 / minutes) if minutes > 0 else 0

    def _run(self, model: PretrainingModel, update: int) -> None:
        """Probe the model, and log the value as fairseq logs a validation.

        Raises:
            UserError: the probe before the first update failed; a later one must not cost the run.
        """
        training, seconds = model.training, self.seconds
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
                value = self._probe(self._audio_model(model))
        except Exception:  # whatever it is
            if update == 0:
                raise
            logger.exception(f"no probe after update {update}; training goes on")
            return
        finally:
            model.train(training)
            self._spent += self.seconds - seconds
        bar = progress_bar.progress_bar(
            [], self._cfg.log_format, tensorboard_logdir=self._cfg.tensorboard_logdir, default_log_format="simple"
        )
        stats = {self._probe.measure: value, "num_updates": update, "seconds": seconds}
        bar.print(stats, tag=_TAG, step=update)

    def _audio_model(self, model: PretrainingModel) -> AudioModel:
        """Return the model as ``amae probe --pooling time_concat`` would see its checkpoint, in evaluation mode."""
        if self._model is None:
            sections = {"model": self._settings, "task": self._cfg}
            config = {
                name: OmegaConf.to_container(section, resolve=True, enum_to_str=True)
                for name, section in sections.items()
            }
            checkpoint = Checkpoint(Path("the model in training"), config, {})
            self._model = AudioModel(checkpoint, pooling=POOLING, model=model)
        return self._model.eval()


def _is_first() -> bool:
    return distributed_utils.get_global_rank() == 0
