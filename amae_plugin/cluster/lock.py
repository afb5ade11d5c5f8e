"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amae_plugin.errors import UserError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
_PATIENCE_S = 120.0


class RunLock:
    """Holds a folder for the run of this process, until it ends, however it ends.

    It is a POSIX record lock on a file: the kernel (of a network file system, its server) drops it with the process
    that holds it, so that ``kill -9`` and a node's crash leave nothing behind, and no clock or heartbeat is needed. It
    is not inherited by data loader workers. The file's text says who holds it, for messages.

    A job that SLURM started again may find its former self still running, on a node that SLURM lost contact with. Then
    it claims the folder, which :meth:`check` tells the other, and waits.
    """

    def __init__(self, folder: Path, job: str | None, restart: int):
        self.path = folder / LOCK_NAME
        self.me = f"job {job}, start {restart}" if job else "a run outside SLURM"
        self._job = job
        self._claim = folder / f"{LOCK_NAME}.{job}.{restart}"
        self._later = folder / f"{LOCK_NAME}.{job}.{restart + 1}"

    @contextmanager
    def held(self, patience_s: float = _PATIENCE_S) -> Iterator[None]:
        """Hold the lock.

        Raises:
            UserError: another run holds it; an earlier start of this very job, still after *patience_s*.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            self._acquire(file.fileno(), patience_s)
            try:
                file.truncate(0)
                host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
                file.write(f"{self.me}, process {os.getpid()} on {host}")
                file.flush()
                yield
            finally:
                file.truncate(0)

    def check(self) -> None:
        """Raise a UserError if a later start of this job waits for the folder."""
        if self._job and self._later.exists():
            raise UserError(f"{self.path.parent}: SLURM started job {self._job} again elsewhere; this start of it ends")

    def _acquire(self, descriptor: int, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        try:
            while not self._try(descriptor):
                holder = self.path.read_text() if self.path.exists() else ""
                if not (self._job and holder.startswith(f"job {self._job},")) or time.monotonic() > deadline:
                    raise UserError(
                        f"{self.path.parent} is in use by {holder or 'another run'}; wait for it, cancel it, or write "
                        "to another folder (hydra.run.dir=...)"
                    )
                self._claim.touch()
                time.sleep(1)
        finally:
            self._claim.unlink(missing_ok=True)

    def _try(self, descriptor: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                logger.warning(f"{self.path}: the file system knows no locks: a second run here would not be noticed")
                return True
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True
