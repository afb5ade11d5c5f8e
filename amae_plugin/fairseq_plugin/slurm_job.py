"""A training command as the work of a SLURM job."""

import os
import sys

from amae_plugin.cluster import signals
from amae_plugin.fairseq_plugin.hydra import RegisterPlugin


def run_training(*arguments: str) -> float | None:
    """Run ``fairseq-hydra-train`` with these arguments in this process, and return what Hydra gets as its result."""
    signals.install_handlers()  # instead of submitit's, which requeue at once
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["fairseq-hydra-train", *arguments]
    from fairseq_cli.hydra_train import cli_main

    cli_main()
    return RegisterPlugin.result
