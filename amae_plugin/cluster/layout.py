"""The place of a process in a SLURM job, from the variables that SLURM sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from amae_plugin.cluster.commands import node_address
from amae_plugin.errors import UserError

# Below the range that Linux gives to outgoing connections, above what services use.
_FIRST_PORT, _PORTS = 12000, 20000
_LOCALHOST = "localhost"


def in_job(environment: Mapping[str, str]) -> bool:
    """Whether a process with these environment variables belongs to a SLURM job."""
    return "SLURM_JOB_ID" in environment


@dataclass(frozen=True)
class Layout:
    """Place of a task among the processes that train together.

    Attributes:
        world_size: processes on all nodes.
        processes: processes of this task: 1 if the task trains, or the number that it must spawn.
        rank: rank of the task, or of the first process that it spawns.
        device: index of the task's GPU among those that it sees; 0 for a task that spawns, and on CPUs.
        node: name of rank 0's node.
        port: port on which rank 0 listens.
    """

    world_size: int
    processes: int
    rank: int
    device: int
    node: str
    port: int

    def init_method(self) -> str:
        """Return the rendezvous as ``torch.distributed`` takes it."""
        address = self.node if self.node == _LOCALHOST else node_address(self.node)
        return f"tcp://{address}:{self.port}"

    @classmethod
    def from_slurm(
        cls, environment: Mapping[str, str], world_size: int, gpus: int | None, nodes: int | None = None, port: int = 0
    ) -> Layout:
        """Derive the layout from SLURM's variables of the step, and check that the step fits the recipe.

        A step has either a task a device, or a task a node, which spawns a process a device.

        Args:
            environment: environment variables of the process.
            world_size: the recipe's ``distributed_training.distributed_world_size``.
            gpus: number of GPUs that this task sees; None to train on CPUs.
            nodes: the recipe's ``hydra.launcher.nodes``; None if it has none.
            port: port of rank 0; derived from the job if 0.

        Raises:
            UserError: nodes, tasks or GPUs of the step do not make up this world.
        """
        job = environment["SLURM_JOB_ID"]
        wanted = f"distributed_training.distributed_world_size={world_size}"
        if "SLURM_STEP_ID" in environment:
            names = ("STEP_NUM_NODES", "STEP_NUM_TASKS", "LOCALID", "PROCID")
            step_nodes, tasks, local, rank = (int(environment[f"SLURM_{name}"]) for name in names)
            first_node = first_of_node_list(environment["SLURM_STEP_NODELIST"])
        else:  # the batch script, which runs once however many tasks the job has
            if max(int(environment.get(name, 1)) for name in ("SLURM_NNODES", "SLURM_NTASKS")) > 1:
                raise UserError(f"job {job} has several nodes or tasks, but this is only its batch script: use srun")
            step_nodes, tasks, local, rank, first_node = 1, 1, 0, 0, _LOCALHOST

        step = f"the step of job {job} has {tasks} tasks on {step_nodes} nodes"
        if tasks % step_nodes or not re.fullmatch(r"\d+(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")):
            raise UserError(f"{step}, not as many on each node; ask for --ntasks-per-node")
        if nodes not in (None, step_nodes):
            raise UserError(f"hydra.launcher.nodes={nodes}, but {step}; run_config and --nodes must fit")
        if world_size < 1 or world_size % step_nodes:
            raise UserError(f"{wanted}, but {step}, over which such a number cannot be spread evenly")
        tasks_per_node, per_node = tasks // step_nodes, world_size // step_nodes
        if tasks_per_node not in (1, per_node):
            remedy = "neither a task a process nor a task a node; run_config, --nodes and --ntasks-per-node must fit"
            raise UserError(f"{wanted} is {per_node} processes on each of {step_nodes} nodes, but {step}: {remedy}")
        processes = per_node // tasks_per_node
        bound = gpus == 1 == processes  # the task sees only its own GPU
        if gpus not in (None, per_node) and not bound:
            task = f"this task on node {environment.get('SLURMD_NODENAME', first_node)} sees {gpus}"
            remedy = f"ask for --gpus-per-node={per_node}{'' if gpus else ', or train on CPUs: run_config=slurm_cpu'}"
            raise UserError(f"{wanted} is {per_node} GPUs on each of {step_nodes} nodes, but {task}; {remedy}")
        device = 0 if gpus is None or bound or processes > 1 else local
        node = first_node if step_nodes > 1 else _LOCALHOST
        # Another port after each requeueing: a process of the earlier start may still hold the old one.
        port = port or _FIRST_PORT + (int(job) + 1009 * int(environment.get("SLURM_RESTART_COUNT", 0))) % _PORTS
        return cls(world_size, processes, rank * processes, device, node, port)


def first_of_node_list(nodes: str) -> str:
    """Return the first name of a SLURM node list: ``gpu07`` of ``gpu[07-08,10],cpu1``."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).split(",")[0]
