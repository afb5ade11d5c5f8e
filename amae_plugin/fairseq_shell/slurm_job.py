"""What a task of a SLURM job runs: a training command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from amae_plugin.cluster import signals
from amae_plugin.evaluation.sweep import read_result


@dataclass(frozen=True)
class TrainingJob:
    """``fairseq-hydra-train`` with some arguments, in this process; its result is the run's best validation result.

    Attributes:
        arguments: of the command, without ``-m``.
        folder: that the run writes to.
    """

    arguments: tuple[str, ...]
    folder: Path

    def __call__(self) -> float | None:
        """Run the command; an error is raised as it is."""
        # Instead of submitit's handlers, which requeue at once.
        signals.watch()
        os.environ["HYDRA_FULL_ERROR"] = "1"
        sys.argv = ["fairseq-hydra-train", *self.arguments]
        from fairseq_cli.hydra_train import cli_main

        cli_main()
        return result_of(self.folder)


def result_of(folder: Path) -> float | None:
    """The best validation result of a run; None if it was not validated."""
    return read_result(folder / "checkpoints").best
