"""A run in the processes that train: how they start, where they continue, what follows each update, how they end."""

import errno
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from omegaconf import DictConfig
from torch import distributed, multiprocessing

from amae_plugin import files
from amae_plugin.cluster import signals
from amae_plugin.cluster.commands import requeue
from amae_plugin.cluster.layout import Layout, in_job
from amae_plugin.cluster.lock import RunLock
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import resuming
from amae_plugin.fairseq_plugin.audio_task import AudioTask
from amae_plugin.fairseq_plugin.checks import ON_CPUS
from amae_plugin.fairseq_plugin.pace import first_line
from amae_plugin.fairseq_plugin.resuming import Finished

logger = logging.getLogger(__name__)

Main = Callable[..., None]
REQUEUED = 75
"""Exit code of a process whose job SLURM will start again; never 0, since nothing is finished."""
ENDED = (2, REQUEUED, *(128 + number for number in signals.SIGNALS))
"""Exit codes of a process that has said why it ends: bad input, or a signal, after which it wrote a checkpoint."""
_GRACE_S = 5.0
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


def lay_out(cfg: DictConfig, nodes: int | None) -> Layout:
    """Find the place of this task in its SLURM job, and write it into the run's settings.

    Args:
        cfg: settings of the run.
        nodes: nodes that the recipe wants, if it says so.

    Raises:
        UserError: the job is not what the recipe needs.
    """
    settings = cfg.distributed_training
    gpus, port = None if cfg.common.cpu else torch.cuda.device_count(), max(settings.distributed_port, 0)
    layout = Layout.from_slurm(os.environ, settings.distributed_world_size, gpus, nodes, port)
    logger.info(f"{layout}")
    settings.distributed_num_procs = layout.processes
    settings.distributed_rank = layout.rank
    settings.device_id = layout.device
    if layout.world_size > 1:
        settings.distributed_init_method = layout.init_method()
        settings.distributed_no_spawn = layout.processes == 1
    return layout


def lay_out_here(cfg: DictConfig) -> Layout:
    """Place the processes of a run outside SLURM: one for each device of this machine.

    Without a GPU, fairseq would train in 0 processes and succeed.

    Raises:
        UserError: this machine has fewer GPUs than the run wants.
    """
    settings = cfg.distributed_training
    world_size, gpus = settings.distributed_world_size, torch.cuda.device_count()
    if not cfg.common.cpu and gpus < world_size:
        wanted = f"distributed_training.distributed_world_size={world_size}"
        raise UserError(f"{wanted}, but this machine has {gpus} GPUs; lower it, or train on CPUs: {ON_CPUS}")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        layout = Layout(world_size, world_size, 0, 0, "localhost", probe.getsockname()[1])
    settings.distributed_num_procs = world_size
    settings.distributed_init_method = layout.init_method()
    return layout


def lay_out_by_torchrun(cfg: DictConfig) -> None:
    """Place this process where torchrun says. A run of one process may be started wherever its variables are left over.

    fairseq would take the number of processes from torchrun after the recipe has computed how many batches of each make
    up the global batch, and would fail on CPUs.

    Raises:
        UserError: torchrun started another number of processes than the run wants, or there is no GPU for them.
    """
    settings = cfg.distributed_training
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    if settings.distributed_world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if settings.distributed_world_size != world_size:
        wanted = f"distributed_training.distributed_world_size={settings.distributed_world_size}"
        remedy = f"set distributed_training.distributed_world_size={world_size}, or start it without torchrun"
        raise UserError(f"{wanted}, but the environment has WORLD_SIZE={world_size}, as torchrun sets it; {remedy}")
    if world_size > 1:
        gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", rank))
        if not cfg.common.cpu and not gpus:
            raise UserError(f"this machine has no GPU for torchrun's processes; to train on CPUs: {ON_CPUS}")
        settings.distributed_init_method = "env://"
        settings.distributed_rank = rank
        settings.device_id = local % gpus if gpus and not cfg.common.cpu else 0
        settings.distributed_no_spawn = True


def spawn(layout: Layout, main: Main, cfg: DictConfig, kwargs: dict[str, Any]) -> None:
    """Run fairseq's ``distributed_main`` in a task's processes; if one fails, end the others and raise its error."""
    cfg.distributed_training.distributed_rank = None  # each process has its own
    arguments = (main, cfg, {**kwargs, "start_rank": layout.rank})
    context = multiprocessing.start_processes(
        distributed_utils.distributed_main, arguments, layout.processes, join=False, start_method="spawn"
    )
    # SLURM's signals reach all processes by themselves.
    signals.install_handlers(() if in_job(os.environ) else context.pids())
    try:
        # The others may wait for the dead one in a collective, where no SIGTERM reaches them.
        while not context.join(grace_period=_GRACE_S):
            pass
    except multiprocessing.ProcessExitedException as error:
        if (code := exit_code(error.exit_code)) is None:
            raise
        raise SystemExit(code) from None
    finally:
        for process in context.processes:
            process.kill()
        signals.forget()


def exit_code(of_process: int) -> int | None:
    """Return the exit code of a task whose process has ended with this one; None if that was by an error."""
    if of_process in ENDED:
        return of_process
    # A signal may find a process that does not listen yet, or, as SLURM's after requeueing, one that has stopped to.
    if of_process == -signal.SIGTERM and (received := signals.first_received()):
        return REQUEUED if in_job(os.environ) else 128 + received
    return None


class Run:
    """A run, as one of its processes trains it.

    One run at a time writes to the folder of checkpoints. After a signal, all processes stop after the same update and
    write a checkpoint, from which the same command continues. A SLURM job whose end the signal announced is requeued.

    Args:
        cfg: settings of the run.
        requeues: how often its job may be requeued.
    """

    def __init__(self, cfg: DictConfig, requeues: int):
        self.cfg = cfg
        self.requeues = requeues
        self.folder = Path(cfg.checkpoint.save_dir)
        self.starts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.lock = RunLock(self.folder, os.environ.get("SLURM_JOB_ID"), self.starts)
        self.updated = False
        self._compare: Callable[[str, dict[str, Any]], None] = lambda path, state: None

    def train(self, main: Main) -> None:
        """Train by fairseq's *main*.

        Raises:
            UserError: the settings contradict each other, another run writes there, no update was made, training has
                diverged, or the folder cannot be written.
            SystemExit: a signal stopped the run.
        """
        # A process that was spawned would spawn its data loader's workers too, each of which imports all this anew.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        if in_job(os.environ):
            signals.install_handlers()
        remedy = "make room, or choose another folder (hydra.run.dir=...); the same command continues the run"
        with ExitStack() as stack:
            stack.callback(signals.forget)
            if distributed_utils.is_master(self.cfg.distributed_training):
                with files.writing(self.folder, "checkpoints to this folder", remedy):
                    stack.enter_context(self.lock.held())
                files.remove_partial_files(self.folder, "*.pt")
            try:
                main(self.cfg)
            except Finished as finished:
                logger.info(f"{self.folder}: {finished}")
                return
            except FloatingPointError as error:
                advice = "lower optimization.lr, warm up longer, set optimization.clip_norm, or mend task.mean and std"
                raise UserError(f"training has diverged ({error}); {advice}") from error
            except OSError as error:
                modules = {Path(frame.filename).parent.name for frame in traceback.extract_tb(error.__traceback__)}
                of_curves = "tensorboardX" in modules  # which only writes
                if error.errno not in _UNWRITABLE and not of_curves:
                    raise
                place = self.cfg.common.tensorboard_logdir if of_curves else self.folder
                raise UserError(
                    f"{error.filename or place}: cannot write there ({error.strerror}); {remedy}"
                ) from error
        if not self.updated and not (self.folder / resuming.LAST).exists():
            remedy = "look at the data, dataset.batch_size, optimization.max_epoch, max_update and lr"
            raise UserError(f"nothing was trained: not one update was made; {remedy}")

    def begin(self, cfg: DictConfig, trainer: Trainer, load: Callable[..., Any]) -> Any:
        """Choose the checkpoint that the run continues from or begins with, check it, and load it.

        Args:
            cfg: section ``checkpoint``.
            trainer: fairseq's trainer.
            load: fairseq's function of the section and the trainer, which returns the state of the data.

        Raises:
            UserError: the checkpoint cannot be found or read, or does not fit the run.
            Finished: the run that it continues has made all its updates.
        """
        resuming.choose_checkpoint(cfg, restarted=self.starts > 0)
        begins = cfg.finetune_from_model and not (self.folder / resuming.LAST).exists()
        resumes = not cfg.reset_dataloader and not begins

        def compare(path: str, state: dict[str, Any]) -> None:
            if begins or (cfg.reset_dataloader and cfg.reset_optimizer):
                resuming.forget_time(state)
            for change in resuming.compare(path, state, trainer, resumes):
                logger.warning(change)

        self._compare = compare
        extra_state, epoch_itr = resuming.load(load, cfg, trainer)
        self._compare = lambda path, state: None
        if extra_state is not None:
            if not begins:
                resuming.keep_optimizer_settings(cfg, trainer)
                resuming.restore_counters(self.cfg, trainer)
                resuming.step_schedule(cfg, trainer, extra_state)
            resuming.refuse_finished(self.cfg, trainer, epoch_itr)
        if isinstance(trainer.task, AudioTask) and distributed_utils.is_master(self.cfg.distributed_training):
            trainer.task.first_line = first_line(self.cfg, trainer.get_num_updates(), epoch_itr)
        signals.install_handlers()  # from here on there is something to save
        return extra_state, epoch_itr

    def read_checkpoint(self, path: str) -> dict[str, Any]:
        """Read a checkpoint, and compare it with the run if the run begins with it."""
        state = resuming.read_checkpoint(path)
        self._compare(path, state)
        if self.cfg.ema.store_ema and "ema" not in state["extra_state"]:
            logger.warning(f"{path} keeps no moving average (ema.store_ema), so this run's begins with its weights")
            state["extra_state"]["ema"] = state["model"]  # fairseq means to, and has deleted them by then
        return state

    def after_update(self) -> None:
        """Stop if this start of the job was superseded."""
        self.updated = True
        if distributed_utils.get_global_rank() == 0:
            self.lock.check()

    def stop_if_told(self, trainer: Trainer, epoch_itr: Any, loss: float | None = None) -> None:
        """If any process has received a signal, write a checkpoint and end this process; a job that ends is requeued.

        Args:
            trainer: trainer of the run.
            epoch_itr: its batches.
            loss: what the validation after this update has measured, if there was one.

        Raises:
            UserError: the job is not requeued.
            SystemExit: the process ends.
        """
        received = _anywhere(signals.first_received())
        if received is None:
            return
        checkpoint_utils.save_checkpoint(self.cfg.checkpoint, trainer, epoch_itr, loss)
        if distributed.is_initialized():
            distributed.barrier()  # the first process writes, and is killed soon after another one has ended
        stopped = f"stopped after update {trainer.get_num_updates()}, at {received.name}; a checkpoint was written"
        if not in_job(os.environ) or received == signal.SIGINT:
            logger.info(f"{stopped}, from which the same command continues")
            raise SystemExit(128 + received)
        refused: list[str | None] = [None]
        if distributed_utils.get_global_rank() == 0:
            logger.info(f"{stopped}; requeueing the job")  # first, since SLURM may close the log with the job
            try:
                requeue(os.environ, self.requeues)
            except UserError as error:
                refused = [str(error)]
        if distributed.is_initialized():
            distributed.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise UserError(f"{stopped}, but the job is not requeued: {refused[0]}. The same command continues the run")
        raise SystemExit(REQUEUED)


def _anywhere(here: signal.Signals | None) -> signal.Signals | None:
    """Return the signal that came to any process, the highest number of several; all must ask after the same update."""
    if not distributed.is_initialized():
        return here
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([here or 0], device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return signal.Signals(int(flag.item())) if flag.item() else None
