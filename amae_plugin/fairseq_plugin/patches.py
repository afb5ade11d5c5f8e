"""Every change that the plugin makes to fairseq, with its reason: fairseq has no hook for any of them.

:func:`install` makes the changes in a process that starts a run, and in the processes that the run spawns.
:func:`check` names what another release of fairseq does differently.
"""

import functools
import inspect
import logging
import math
import os
import pkgutil
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq import trainer as fairseq_trainer
from fairseq.data import data_utils
from fairseq.dataclass.configs import CheckpointConfig, EMAConfig
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.models.ema import EMA
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from amae_plugin import files
from amae_plugin.cluster import signals
from amae_plugin.cluster.layout import in_job
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import launch, resuming
from amae_plugin.fairseq_plugin.checks import check_keys, check_settings
from amae_plugin.fairseq_plugin.hydra import ending_in_words
from amae_plugin.recipes import user_path

logger = logging.getLogger(__name__)
_TORCHRUN = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
"""Variables by which torchrun, and fairseq after it, lays a process out."""
_originals: dict[str, Callable[..., Any]] = {}
_run: launch.Run


def call_main(cfg: DictConfig, main: launch.Main, **kwargs: Any) -> None:
    """Start the processes of a run as its SLURM job or this machine lays them out, and train in each of them.

    fairseq derives a layout from the GPUs that it counts. Without any, it trains in 0 processes and succeeds.
    """
    launcher = HydraConfig.get().launcher  # a batch script's run has one as well, chosen by its run_config
    main = functools.partial(_train, main=main, requeues=launcher.get("requeues", 0))
    settings = cfg.distributed_training
    with _ending_in_words():
        check_keys(cfg)
        check_settings(cfg)
        layout = None
        if in_job(os.environ):
            signals.install_handlers()
        if settings.distributed_init_method is None:
            if os.environ.keys() >= _TORCHRUN:
                launch.lay_out_by_torchrun(cfg)
            elif in_job(os.environ):
                layout = launch.lay_out(cfg, launcher.get("nodes"))
            elif settings.distributed_world_size > 1:
                layout = launch.lay_out_here(cfg)
        if layout is not None and layout.processes > 1:
            launch.spawn(layout, main, cfg, kwargs)
        else:
            _originals["call_main"](cfg, main, **kwargs)


def _train(cfg: DictConfig, main: launch.Main, requeues: int) -> None:
    global _run
    install()  # in a process that was spawned
    _run = launch.Run(cfg, requeues)
    try:
        with _ending_in_words():
            _run.train(main)
    finally:
        forget_run()


@contextmanager
def _ending_in_words() -> Iterator[None]:
    """End a process by a sentence; in a SLURM job errors go on, to the job's log and to its outcome."""
    try:
        with nullcontext() if in_job(os.environ) else ending_in_words():
            yield
    except KeyboardInterrupt:
        print("fairseq-hydra-train: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def validate_and_save(
    cfg: DictConfig, trainer: Trainer, task: Any, epoch_itr: Any, valid_subsets: list[str], end_of_epoch: bool
) -> tuple[list[float | None], bool]:
    """Let the run look at its lock and at signals after each update, and save what the last epoch ends.

    A run that a signal stops writes a checkpoint, after the validation that is due: the resumed run would not make up
    for it. That takes the trainer and its iterator, which no hook has. fairseq saves and validates after the last
    update that max_update allows, but not after the last epoch.
    """
    _run.after_update()
    if end_of_epoch and epoch_itr.epoch >= (cfg.optimization.max_epoch or math.inf):
        cfg = OmegaConf.merge(cfg, {"optimization": {"max_update": trainer.get_num_updates()}})
    losses, should_stop = _originals["validate_and_save"](cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
    if not should_stop:
        _run.stop_if_told(trainer, epoch_itr, losses[0])
    return losses, should_stop


def load_checkpoint(cfg: CheckpointConfig, trainer: Trainer, **passthrough_args: Any) -> Any:
    """Load the checkpoint that a run continues from, where fairseq would begin from nothing if it is missing."""
    return _run.begin(cfg, trainer, functools.partial(_originals["load_checkpoint"], **passthrough_args))


def load_checkpoint_to_cpu(
    path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False
) -> Any:
    """Read a checkpoint as tensors and plain values; fairseq leaves it to the release of PyTorch what it unpickles."""
    state = _run.read_checkpoint(PathManager.get_local_path(path))
    if state.get("cfg"):
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        overwrite_args_by_name(state["cfg"], arg_overrides or {})
    return checkpoint_utils._upgrade_state_dict(state)


def torch_persistent_save(obj: object, filename: str, async_write: bool = False) -> None:
    """Write a checkpoint atomically.

    When a write fails, fairseq appends its next attempt to the same file.

    Raises:
        UserError: the checkpoint cannot be written.
    """
    with _writing_checkpoint(filename), files.replacing(filename) as partial, partial.open("wb") as file:
        torch.save(obj, file)


def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    """Copy a checkpoint atomically.

    fairseq copies over ``checkpoint_last.pt`` in place. A run that is killed in that moment cannot be resumed.

    Raises:
        UserError: the checkpoint cannot be written.
    """
    with _writing_checkpoint(dst_path), files.replacing(dst_path) as partial:
        shutil.copyfile(src_path, partial)
    return True


def _writing_checkpoint(path: str) -> AbstractContextManager[None]:
    earlier = (Path(path).parent / resuming.LAST).exists()
    whole = "the one before is whole: make room, and the same command continues from it"
    return files.writing(path, "the checkpoint", whole if earlier else "make room, and start the run again")


def raise_if_valid_subsets_unintentionally_ignored(train_cfg: DictConfig) -> None:
    """Refuse to validate on the training clips, and manifests that look meant for validation and are not validated on.

    fairseq keeps one data set a name, so validation would see the training clips shuffled and augmented. It takes any
    file for a manifest whose name begins with "valid" and has a digit, such as a clip beside the manifests.

    Raises:
        UserError: the run would do so, the folder of manifests has one, or several are to be combined.
    """
    dataset = train_cfg.dataset
    if dataset.combine_valid_subsets:
        remedy = "the manifests to validate on are named by dataset.valid_subset, with commas between them"
        raise UserError(f"dataset.combine_valid_subsets=true: manifests are not combined; {remedy}")
    if dataset.train_subset in dataset.valid_subset.split(","):
        name = f"dataset.valid_subset={dataset.valid_subset}: {dataset.train_subset} is what the run trains on"
        raise UserError(f"{name}; to validate on its clips, copy its files under another name")
    if dataset.ignore_unused_valid_subsets or dataset.disable_validation:
        return
    folder = user_path(train_cfg.task.data)
    found = sorted(path.stem for path in folder.glob("valid[0-9]*.tsv"))
    if unused := [name for name in found if name not in dataset.valid_subset.split(",")]:
        both = f"""'dataset.valid_subset="{dataset.valid_subset},{",".join(unused)}"'"""
        remedy = f"validate on them too ({both}) or not (dataset.ignore_unused_valid_subsets=true)"
        raise UserError(f"{folder}: the manifests {', '.join(unused)} would not be used; {remedy}")


def step(self: AMPOptimizer) -> None:
    """Make a step of ``common.amp``, whose gradients :meth:`AMPOptimizer.clip_grad_norm` has divided by the loss scale.

    fairseq hands the scaler another object than there, so the scaler divides them again.
    """
    self.scaler.step(self.optimizer)
    self.scaler.update()


def build_ema(model: nn.Module, cfg: EMAConfig, device: torch.device) -> EMA:
    """Build the moving average of ``ema.store_ema``, in which whole numbers, as batch norm counts, stay the model's.

    fairseq multiplies them by the decay as well, which PyTorch refuses.
    """
    whole = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    return EMA(model, cfg, device, skip_keys=whole)


def forget_run() -> None:
    """Forget the best result, the early stopping and the TensorBoard files of a run that ends, and close the files.

    fairseq keeps them in its functions and modules. The next run of a sweep in the same process would be compared with
    this one, stop early for it, and write its curves into the same folder. A spawned process skips the interpreter's
    exit, at which fairseq closes the files.
    """
    vars(checkpoint_utils.save_checkpoint).clear()
    vars(fairseq_train.should_stop_early).clear()
    writers = dict(progress_bar._tensorboard_writers)
    progress_bar._tensorboard_writers.clear()  # fairseq closes the rest when the process ends
    for writer in writers.values():
        try:
            writer.close()
        except OSError as error:
            folder = writer.file_writer.get_logdir()
            logger.warning(f"{folder}: the last points of the curves are lost ({error.strerror or error})")
            # Its thread ends, and the interpreter's exit does not try once more.
            events = writer.file_writer.event_writer
            events.flush = lambda: None
            with suppress(OSError):
                events.close()
            events.close = events.flush


# Functions that take the place of fairseq's with the same name and parameters, and the modules and classes they go to.
REPLACEMENTS = (
    (call_main, distributed_utils),
    (validate_and_save, fairseq_train),
    (load_checkpoint, checkpoint_utils),
    (load_checkpoint_to_cpu, checkpoint_utils),
    (torch_persistent_save, checkpoint_utils),
    (copy, PathManager),
    (raise_if_valid_subsets_unintentionally_ignored, data_utils),
    (step, AMPOptimizer),
    (build_ema, fairseq_trainer),
)
# Names that functions of fairseq look up: else a replacement would never run, or forget_run would forget nothing.
LOOKED_UP = {
    "fairseq_cli.hydra_train:_hydra_main": {"call_main"},
    "fairseq_cli.train:main": {"load_checkpoint", "raise_if_valid_subsets_unintentionally_ignored"},
    "fairseq_cli.train:train": {"validate_and_save"},
    "fairseq.trainer:Trainer._build_ema": {"build_ema"},
    "fairseq.trainer:Trainer.load_checkpoint": {"load_checkpoint_to_cpu"},
    "fairseq.trainer:Trainer.save_checkpoint": {"torch_persistent_save"},
    "fairseq.checkpoint_utils:save_checkpoint": {"copy", "best"},
    "fairseq.optim.amp_optimizer:AMPOptimizer.clip_grad_norm": {"unscale_", "optimizer"},
    "fairseq_cli.train:should_stop_early": {"best", "num_runs"},
    "fairseq.logging.progress_bar:TensorboardProgressBarWrapper._writer": {"_tensorboard_writers"},
}


def install() -> None:
    """Make the changes in this process, once."""
    for function, owner in REPLACEMENTS:
        name = function.__name__
        if name not in _originals:
            _originals[name] = getattr(owner, name)
            setattr(owner, name, function)


def check() -> None:
    """Compare fairseq with the release that the changes were made for.

    Raises:
        UserError: fairseq lacks a function that is replaced, or it takes other parameters or is not looked up where it
            was, or a run's state is kept elsewhere; or Python leaves out assertions.
    """
    if sys.flags.optimize:
        reason = "fairseq saves checkpoints within assertions, which Python's -O (PYTHONOPTIMIZE) leaves out"
        raise UserError(f"{reason}; start without it")
    for function, owner in REPLACEMENTS:
        name = f"{owner.__name__}.{function.__name__}"
        found = getattr(owner, function.__name__, None)
        if found is None:
            raise _changed(f"there is no {name}")
        if (parameters := list(inspect.signature(found).parameters)) != list(inspect.signature(function).parameters):
            raise _changed(f"{name} takes {', '.join(parameters)}")
    for path, names in LOOKED_UP.items():
        try:
            code = inspect.unwrap(pkgutil.resolve_name(path)).__code__
        except (ImportError, AttributeError):
            raise _changed(f"there is no {path}") from None
        if missing := names.difference(code.co_names):
            raise _changed(f"{path} does not use {', '.join(sorted(missing))}")


def _changed(difference: str) -> UserError:
    remedy = "install the one that constraints.txt names, or adapt amae_plugin/fairseq_plugin/patches.py"
    return UserError(f"amae_plugin does not fit this release of fairseq: {difference}; {remedy}")
