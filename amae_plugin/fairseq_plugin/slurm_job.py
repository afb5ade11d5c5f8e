"""What a task of a SLURM job runs: a training command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from amae_plugin.cluster import signals
from amae_plugin.fairseq_plugin.hydra import RegisterPlugin


@dataclass(frozen=True)
class TrainingJob:
    """``fairseq-hydra-train`` with some arguments, in this process; its result is what Hydra gets of the run.

    Attributes:
        arguments: of the command, without ``-m``.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> float | None:
        """Run the command; an error is raised as it is."""
        # Instead of submitit's handlers, which requeue at once.
        signals.watch()
        os.environ["HYDRA_FULL_ERROR"] = "1"
        sys.argv = ["fairseq-hydra-train", *self.arguments]
        from fairseq_cli.hydra_train import cli_main

        cli_main()
        return RegisterPlugin.result
