"""What ``run_config`` makes of a recipe."""

from __future__ import annotations

import pytest
from composing import composed


@pytest.mark.parametrize(
    ("size", "nodes", "devices", "steps"),
    [("1x1", 1, 1, 8), ("1x4", 1, 4, 2), ("1x8", 1, 8, 1), ("2x8", 2, 8, 1), ("8x8", 8, 8, 1)],
)
def test_sizes_give_the_world_and_the_global_batch(size: str, nodes: int, devices: int, steps: int) -> None:
    batch = 512 // (nodes * devices * steps)
    with composed(f"run_config=slurm_{size}", f"dataset.batch_size={batch}") as config:
        launcher = config.hydra.launcher
        assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (nodes, devices, devices)
        assert config.distributed_training.distributed_world_size == nodes * devices
        assert config.distributed_training.ddp_backend == "pytorch_ddp"
        assert config.optimization.update_freq[0] == steps
        # What the cluster has is not guessed.
        assert [launcher[name] for name in ("partition", "account", "qos", "constraint", "mem_gb")] == [None] * 5


def test_cpu_nodes_ask_for_no_gpus_and_use_gloo() -> None:
    with composed("run_config=slurm_cpu", "hydra.launcher.nodes=2", "hydra.launcher.devices_per_node=4") as config:
        assert config.hydra.launcher.gpus_per_node is None
        assert config.common.cpu
        settings = config.distributed_training
        assert (settings.distributed_world_size, settings.distributed_backend) == (8, "gloo")
