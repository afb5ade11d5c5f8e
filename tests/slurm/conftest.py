"""Training on a real SLURM, that of ``local_cluster.py``, by runs as in ``tests/end_to_end``."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loading import load
from local_cluster import Cluster, cluster

from amae_plugin.cluster.commands import JobState

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Starts of a training after which a command or a job hangs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take away the limit of the other tests, which does not know how fast the machine is."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))


end_to_end = load("end_to_end", ROOT / "tests" / "end_to_end" / "conftest.py")
labelled = end_to_end.labelled  # a fixture
BIN: Path = end_to_end.BIN
Run = end_to_end.Run

# 36 clips, 8 an update: 5 updates an epoch, the last of them smaller. No dropout, which differs between processes.
PRETRAINING = [
    *end_to_end.MICRO["pretrain_audio_mae_tiny"],
    "model.decoder=global",
    "optimization.max_update=40",
    "checkpoint.save_interval_updates=3",
    "dataset.validate_interval_updates=0",
]
FINE_TUNING = [
    *end_to_end.MICRO["finetune_audio_mae_tiny"],
    *end_to_end.ENCODER,
    "optimization.max_update=20",
    "dataset.validate_interval_updates=5",
    "task.balanced_samples=32",
]


class Slurm:
    """The cluster as a user sees it: commands, and what they print.

    Waiting ends when the awaited happens, or when the job ends without it. Limits are only for what hangs.

    Attributes:
        folder: working directory of the commands.
        start_s: seconds that the start of a training takes on this machine; the unit of all limits.
    """

    def __init__(self, cluster: Cluster, folder: Path, start_s: float):
        self.cluster = cluster
        self.folder = folder
        self.start_s = start_s
        self.environment = {
            **cluster.environment,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}:{cluster.environment['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'slurm'}",
        }

    def command(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command; standard output and error are in ``stdout``."""
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * self.start_s,
            check=False,
        )

    def sbatch(self, template: str, name: str, options: list[str], *arguments: str) -> tuple[str, Path]:
        """Submit one of ``slurm/*.sbatch``, and return the job and its log."""
        log = self.folder / f"{name}.log"
        recipe = ["--config-dir", str(ROOT / "config"), "--config-name", "pretrain_audio_mae_tiny"]
        small = ["--gpus-per-node=0", "--cpus-per-task=1", f"--output={log}", f"--job-name={name}"]
        done = self.command(
            "sbatch", "--parsable", *small, *options, str(ROOT / "slurm" / template), *recipe, *PRETRAINING, *arguments
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.strip(), log

    def job(self, job: str) -> dict[str, str]:
        """Return JobState, ExitCode, Restarts, ... as ``scontrol show job`` prints them."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def wait_for(self, words: str, job: str, log: Path) -> None:
        """Wait until a job's log holds some words; fail if the job ends, or hangs, without them."""
        deadline = time.monotonic() + PATIENCE * self.start_s
        while words not in read(log):
            ended = self.has_ended(job)  # before the log is read for the last time
            assert words in read(log) or not (ended or time.monotonic() > deadline), f"{self.job(job)}\n{read(log)}"
            time.sleep(0.1)

    def wait_for_update(self, update: int, job: str, log: Path) -> None:
        """Wait until a job's log has the training loss of an update."""
        self.wait_for(f'"num_updates": "{update}"', job, log)

    def wait_for_end(self, job: str, log: Path, patience: float = PATIENCE) -> dict[str, str]:
        """Wait until a job has ended for good, and return what :meth:`job` does."""
        deadline = time.monotonic() + patience * self.start_s
        while not self.has_ended(job):
            assert time.monotonic() < deadline, f"{self.job(job)}\n{read(log)}"
            time.sleep(0.5)
        return self.job(job)

    def has_ended(self, job: str) -> bool:
        """Whether a job neither waits nor runs."""
        return JobState(self.job(job)["JobState"]).ended

    def trainers(self, job: str) -> list[int]:
        """Return the processes that train, without their data loaders' workers, in the order of their start."""
        running = self.processes(job)
        commands = {pid: (Path("/proc") / str(pid) / "cmdline").read_text() for pid in running}
        spawned = {pid for pid in running if "spawn_main" in commands[pid]}
        parent = {
            pid: int((Path("/proc") / str(pid) / "stat").read_text().split(")")[-1].split()[1]) for pid in running
        }
        return sorted(pid for pid in spawned or running if parent[pid] not in (spawned or running))

    def processes(self, job: str) -> dict[int, str]:
        """Return the ``SLURM_PROCID`` of each process of a job's tasks."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = dict(
                    entry.split("=", 1)
                    for entry in (process / "environ").read_text(errors="replace").split("\0")
                    if "=" in entry
                )
            except OSError:
                continue
            if (
                variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                and variables.get("SLURM_JOB_ID") == job
                and "SLURM_PROCID" in variables
                and "SLURM_STEP_ID" in variables
            ):
                found[int(process.name)] = variables["SLURM_PROCID"]
        return found


def read(path: Path) -> str:
    """Read a log, which is empty before it exists."""
    return path.read_text(errors="replace") if path.exists() else ""


def losses(log: str) -> dict[int, list[float]]:
    """Return the training losses of each update: several if it was made again."""
    found: dict[int, list[float]] = {}
    for entry in Run(Path(), log, 0).logged("train_inner"):
        found.setdefault(int(entry["num_updates"]), []).append(float(entry["loss"]))
    return found


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "slurm") as running:
        yield running


@pytest.fixture(scope="session")
def start_s() -> float:
    """Seconds that this machine, as busy as it is, takes to import what a training imports."""
    begin = time.monotonic()
    subprocess.run([BIN / "python", "-c", "import fairseq_cli.hydra_train, amae_plugin.fairseq_plugin"], check=True)
    return max(1.0, time.monotonic() - begin)


@pytest.fixture
def slurm(running_cluster: Cluster, tmp_path: Path, start_s: float) -> Slurm:
    folder = tmp_path / 'a=b, (c) Übung\'s "q"'  # what Hydra's grammar, sbatch and shells take for something else
    folder.mkdir()
    return Slurm(running_cluster, folder, start_s)


@pytest.fixture(scope="session")
def reference(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by update of one process that nothing happens to."""
    run = end_to_end.train(tmp_path_factory.mktemp("reference"), *PRETRAINING, f"task.data={labelled}")
    assert run.returncode == 0, run.output
    found = {update: float(loss) for update, loss in run.losses().items()}
    assert len(found) == 40
    return found


def on_cpus(nodes: int, processes: int) -> list[str]:
    """Return the overrides for a run on so many nodes of so many processes, which make up the global batch."""
    return [
        "run_config=slurm_cpu",
        f"hydra.launcher.nodes={nodes}",
        f"hydra.launcher.devices_per_node={processes}",
        "hydra.launcher.cpus_per_device=1",
        "hydra.launcher.poll_s=0.5",
        f"dataset.batch_size={8 // (nodes * processes)}",
    ]
