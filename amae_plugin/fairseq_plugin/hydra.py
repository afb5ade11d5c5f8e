"""What a recipe needs from this package before fairseq reads it: registration, and values computed from the data.

A recipe names :class:`RegisterPlugin` as a Hydra callback. Hydra imports it when a run starts, on whatever machine the
run starts on, so no ``common.user_dir`` has to be typed; and the resolvers below can be used in its values.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError


class RegisterPlugin(Callback):
    """Registers the plugin by being imported, prepares fairseq for a run, and returns the run's result.

    Attributes:
        result: best validation result of the latest run in this process; None if it was not validated.
    """

    result: float | None = None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the plugin's changes to fairseq, if they fit it.

        Raises:
            SystemExit: they do not; Hydra would turn any other error into a warning, and train without them.
        """
        try:
            # Imported here: with a launcher of its own, a sweep's process starts no run and needs no fairseq.
            from amae_plugin.fairseq_plugin import patches

            patches.check()
            patches.install()
        except (ImportError, UserError) as error:
            raise SystemExit(f"amae_plugin: {error}") from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Return the best validation result, ``checkpoint.best_checkpoint_metric``: what a sweeper optimises.

        ``fairseq-hydra-train`` returns nothing, so a sweeper could not choose.
        """
        from amae_plugin.evaluation.sweep import read_result

        RegisterPlugin.result = None
        if job_return.status == JobStatus.COMPLETED:
            with contextlib.suppress(UserError):  # not validated
                RegisterPlugin.result = read_result(job_return.cfg.checkpoint.save_dir).best
            job_return.return_value = RegisterPlugin.result

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the results of a sweep's runs, their mean and standard deviation."""
        if not config.hydra.launcher.get("wait", True):
            return  # the runs have only been submitted
        from amae_plugin.evaluation.sweep import summarize

        try:
            print(summarize(user_path(config.hydra.sweep.dir)))
        except UserError as error:
            # Of a sweep that failed, the error that made it fail is the one to read.
            print(f"no summary of the sweep: {error}")


def user_path(path: str) -> Path:
    """A path that the user typed, made absolute from where they typed it, also after Hydra changed the directory."""
    if HydraConfig.initialized() and not Path(path).is_absolute():
        return Path(hydra.utils.to_absolute_path(path))
    return Path(path).absolute()


def plugin_dir() -> str:
    """``${amae.plugin_dir:}``: the folder for ``common.user_dir``; started processes register the plugin by it."""
    return str(Path(__file__).parents[1])


def updates(data: str, subset: str, clips_per_update: int, epochs: float) -> int:
    """``${amae.updates:DATA,SUBSET,CLIPS_PER_UPDATE,EPOCHS}``: optimizer updates in so many epochs of a manifest."""
    return updates_of(len(Manifest.read(user_path(data) / f"{subset}.tsv")), clips_per_update, epochs)


def updates_of(clips: int, clips_per_update: int, epochs: float) -> int:
    """``${amae.updates_of:CLIPS,CLIPS_PER_UPDATE,EPOCHS}``: optimizer updates in so many epochs of so many clips."""
    return round(-(-int(clips) // int(clips_per_update)) * float(epochs))


def update_freq(clips_per_update: int, batch_size: int, devices: int) -> int:
    """``${amae.update_freq:CLIPS_PER_UPDATE,BATCH_SIZE,DEVICES}``: accumulation steps that make up the global batch.

    Raises:
        UserError: the global batch is not a multiple of what the devices compute at a time.
    """
    return _steps("task.clips_per_update", clips_per_update, "dataset.batch_size", batch_size, devices)


def update_freq_of_frames(frames_per_update: int, max_tokens: int, devices: int) -> int:
    """``${amae.update_freq_of_frames:FRAMES_PER_UPDATE,MAX_TOKENS,DEVICES}``: the same for batches of so many frames.

    Raises:
        UserError: as :func:`update_freq`.
    """
    return _steps("task.frames_per_update", frames_per_update, "dataset.max_tokens", max_tokens, devices)


def _steps(whole_name: str, whole: int, part_name: str, part: int, devices: int) -> int:
    at_a_time = int(part) * int(devices)
    if int(whole) % at_a_time:
        raise UserError(
            f"{whole_name}={whole} is not a multiple of {part_name}={part} times {devices} devices; choose one that "
            "divides it"
        )
    return int(whole) // at_a_time


def scaled_lr(base_lr: float, clips_per_update: int) -> float:
    """``${amae.scaled_lr:BASE_LR,CLIPS_PER_UPDATE}``: base lr x global batch / 256, the rule of MAE's recipes."""
    return float(base_lr) * int(clips_per_update) / 256


def devices(nodes: int, per_node: int) -> int:
    """``${amae.devices:NODES,PER_NODE}``: processes that train together."""
    return int(nodes) * int(per_node)


def positive(number: float) -> bool:
    """``${amae.positive:NUMBER}``: whether it is above 0."""
    return float(number) > 0


for _name, _resolver in {
    "plugin_dir": plugin_dir,
    "updates": updates,
    "updates_of": updates_of,
    "update_freq": update_freq,
    "update_freq_of_frames": update_freq_of_frames,
    "scaled_lr": scaled_lr,
    "devices": devices,
    "positive": positive,
}.items():
    OmegaConf.register_new_resolver(f"amae.{_name}", _resolver, replace=True)
