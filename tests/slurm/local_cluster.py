"""A real SLURM of two nodes on this machine, in a folder of its own: Debian's ``slurm-wlm`` and ``munge``.

Nothing of the system's configuration is read or changed: keys, sockets, ports, logs and states are the folder's, and
the nodes' names need not resolve, since their address is the loopback's. As a command it runs until Ctrl-C:

    python tests/slurm/local_cluster.py FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SBIN = "/usr/sbin:/sbin"
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=local
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again once its old credentials have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
SlurmdTimeout=10
ReturnToService=2
# More CPUs than the machine has.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=4000
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class Cluster:
    """The daemons, and the commands that speak to them.

    Attributes:
        folder: folder that holds everything of the cluster.
        daemons: processes by name: ``munged``, ``slurmctld``, and each node's ``slurmd`` under the node's name.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands that speak to this cluster, and of their jobs, free of any other SLURM."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**inherited, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle.

        Raises:
            RuntimeError: a daemon ended, or the nodes are not idle within ten minutes; with the ends of the logs.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname()
        # A job's number decides its port, and several clusters may run on one machine.
        first_job = 1 + 20 * (os.getpid() % 1000)
        config = CONFIG.format(
            host=host, user=getpass.getuser(), folder=self.folder, ports=_free_ports(3), first_job=first_job
        )
        (self.folder / "slurm.conf").write_text(config)
        files = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        # --force, since a folder above, /tmp, is writable for everyone.
        self._start("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *options])
        self._wait_for(lambda: (self.folder / "munge.socket").exists())
        self._start("slurmctld", ["slurmctld", "-D"])
        for node in NODES:
            self.start_node(node)
        self._wait_for(lambda: self.node_states() == dict.fromkeys(NODES, "idle"))

    def start_node(self, node: str) -> None:
        """Start a node's ``slurmd``."""
        self._start(node, ["slurmd", "-D", "-N", node])

    def lose_node(self, node: str) -> None:
        """Kill a node's ``slurmd``, and have SLURM take the node for lost now, not only after ``SlurmdTimeout``."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def node_states(self) -> dict[str, str]:
        """Return the state of each node: ``idle``, ``mixed``, ``down*``, ..."""
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "normal", "-o", "%N %T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def run(self, *command: str) -> str:
        """Run a command and return its standard output.

        Raises:
            RuntimeError: the command failed.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """End all jobs, all daemons, and what is left of either."""
        if (slurmctld := self.daemons.get("slurmctld")) is not None and slurmctld.poll() is None:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.run("scancel", "--user", getpass.getuser())
                self.run("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
        for name in (*NODES, "slurmctld", "munged"):
            daemon = self.daemons.get(name)
            if daemon is not None and daemon.poll() is None:
                daemon.terminate()
                try:
                    daemon.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        # Steps outlive their slurmd. All that belongs to this cluster has its configuration in the environment.
        marker = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(process.name) != os.getpid() and marker in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever started the cluster, who then stops it
            )

    def _wait_for(self, ready: object, seconds: float = 600) -> None:
        assert callable(ready)
        deadline = time.monotonic() + seconds
        while not ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "".join(
                    f"--- {path.name}\n{path.read_text()[-2000:]}\n" for path in sorted(self.folder.glob("*.out"))
                )
                raise RuntimeError(f"the cluster does not start; ended: {dead or 'none'}\n{logs}")
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster, and take it down at the end, whatever happens, SIGTERM included."""
    missing = [name for name in ("slurmctld", "munged") if not shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")]
    if missing:
        raise RuntimeError(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    cluster = Cluster(folder)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    with cluster(parser.parse_args().folder) as running, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={running.folder / 'slurm.conf'}", flush=True)
        signal.pause()
