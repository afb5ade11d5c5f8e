"""Hydra's launcher for SLURM jobs: the runs of ``fairseq-hydra-train -m`` as jobs, several as one job array.

Hydra looks for plugins in this namespace. Its own submitit launcher stores a run's exception as a result and lets the
job succeed, composes the configuration anew from files that may have changed when a job starts again, and knows one
layout. Here a job runs the plain command, on a copy of the code and the recipes.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

if TYPE_CHECKING:
    from amae_plugin.cluster.submission import SubmittedJob

logger = logging.getLogger(__name__)


class AmaeSlurmLauncher(Launcher):
    """Submits the runs of a sweep; ``config/hydra/launcher/slurm.yaml`` explains the settings.

    ``requeues`` is for the jobs, which read it themselves.
    """

    def __init__(self, wait: bool, poll_s: float, requeues: int, **resources: Any) -> None:
        self.wait = wait
        self.poll_s = poll_s
        self.resources = OmegaConf.to_container(OmegaConf.create(resources), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows of the sweep."""
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs, wait for them if the settings say so, and return their results.

        Raises:
            JobFailed: a job failed; with the traceback of the task that failed first.
            SystemExit: the runs cannot be submitted, or the waiting was interrupted.
        """
        from amae_plugin.cluster.submission import FOLDER, wait
        from amae_plugin.fairseq_plugin.hydra import ending_in_words

        sweep_dir = Path(self.config.hydra.sweep.dir).absolute()
        with ending_in_words():
            returns, submitted = self._submit(job_overrides, initial_job_idx, sweep_dir)
        logger.info(f"submitted {', '.join(job.id for job in submitted)}; logs: {sweep_dir / FOLDER}")
        if not self.wait:
            return returns
        try:
            results = wait(submitted, self.poll_s)
        except KeyboardInterrupt:
            follow, cancel = (shlex.join(["amae", "slurm", action, str(sweep_dir)]) for action in ("status", "cancel"))
            print(f"\ninterrupted; the jobs go on: {follow}, {cancel}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        for job_return, result in zip(returns, results):
            job_return.return_value = result
        return returns

    def _submit(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, sweep_dir: Path
    ) -> tuple[list[JobReturn], list[SubmittedJob]]:
        from amae_plugin.cluster.submission import FOLDER, submit, take_snapshot
        from amae_plugin.errors import UserError
        from amae_plugin.fairseq_plugin.slurm_job import run_training
        from amae_plugin.recipes import override

        hydra = self.config.hydra
        folder = sweep_dir / FOLDER
        sources = hydra.runtime.config_sources
        config_dir = next((Path(source.path) for source in sources if source.provider == "command-line"), None)
        snapshot = take_snapshot(folder, config_dir)
        recipes = [] if config_dir is None else [f"--config-dir={snapshot / 'config'}"]
        command = [f"--config-name={hydra.job.config_name}", *recipes]
        command += [item for item in hydra.overrides.hydra if not item.startswith(("hydra.mode=", "hydra.run."))]

        jobs, returns = [], []
        try:
            for index, overrides in enumerate(job_overrides, initial_job_idx):
                config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config.hydra.job):
                    config.hydra.job.id = config.hydra.job.num = index
                _check_size(config)
                run_dir = str((sweep_dir / str(config.hydra.sweep.subdir)).resolve())
                jobs.append(partial(run_training, *command, *overrides, override("hydra.run.dir", run_dir)))
                logger.info(f"#{index}: {' '.join(filter_overrides(overrides))}")
                of_run = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
                job = (run_dir, config.hydra.job.name, JobStatus.COMPLETED)
                returns.append(JobReturn(list(overrides), of_run, OmegaConf.masked_copy(config, "hydra"), *job))
            if len({job_return.working_dir for job_return in returns}) < len(jobs):
                raise UserError("several runs of the sweep would write to one folder; give them hydra.sweep.subdir")
            return returns, submit(jobs, folder, snapshot / "code", **self.resources)
        except UserError:
            shutil.rmtree(snapshot)
            raise


def _check_size(config: DictConfig) -> None:
    """Refuse a run whose processes do not make up the job, or do not divide the run's global batch.

    Raises:
        UserError: they do not.
    """
    from amae_plugin.errors import UserError

    HydraConfig.instance().set_config(config)  # the recipe refers to it
    launcher, processes = config.hydra.launcher, config.distributed_training.distributed_world_size
    if processes != launcher.nodes * launcher.devices_per_node:
        size = f"hydra.launcher.nodes={launcher.nodes} times devices_per_node={launcher.devices_per_node}"
        raise UserError(
            f"distributed_training.distributed_world_size={processes} is not {size}; leave it to run_config"
        )
    try:
        OmegaConf.to_container(config.optimization.update_freq, resolve=True)
    except InterpolationResolutionError as error:
        raise UserError(str(error).splitlines()[0].rpartition(" resolving interpolation: ")[2]) from error
