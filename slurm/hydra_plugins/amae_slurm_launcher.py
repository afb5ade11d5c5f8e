"""Hydra's launcher for SLURM jobs: the runs of ``fairseq-hydra-train -m`` as jobs, several as one job array.

Hydra looks for plugins in this namespace. Its submitit launcher stores a run's exception as a result and lets the job
succeed, composes the configuration anew from files that may have changed when a job starts again, and knows one layout.
Here a job runs the plain command, on a copy of the code and the recipes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

logger = logging.getLogger(__name__)


class AmaeSlurmLauncher(Launcher):
    """See ``config/hydra/launcher/slurm.yaml`` for the settings."""

    def __init__(self, wait: bool, poll_s: float, **resources: Any) -> None:
        self.wait = wait
        self.poll_s = poll_s
        self.resources = OmegaConf.to_container(OmegaConf.create(resources), resolve=True)
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows of the sweep."""
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs, wait for them if the settings say so, and return their results.

        Raises:
            JobFailed: a job failed, with the traceback of the rank that did.
        """
        from amae_plugin.cluster.snapshot import Snapshot
        from amae_plugin.cluster.submission import FOLDER, Resources, wait
        from amae_plugin.errors import UserError
        from amae_plugin.fairseq_plugin.slurm_job import TrainingJob

        assert self.config is not None and self.hydra_context is not None
        known = {field.name for field in fields(Resources)}
        if unknown := self.resources.keys() - known:
            raise UserError(f"hydra.launcher: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
        resources = Resources(**self.resources)
        sweep_dir = Path(self.config.hydra.sweep.dir).absolute()
        folder = sweep_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        config_dirs = [
            source.path
            for source in self.config.hydra.runtime.config_sources
            if source.schema == "file" and source.provider == "command-line"
        ]
        snapshot = Snapshot.take(folder, Path(config_dirs[0]) if config_dirs else None)
        own = [f"--config-name={self.config.hydra.job.config_name}"]
        if snapshot.config is not None:
            own.append(f"--config-dir={snapshot.config}")
        not_for_jobs = ("hydra.mode=", "hydra.run.")
        own += [item for item in self.config.hydra.overrides.hydra if not item.startswith(not_for_jobs)]

        returns, jobs = [], []
        for index, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config.hydra.job):
                config.hydra.job.id = config.hydra.job.num = index
            run_dir = (sweep_dir / str(config.hydra.sweep.subdir)).resolve()
            jobs.append(TrainingJob((*own, *overrides, f"hydra.run.dir={run_dir}")))
            logger.info(f"#{index}: {' '.join(filter_overrides(overrides))}")
            task_config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            returns.append(
                JobReturn(
                    overrides=list(overrides),
                    cfg=task_config,
                    hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
                    working_dir=str(run_dir),
                    task_name=config.hydra.job.name,
                )
            )
        if len({job_return.working_dir for job_return in returns}) < len(jobs):
            raise UserError("several runs of the sweep would write to one folder; give them hydra.sweep.subdir")
        submitted = resources.submit(jobs, folder, snapshot)
        logger.info(f"submitted {', '.join(job.id for job in submitted)}; logs: {folder}")
        results = wait(submitted, self.poll_s) if self.wait else [None] * len(submitted)
        for job_return, result in zip(returns, results):
            job_return.status, job_return.return_value = JobStatus.COMPLETED, result
        return returns
