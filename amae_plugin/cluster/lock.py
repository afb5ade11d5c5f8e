"""A lock that admits one run at a time to a folder."""

import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from amae_plugin.errors import UserError

logger = logging.getLogger(__name__)

_NAME = ".lock"


def is_in_use(folder: Path) -> bool:
    """Whether a run of another process holds the lock of a folder; a process that holds it loses it by asking."""
    try:
        with (folder / _NAME).open("rb") as file:
            # A look, where an attempt to take the lock could keep it from the run that is about to.
            lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            (kind,) = struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_GETLK, lock))
            return kind != fcntl.F_UNLCK
    except OSError:  # no run was ever here, or the file system has no locks
        return False


class RunLock:
    """Lock that keeps a folder to the run of this process until the process ends, however it ends.

    It is a POSIX record lock on a file. The kernel (for a network file system, its server) drops it with the process
    that holds it: ``kill -9`` and a node's crash leave nothing behind, and no clock or heartbeat is needed. Data loader
    workers do not inherit it. The file's text names its latest holder, for messages.

    A job that SLURM started again may find its earlier start still running, on a node that SLURM lost contact with. It
    then claims the folder and waits; the earlier start learns of the claim from :meth:`check`.
    """

    def __init__(self, folder: Path, job: str | None, restart: int):
        self._path = folder / _NAME
        self._job = job
        self._holder = f"job {job}, start {restart}" if job else "a run outside SLURM"
        self._claim, self._next_claim = (folder / f"{_NAME}.{job}.{start}" for start in (restart, restart + 1))

    @contextmanager
    def held(self, patience_s: float = 120.0) -> Iterator[None]:
        """Hold the lock.

        Raises:
            UserError: another run holds it, or an earlier start of this job still does after *patience_s*.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+") as file:
            self._acquire(file, time.monotonic() + patience_s)
            file.truncate(0)
            host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
            print(f"{self._holder}, process {os.getpid()} on {host}", end="", file=file, flush=True)
            yield

    def check(self) -> None:
        """Raise a UserError if a later start of this job waits for the folder."""
        if self._job and self._next_claim.exists():
            raise UserError(f"{self._path}: SLURM started job {self._job} again elsewhere; this start of it ends")

    def _acquire(self, file: TextIO, deadline: float) -> None:
        try:
            while not self._try(file):
                holder = self._path.read_text()
                if not (self._job and holder.startswith(f"job {self._job},")) or time.monotonic() > deadline:
                    remedy = "wait for it, cancel it, or write to another folder (hydra.run.dir=...)"
                    raise UserError(f"{self._path.parent} is in use by {holder or 'another run'}; {remedy}")
                self._claim.touch()
                time.sleep(1)
        finally:
            self._claim.unlink(missing_ok=True)

    def _try(self, file: TextIO) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning(f"{self._path}: this file system has no locks: a second run here would go unnoticed")
        return True
