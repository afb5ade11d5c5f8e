"""A run in the processes that train: how they start in a SLURM job, what follows each update, and how they end."""

import logging
import math
import os
import signal
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

from amae_plugin.cluster import signals
from amae_plugin.cluster.commands import requeue
from amae_plugin.cluster.layout import Layout, in_job
from amae_plugin.cluster.lock import RunLock
from amae_plugin.errors import UserError
from amae_plugin.files import remove_partial_files

logger = logging.getLogger(__name__)

Main = Callable[..., None]
REQUEUED = 75
"""Exit code of a process whose job SLURM will start again; never 0, since nothing is finished."""
_GRACE_S = 5.0


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


def spawn(layout: Layout, main: Main, cfg: DictConfig, kwargs: dict[str, Any]) -> None:
    """Run fairseq's ``distributed_main`` in a task's processes; if one fails, end the others and raise its error."""
    cfg.distributed_training.distributed_rank = None  # each process has its own
    arguments = (main, cfg, {**kwargs, "start_rank": layout.rank})
    context = multiprocessing.start_processes(
        distributed_utils.distributed_main, arguments, layout.processes, join=False, start_method="spawn"
    )
    try:
        # The others may wait for the dead one in a collective, where no SIGTERM reaches them.
        while not context.join(grace_period=_GRACE_S):
            pass
    except multiprocessing.ProcessExitedException as error:
        # SLURM's SIGTERM, which requeueing brings to all processes, may find one that has stopped listening.
        if error.exit_code == REQUEUED or (error.exit_code == -signal.SIGTERM and signals.first_received()):
            raise SystemExit(REQUEUED) from None
        raise


class Run:
    """A run, as one of its processes trains it.

    One run at a time writes to the folder of checkpoints. In a SLURM job, a signal that announces the job's end makes
    all processes stop after the same update, write a checkpoint, and have the job requeued.

    Args:
        cfg: settings of the run.
        requeues: how often its job may be requeued.
    """

    def __init__(self, cfg: DictConfig, requeues: int):
        self.cfg = cfg
        self.requeues = requeues
        self.folder = Path(cfg.checkpoint.save_dir)
        self.lock = RunLock(self.folder, os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0)))
        self.updated = False

    def train(self, main: Main) -> None:
        """Train by fairseq's *main*.

        Raises:
            UserError: another run writes there, no update was made, or the job cannot be requeued.
            SystemExit: the job is requeued.
        """
        # A process that was spawned would spawn its data loader's workers too, each of which imports all this anew.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        if in_job(os.environ):
            signals.install_handlers()
        with ExitStack() as stack:
            if distributed_utils.is_master(self.cfg.distributed_training):
                stack.enter_context(self.lock.held())
                remove_partial_files(self.folder, "*.pt")
            main(self.cfg)
        if not self.updated and not (self.folder / "checkpoint_last.pt").exists():
            remedy = "look at the data, dataset.batch_size, optimization.max_epoch, max_update and lr"
            raise UserError(f"nothing was trained: not one update was made; {remedy}")

    def after_update(self, trainer: Trainer, epoch_itr: Any) -> None:
        """Stop if this start of the job was superseded, or if a signal says so and training would go on."""
        self.updated = True
        if distributed_utils.get_global_rank() == 0:
            self.lock.check()
        if trainer.get_num_updates() < (self.cfg.optimization.max_update or math.inf):
            self.stop_if_told(trainer, epoch_itr)

    def stop_if_told(self, trainer: Trainer, epoch_itr: Any) -> None:
        """If any process has received a signal, write a checkpoint, have the job requeued and end this process."""
        if not (in_job(os.environ) and _anywhere(signals.first_received() is not None)):
            return
        checkpoint_utils.save_checkpoint(self.cfg.checkpoint, trainer, epoch_itr, None)
        refused: list[str | None] = [None]
        if distributed_utils.get_global_rank() == 0:
            try:
                requeue(os.environ, self.requeues)
            except UserError as error:
                refused = [str(error)]
        if distributed.is_initialized():
            distributed.broadcast_object_list(refused, src=0)
        received = signals.first_received()
        at = received.name if received else "a signal to another process"
        stopped = f"stopped after update {trainer.get_num_updates()}, at {at}; a checkpoint was written"
        if refused[0] is not None:
            raise UserError(f"{stopped}, but the job is not requeued: {refused[0]}. The same command continues the run")
        logger.info(f"{stopped}, and the job is requeued")
        raise SystemExit(REQUEUED)


def _anywhere(here: bool) -> bool:
    """Whether something is so in any process; all must ask after the same update."""
    if not distributed.is_initialized():
        return here
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(here)], device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())
