from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.cluster.layout import Layout, first_of_node_list
from amae_plugin.errors import UserError


def step(nodes: int = 1, per_node: int = 1, node: int = 0, local: int = 0, **others: str) -> dict[str, str]:
    """The variables of a task as SLURM 22.05 sets them, on nodes gpu07, gpu08, ...."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})" if nodes > 1 else str(per_node),
        "SLURM_STEP_NODELIST": f"gpu[07-{6 + nodes:02}]" if nodes > 1 else "gpu07",
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_PROCID": str(node * per_node + local),
        **others,
    }


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu08", "gpu07"),
        ("gpu[07-08,10],cpu1", "gpu07"),
        ("gpu-a[3,5]", "gpu-a3"),
        ("rack[0-1]node[03-04],x", "rack0node03"),
    ],
)
def test_first_of_a_node_list(nodes: str, first: str) -> None:
    assert first_of_node_list(nodes) == first


@given(nodes=st.integers(1, 9), devices=st.integers(1, 8), cpu=st.booleans(), bound=st.booleans())
def test_a_task_a_device_gives_every_rank_once(nodes: int, devices: int, cpu: bool, bound: bool) -> None:
    gpus = None if cpu else 1 if bound else devices
    layouts = [
        Layout.from_slurm(step(nodes, devices, node, local), nodes * devices, gpus)
        for node in range(nodes)
        for local in range(devices)
    ]
    assert [layout.rank for layout in layouts] == list(range(nodes * devices))
    assert {layout.processes for layout in layouts} == {1}
    assert [layout.device for layout in layouts] == [0 if cpu or bound else local for local in range(devices)] * nodes
    assert len({(layout.node, layout.port) for layout in layouts}) == 1


@given(nodes=st.integers(1, 9), devices=st.integers(1, 8), cpu=st.booleans())
def test_a_task_a_node_spawns_every_rank_once(nodes: int, devices: int, cpu: bool) -> None:
    layouts = [
        Layout.from_slurm(step(nodes, 1, node), nodes * devices, None if cpu else devices) for node in range(nodes)
    ]
    ranks = [layout.rank + process for layout in layouts for process in range(layout.processes)]
    assert ranks == list(range(nodes * devices))
    assert {layout.device for layout in layouts} == {0}


def test_rendezvous_is_the_first_nodes_and_the_jobs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no command that knows addresses
    layout = Layout.from_slurm(step(2, 4), 8, 4)
    assert layout.init_method() == "tcp://gpu07:13234"
    again = Layout.from_slurm(step(2, 4, SLURM_RESTART_COUNT="1"), 8, 4)
    assert again.port != layout.port
    assert Layout.from_slurm(step(2, 4), 8, 4, port=29500).port == 29500


@given(job=st.integers(1, 2**31), restarts=st.integers(0, 100))
def test_port_is_free_for_programs(job: int, restarts: int) -> None:
    environment = step(SLURM_JOB_ID=str(job), SLURM_RESTART_COUNT=str(restarts))
    assert 12000 <= Layout.from_slurm(environment, 1, None).port < 32000


@pytest.mark.parametrize(
    ("environment", "world_size", "gpus", "message"),
    [
        (step(2, 8), 0, 8, "distributed_world_size=0, but the step of job 1234 has 16 tasks on 2 nodes"),
        (step(2, 8), 15, 8, "cannot be spread evenly"),
        (step(2, 4), 16, 8, "neither a task a process nor a task a node"),
        (step(1, 8), 1, 8, "neither a task a process nor a task a node"),
        (step(2, 8), 16, 0, "this task on node gpu07 sees 0; ask for --gpus-per-node=8, or train on CPUs"),
        (step(2, 1), 16, 4, "sees 4; ask for --gpus-per-node=8"),
        (step(2, 1), 16, 1, "sees 1; ask for --gpus-per-node=8"),
        (step(2, 2, SLURM_STEP_TASKS_PER_NODE="3,1"), 4, None, "not as many on each node"),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}, 2, None, "only its batch script: use srun"),
    ],
)
def test_job_that_does_not_fit_is_refused(
    environment: dict[str, str], world_size: int, gpus: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Layout.from_slurm(environment, world_size, gpus)


def test_other_nodes_than_the_recipe_says_are_refused() -> None:
    with pytest.raises(UserError, match=r"hydra\.launcher\.nodes=2, but the step of job 1234 has 1 tasks on 1 nodes"):
        Layout.from_slurm(step(), 4, None, nodes=2)


def test_batch_script_of_one_task_spawns_on_its_node() -> None:
    layout = Layout.from_slurm({"SLURM_JOB_ID": "1", "SLURM_NNODES": "1"}, 8, 8)
    assert (layout.processes, layout.rank, layout.init_method()) == (8, 0, "tcp://localhost:12001")
