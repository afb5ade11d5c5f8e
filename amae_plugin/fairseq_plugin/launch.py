"""How a run's processes start, and how they end: around fairseq's own start and its training loop."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train as fairseq_train
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import distributed, multiprocessing

from amae_plugin.cluster import signals
from amae_plugin.cluster.commands import requeue
from amae_plugin.cluster.layout import Layout, in_job
from amae_plugin.cluster.lock import RunLock
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.isolation import close_tensorboard

logger = logging.getLogger(__name__)

Main = Callable[..., None]
REQUEUED = 75
"""Exit code of a process whose job SLURM will start again; never 0, since nothing is finished."""
_GRACE_S = 5.0

_fairseq_call_main = distributed_utils.call_main


def install() -> None:
    """Have fairseq start the runs of this process by :func:`call_main`, since it offers no hook there."""
    distributed_utils.call_main = call_main
    if in_job(os.environ):
        signals.install_handlers()


def call_main(cfg: DictConfig, main: Main, **kwargs: Any) -> None:
    """fairseq's function of this name, which in a SLURM job takes the layout from :class:`Layout`.

    fairseq's own derivation counts GPUs: without any it trains on 0 processes, successfully.

    Raises:
        UserError: the job is not what the recipe needs.
    """
    launcher = HydraConfig.get().launcher  # also of a batch script's run, which chose it by its run_config
    main = functools.partial(train, main=main, requeues=launcher.get("requeues", 0))
    settings = cfg.distributed_training
    if not in_job(os.environ) or settings.distributed_init_method is not None:
        _fairseq_call_main(cfg, main, **kwargs)
        return
    layout = Layout.from_slurm(
        os.environ,
        settings.distributed_world_size,
        None if cfg.common.cpu else torch.cuda.device_count(),
        launcher.get("nodes"),
        settings.distributed_port if settings.distributed_port > 0 else None,
    )
    logger.info(f"{layout}")
    settings.distributed_num_procs = layout.processes
    settings.distributed_rank = layout.rank
    settings.device_id = layout.device
    if layout.world_size == 1:
        main(cfg, **kwargs)
        return
    settings.distributed_init_method = layout.init_method()
    settings.distributed_no_spawn = layout.processes == 1
    if layout.processes == 1:
        distributed_utils.distributed_main(layout.device, main, cfg, kwargs)
    else:
        settings.distributed_rank = None
        _spawn(layout.processes, (main, cfg, {**kwargs, "start_rank": layout.rank}))


def _spawn(processes: int, arguments: tuple[Any, ...]) -> None:
    """Run fairseq's ``distributed_main`` in so many processes; if one fails, end the others and raise its error."""
    context = multiprocessing.start_processes(
        distributed_utils.distributed_main, arguments, processes, join=False, start_method="spawn"
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


def train(cfg: DictConfig, main: Main, requeues: int) -> None:
    """Train in this process, one of those of the run: the *main* of fairseq, with what a cluster asks for.

    One run at a time writes to the folder of checkpoints. In a SLURM job, a signal that announces the job's end makes
    all processes stop after the same update, write a checkpoint, and have the job requeued.

    Raises:
        UserError: another run writes there, no update was made, or the job cannot be requeued.
        SystemExit: it is.
    """
    # A process that was spawned would spawn its data loader's workers too, each of which imports all this anew.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    save_dir = Path(cfg.checkpoint.save_dir)
    job = os.environ.get("SLURM_JOB_ID")
    lock = RunLock(save_dir, job, int(os.environ.get("SLURM_RESTART_COUNT", 0)))
    if job:
        signals.install_handlers()
    with ExitStack() as stack:
        if distributed_utils.is_master(cfg.distributed_training):
            stack.enter_context(lock.held())
        stack.callback(close_tensorboard)  # spawned processes skip the interpreter's exit
        updates = stack.enter_context(_watched_loop(lock, requeues))
        main(cfg)
        if not updates and not (save_dir / "checkpoint_last.pt").exists():
            raise UserError(
                "nothing was trained: not one update was made; look at the data, dataset.batch_size, "
                "optimization.max_epoch, max_update and lr"
            )


@contextmanager
def _watched_loop(lock: RunLock, requeues: int) -> Iterator[list[int]]:
    """In fairseq's loop, after each update, look for a signal; gives the updates made, which grow as they are made."""
    original = fairseq_train.validate_and_save
    updates: list[int] = []

    def validate_and_save(
        cfg: DictConfig, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: Any, end_of_epoch: bool
    ) -> Any:
        update = trainer.get_num_updates()
        updates[:] = [update]
        if distributed_utils.get_global_rank() == 0:
            lock.check()

        def stop_if_told() -> None:
            if in_job(os.environ) and _anywhere(signals.first_received() is not None):
                checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
                _requeue(requeues, update)

        if update < (cfg.optimization.max_update or float("inf")):  # else it is about to end
            stop_if_told()
        losses, should_stop = original(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        if losses[0] is not None and not should_stop:  # validated, which takes time
            stop_if_told()
        return losses, should_stop

    fairseq_train.validate_and_save = validate_and_save
    try:
        yield updates
    finally:
        fairseq_train.validate_and_save = original


def _anywhere(here: bool) -> bool:
    """Whether something is so in any process; all must ask after the same update."""
    if not distributed.is_initialized():
        return here
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(here)], device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())


def _requeue(limit: int, update: int) -> NoReturn:
    """End this process, once rank 0 has put the job back into the queue."""
    received = signals.first_received()
    refused: list[str | None] = [None]
    if distributed_utils.get_global_rank() == 0:
        try:
            requeue(os.environ, limit)
        except UserError as error:
            refused = [str(error)]
    if distributed.is_initialized():
        distributed.broadcast_object_list(refused, src=0)
    reason = f"stopped after update {update}, at {received.name if received else 'a signal to another process'}"
    if refused[0] is not None:
        raise UserError(
            f"{reason}; a checkpoint was written, but the job is not requeued: {refused[0]}. "
            "The same command continues the run"
        )
    logger.info(f"{reason}; a checkpoint was written, and the job is requeued")
    raise SystemExit(REQUEUED)
