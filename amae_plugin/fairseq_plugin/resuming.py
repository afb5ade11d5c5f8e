"""The beginning of a run: which checkpoint it continues from, whether that fits, and whether anything is left to do.

fairseq begins from nothing where a checkpoint is missing, and compares no setting but the names of criterion and
optimizer with those of the checkpoint.
"""

import ast
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train
from omegaconf import DictConfig, OmegaConf, open_dict

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask
from amae_plugin.fairseq_plugin.hydra import swept_keys
from amae_plugin.weight_files import read_weights

LAST = "checkpoint_last.pt"
_ENTRIES = {"model": dict, "cfg.task": dict, "extra_state": dict, "optimizer_history": list}
"""Entries of a checkpoint of fairseq, and their types."""
_ONCE = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
_COMPARED = ("task", "model", "criterion", "optimizer", "lr_scheduler", "optimization", "ema")
_FREE = {
    *("task.data", "task.recipe", "task.clips_per_epoch", "task.max_update", "task.picture_interval", "task.pictures"),
    *("task.probe_interval", "task.probe_minutes", "task.probe_data", "task.probe_train_clips"),
    *("task.probe_valid_clips", "task.log_format"),
    *("task.tensorboard_logdir", "task.train_subset", "task.valid_subset", "task.max_bad_audio", "task.on_bad_audio"),
    *("task.best_checkpoint_metric", "task.maximize_best_checkpoint_metric"),  # see `_forget_other_measure`
    *("model.pretrained", "model.imagenet", "model.compile", "criterion._name"),
    *("optimization.update_freq", "optimization.stop_time_hours", "lr_scheduler.stop_time_hours"),
    *("optimizer.lr", "lr_scheduler.lr", "lr_scheduler.max_update"),
}
"""Settings that may change without a word: places, copies of other settings, and what changes nothing learned."""
_MEASURE = ("best_checkpoint_metric", "maximize_best_checkpoint_metric")


class Finished(Exception):  # noqa: N818
    """The run has made all its updates; the message says by which setting."""


def choose_checkpoint(cfg: DictConfig, restarted: bool) -> None:
    """Check that the files exist that the section ``checkpoint`` names, and change it if its run was started again.

    Args:
        cfg: section ``checkpoint`` of the run.
        restarted: whether the cluster has started this run again; it then continues from its own last checkpoint.

    Raises:
        UserError: a file does not exist, or the folder's checkpoints would be overwritten.
    """
    last = Path(cfg.save_dir) / LAST
    if restarted and last.exists():
        with open_dict(cfg):
            cfg.update({"restore_file": LAST, "finetune_from_model": None, **dict.fromkeys(_ONCE, False)})
    if cfg.restore_file != LAST:
        if not PathManager.isfile(cfg.restore_file):
            within = Path(cfg.save_dir) / cfg.restore_file
            remedy = f"write {within}" if within.is_file() else "correct the path, which begins where the command does"
            raise UserError(f"checkpoint.restore_file={cfg.restore_file}: there is no such file; {remedy}")
    elif not last.exists():
        named = [key for key in ("continue_once", "finetune_from_model") if cfg.get(key)]
        for key in named:
            if not PathManager.isfile(cfg[key]):
                raise UserError(f"checkpoint.{key}={cfg[key]}: there is no such file; correct the path")
        if not named and (others := _by_age(last.parent)):
            remedy = f"continue from one (checkpoint.restore_file={others[0]}) or train elsewhere (hydra.run.dir=...)"
            raise UserError(f"{last.parent} holds checkpoints, but no {LAST}, so they would be overwritten; {remedy}")


def continued_checkpoint(cfg: DictConfig) -> Path | None:
    """Return the checkpoint that a run continues; None if it begins, be it with the weights of one.

    Args:
        cfg: section ``checkpoint`` of the run.
    """
    path = Path(cfg.save_dir) / LAST if cfg.restore_file == LAST else Path(cfg.restore_file)
    if cfg.restore_file == LAST and not path.exists() and cfg.get("continue_once"):
        path = Path(cfg.continue_once)
    begins = cfg.reset_dataloader and cfg.get("reset_optimizer")
    return path if path.is_file() and not begins else None


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of fairseq as tensors and plain values, with the place in the data in clips.

    Raises:
        UserError: the file is damaged, or holds other objects.
    """
    try:
        state: Any = read_weights(path, optimizer=True)
        for entry, kind in _ENTRIES.items():
            part: Any = state
            for name in entry.split("."):
                part = part.get(name) if isinstance(part, Mapping) else None
            if not isinstance(part, kind) or (not part and entry != "extra_state"):
                raise UserError(f"{path}: not a checkpoint of a fairseq run, which would have an entry {entry}")
    except UserError as error:
        others = [other for other in _by_age(Path(path).parent) if other != Path(path)]
        remedy = f"; an earlier one: checkpoint.restore_file={others[0]}" if others else ""
        raise UserError(f"{error}{remedy}") from None
    settings, place = state["cfg"], state["extra_state"].get("train_iterator") or {}
    if place.get("iterations_in_epoch") and "place" not in place:  # from before the place was kept
        shards = settings["distributed_training"]["distributed_world_size"]
        place["place"] = {"batches": place["iterations_in_epoch"] * shards, "shards": shards}
        if clips := settings["dataset"]["batch_size"]:
            place["place"]["clips"] = clips * place["place"]["batches"]
    return state


def forget_time(state: Mapping[str, Any]) -> None:
    """Take the time of training from a checkpoint whose weights a new run begins with: fairseq would add it to its own.

    Args:
        state: content of the checkpoint.
    """
    state["extra_state"].pop("previous_training_time", None)


def compare(path: str, state: Mapping[str, Any], trainer: Trainer, resumes: bool) -> Iterator[str]:
    """Compare a checkpoint with the run that loads it, and yield what the user should know.

    If the run chooses its best checkpoint by another measure, the best result so far is taken from the state.

    Args:
        path: checkpoint file.
        state: its content.
        trainer: trainer of the run.
        resumes: whether the run continues the checkpoint's, or only begins with its weights.

    Raises:
        UserError: a run that continues has other classes or another input, so the weights would mean something else,
            or a sweep finds the run of another one in its folder.
    """
    task = trainer.task
    if resumes:
        _refuse_other_sweep(path, state, trainer)
    if not isinstance(task, AudioTask):
        return
    try:
        task.load_state_dict(state.get("task_state") or {})
    except UserError as error:
        if resumes:
            raise UserError(f"{path}: {error}") from None
        yield f"{path}: {error}"
    before = state["cfg"]
    now = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    try:
        inputs = [
            ModelInput.from_settings(settings["task"], task.default_input).settings() for settings in (before, now)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: the settings of its task describe no input of a model ({error})") from None
    if (
        resumes
        and not state.get("last_optimizer_state")
        and not OmegaConf.select(trainer.cfg, "checkpoint.reset_optimizer")
    ):
        remedy = "begin another run (hydra.run.dir=...) with its weights by checkpoint.finetune_from_model"
        raise UserError(f"{path} holds no state of the optimizer, so no run can continue from it; {remedy}")
    old, new = inputs
    if resumes and (other := [key for key in old | new if old.get(key) != new.get(key)]):
        values = ", ".join(f"task.{key} ({old.get(key)} there, {new.get(key)} here)" for key in other)
        remedy = "restore it, or begin another run (hydra.run.dir=...) by checkpoint.finetune_from_model"
        raise UserError(f"{path} was trained with another input of the model: {values}; {remedy}")
    yield from _forget_other_measure(path, state, task, now["checkpoint"])
    for key, there, here in _changes(before, now):
        yield f"{path} was written with {key}={there}, this run has {here}"


def _refuse_other_sweep(path: str, state: Mapping[str, Any], trainer: Trainer) -> None:
    """Raise an error if the run's folder holds one of a sweep over other values, as the numbers of jobs are the same.

    Args:
        path: checkpoint file.
        state: its content.
        trainer: trainer of the run that loads it.
    """
    folder = Path(OmegaConf.select(trainer.cfg, "checkpoint.save_dir") or "")
    keys = swept_keys() if folder.absolute() == Path(path).absolute().parent else []
    now = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    for key in keys:
        there, here = (_select(settings, key) for settings in (state["cfg"], now))
        if there != here:
            remedy = "choose another folder for this sweep: hydra.sweep.dir=..."
            raise UserError(f"{path} is of another sweep: {key} is {there} there and {here} here; {remedy}")


def _select(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    if isinstance(settings, Mapping):  # of a group of settings
        return {name: value for name, value in _leaves(settings, f"{key}.") if name not in _FREE}
    return settings


def _forget_other_measure(
    path: str, state: Mapping[str, Any], task: AudioTask, now: Mapping[str, Any]
) -> Iterator[str]:
    """Take the best result from a checkpoint if the run goes by another measure, and say so.

    A best loss of 2.3 would never be exceeded by an accuracy.
    """
    before, extra_state = state["cfg"].get("checkpoint") or {}, state["extra_state"]
    changed = [key for key in _MEASURE if before.get(key, now[key]) != now[key]]
    if not changed:
        return
    early_stopping = extra_state.get(type(task).__name__) or {}
    for values, names in ((extra_state, ("best", "val_loss")), (early_stopping, ("best", "num_runs"))):
        for name in names:
            values.pop(name, None)
    for key in changed:
        there = f"{path} was written with checkpoint.{key}={before[key]}"
        yield f"{there}, this run has {now[key]}: its best result so far does not count"


def _changes(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    """Yield the settings that both have and that differ, with both values."""
    for section in _COMPARED:
        before, now = (dict(_leaves(part.get(section) or {}, f"{section}.")) for part in (stored, settings))
        for key in before.keys() & now.keys() - _FREE:
            if before[key] != now[key]:
                yield key, before[key], now[key]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load(load_checkpoint: Callable[..., Any], cfg: DictConfig, trainer: Trainer) -> Any:
    """Load by fairseq's function, and say in its settings' names what does not fit.

    Raises:
        UserError: the weights do not fit the model, or the optimizer or criterion is another.
    """
    try:
        return load_checkpoint(cfg, trainer)
    except AssertionError as error:  # names the two, and the remedy
        raise UserError(str(error).replace("--reset-optimizer", "checkpoint.reset_optimizer=true")) from None
    except UserError:
        raise
    except Exception as error:
        if not str(error).startswith("Cannot load model parameters"):
            raise
        reason = str(error.__context__).split("\n", 1)[-1].strip().split("\n")[0]
        remedy = "restore the model's settings, named above if they differ, or train elsewhere (hydra.run.dir=...)"
        raise UserError(f"{error.args[0].split('; ')[0].rstrip('. ')}: {reason}; {remedy}") from None


def keep_optimizer_settings(cfg: DictConfig, trainer: Trainer) -> None:
    """Give an optimizer of fairseq this run's settings, where it has the checkpoint's; the schedule sets its rate.

    Args:
        cfg: section ``checkpoint`` of the run.
        trainer: trainer that has loaded the checkpoint.
    """
    try:
        settings = trainer.optimizer.optimizer_config
    except NotImplementedError:  # this package's, which keep them themselves, and fairseq's composite of several
        return
    settings = {**settings, **ast.literal_eval(cfg.optimizer_overrides)}
    settings.pop("lr", None)
    for group in trainer.optimizer.param_groups:
        group.update(settings)


def restore_counters(cfg: DictConfig, trainer: Trainer) -> None:
    """Set what fairseq begins anew in a run that continues: the clock that it logs, the turn of its moving average.

    Args:
        cfg: settings of the run.
        trainer: trainer that has loaded the checkpoint.
    """
    before = float(trainer.cumulative_training_time())  # a tensor, of several processes
    metrics.get_meter("default", "wall").start_time = time.perf_counter() - before
    if cfg.ema.store_ema:
        trainer.ema.update_freq_counter = trainer.get_num_updates() % cfg.ema.ema_update_freq


def step_schedule(cfg: DictConfig, trainer: Trainer, extra_state: Mapping[str, Any]) -> None:
    """Give the schedule the loss of the epoch that the checkpoint ended, where it continues the checkpoint's.

    fairseq does so after it has written the checkpoint.

    Args:
        cfg: section ``checkpoint`` of the run.
        trainer: trainer that has loaded the checkpoint.
        extra_state: the checkpoint's entry of that name.
    """
    place, loss = extra_state["train_iterator"], extra_state.get("val_loss")
    ended = place["iterations_in_epoch"] == 0 and loss is not None
    if ended and not (cfg.reset_optimizer or cfg.reset_lr_scheduler):
        trainer.lr_step(place["epoch"] - 1, loss)


def refuse_finished(cfg: DictConfig, trainer: Trainer, epoch_itr: Any) -> None:
    """Raise :class:`Finished` if fairseq would make an update although the run has made all of them."""
    updates, optimization = trainer.get_num_updates(), cfg.optimization
    hours = trainer.cumulative_training_time() / 3600
    patience = getattr(fairseq_train.should_stop_early, "num_runs", 0)
    if 0 < optimization.max_update <= updates:
        reason = f"optimization.max_update={optimization.max_update}"
    elif 0 < optimization.max_epoch < epoch_itr.next_epoch_idx:
        reason = f"optimization.max_epoch={optimization.max_epoch}"
    elif 0 < optimization.stop_time_hours < hours:
        reason = f"optimization.stop_time_hours={optimization.stop_time_hours:g}"
    elif 0 < cfg.checkpoint.patience <= patience:
        reason = f"checkpoint.patience={cfg.checkpoint.patience}"
    else:
        return
    raise Finished(f"this run is finished after {updates:,} updates, by {reason}; raise it to train on")


def _by_age(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, the newest first."""
    return sorted(folder.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
