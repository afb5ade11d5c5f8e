"""Where a process stands in a SLURM job: the one place that reads SLURM's variables for it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list

from amae_plugin.errors import UserError

# Below the range that Linux gives to outgoing connections, above what services use.
_FIRST_PORT, _PORTS = 12000, 20000
_HERE = "localhost"


def in_job(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment belongs to a SLURM job."""
    return "SLURM_JOB_ID" in environment


@dataclass(frozen=True)
class Layout:
    """The place of a task among the processes that train together.

    Attributes:
        world_size: processes of all nodes.
        processes: of those, how many this task is to be: 1, itself, or as many as it must spawn.
        rank: of the task, or of the first process it spawns.
        device: index of the task's GPU among those it sees; 0 for a task that spawns, and on CPUs.
        node: of rank 0, by name.
        port: where rank 0 listens.
    """

    world_size: int
    processes: int
    rank: int
    device: int
    node: str
    port: int

    def init_method(self) -> str:
        """The rendezvous as ``torch.distributed`` takes it."""
        return f"tcp://{node_address(self.node)}:{self.port}"

    @classmethod
    def from_slurm(
        cls,
        environment: Mapping[str, str],
        world_size: int,
        gpus: int | None,
        wanted_nodes: int | None = None,
        port: int | None = None,
    ) -> Layout:
        """Derive the layout from what SLURM says of the step, and check that it is what the recipe wants.

        Two layouts are known: a task a device, and a task a node, which spawns a process a device.

        Args:
            environment: of the process.
            world_size: that the recipe wants, ``distributed_training.distributed_world_size``.
            gpus: how many this task sees; None to train on CPUs.
            wanted_nodes: that the recipe wants, ``hydra.launcher.nodes``; None if it does not say.
            port: for rank 0; derived from the job if None.

        Raises:
            UserError: nodes, tasks or GPUs of the step are not those that make up this world.
        """
        job = environment["SLURM_JOB_ID"]
        wanted = f"distributed_training.distributed_world_size={world_size}"
        if "SLURM_STEP_ID" in environment:
            nodes, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
            node, local, rank = (int(environment[f"SLURM_{name}"]) for name in ("NODEID", "LOCALID", "PROCID"))
            first_node = _parse_node_list(environment["SLURM_STEP_NODELIST"])[0]
        else:  # the batch script itself, which runs once however many tasks the job has
            asked = max(int(environment.get("SLURM_NNODES", 1)), int(environment.get("SLURM_NTASKS", 1)))
            if asked > 1:
                raise UserError(f"job {job} has several nodes or tasks, but this is only its batch script: use srun")
            nodes, tasks, node, local, rank, first_node = 1, 1, 0, 0, 0, _HERE

        step = f"the step of job {job} has {tasks} tasks on {nodes} nodes"
        if tasks % nodes or not re.fullmatch(r"\d+(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")):
            raise UserError(f"{step}, not as many on each node; ask for --ntasks-per-node")
        if wanted_nodes not in (None, nodes):
            raise UserError(f"hydra.launcher.nodes={wanted_nodes}, but {step}; run_config and --nodes must fit")
        if world_size < 1 or world_size % nodes:
            raise UserError(f"{wanted}, but {step}, over which such a number cannot be spread evenly")
        tasks_per_node, per_node = tasks // nodes, world_size // nodes
        if tasks_per_node not in (1, per_node):
            raise UserError(
                f"{wanted} is {per_node} processes on each of {nodes} nodes, but {step}: neither a task a process "
                "nor a task a node; run_config and the job's --nodes and --ntasks-per-node must fit"
            )
        spawns = tasks_per_node < per_node
        if gpus is None or (gpus == 1 and not spawns):  # no GPU, or the task is bound to its own
            device = 0
        elif gpus == per_node:
            device = 0 if spawns else local
        else:
            raise UserError(
                f"{wanted} is {per_node} GPUs on each of {nodes} nodes, but this task on node "
                f"{environment.get('SLURMD_NODENAME', first_node)} sees {gpus}; ask for --gpus-per-node={per_node}"
                + ("" if gpus else ", or train on CPUs with run_config=slurm_cpu")
            )
        restarts = int(environment.get("SLURM_RESTART_COUNT", 0))
        return cls(
            world_size=world_size,
            processes=per_node if spawns else 1,
            rank=node * per_node if spawns else rank,
            device=device,
            node=first_node if nodes > 1 else _HERE,
            # Another one after each requeueing: what is left of the start before may still hold the port.
            port=port or _FIRST_PORT + (int(job) + 1009 * restarts) % _PORTS,
        )


def node_address(node: str) -> str:
    """The address that the cluster reaches a node by; its name, where SLURM's commands are not at hand."""
    if node == _HERE:
        return node
    try:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", node], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return node
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else node
