"""How programs end, and with them the processes that they start."""

import ctypes
import errno
import multiprocessing
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import queues
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

from amae_plugin.errors import UserError

_PR_SET_PDEATHSIG = 1
_FEWER = "take fewer of them (dataset.num_workers, --workers)"
_MORE_FILES = "raise the limit of open files (ulimit -n)"
_LIMITS = {
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENOMEM: "take smaller batches",
}
"""What to do about errors at the start of a process, other than to start fewer."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Python raises SIGINT: what cleans up after the one does so after the other."""


def run_program(name: str, work: Callable[[], int | None], remedy: str = "") -> int:
    """Run a program, and turn whatever ends it early into an exit code and at most one line on standard error.

    Args:
        name: name of the program, which begins the line.
        work: the program; None means 0.
        remedy: advice that ends the line of a program that was interrupted or terminated.

    Returns:
        What *work* returns, or: 2 after a ``UserError``, 130 after SIGINT, 143 after SIGTERM, and 141, without a word,
        when nobody reads the output any further.
    """
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        return _code(name, work, remedy)
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:
            raise
        for stream in unread:  # what is left of the output goes nowhere, for the interpreter writes it at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(name: str, work: Callable[[], int | None], remedy: str) -> int:
    """Return the exit code of a program, all of whose output has been handed over."""
    try:
        try:
            with losing_workers():
                return work() or 0
        finally:  # also when argparse has printed its help, and ends the program
            sys.stdout.flush()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        what = f"{name}: {'terminated' if terminated else 'interrupted'}"
        print(f"\n{what}; {remedy}" if remedy else f"\n{what}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


@contextmanager
def signals_held_back() -> Iterator[list[int]]:
    """Hold back SIGINT and SIGTERM until the block ends, so that they interrupt nothing in its midst.

    Yields:
        The signals that have come. The first of them then does what it would have done.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def available_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Prepare a worker of ``multiprocessing``: it is killed when its parent ends, and leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _signal_at_end_of_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def terminated_with_parent() -> Callable[[], None]:
    """Return a ``preexec_fn`` for :mod:`subprocess`: the command gets SIGTERM when the thread that starts it ends."""
    return partial(_terminate_with, os.getpid())


def killed_with_parent(worker: int) -> None:
    """Have this process killed when its parent ends: a ``worker_init_fn`` for :class:`torch.utils.data.DataLoader`.

    A worker whose results are large would wait for ever to hand them to a parent that was killed. One whose parent is
    about to end says nothing of the tensors that it could not hand over; any other ends with its reason.
    """
    _signal_at_end_of_parent(signal.SIGKILL)
    sys.excepthook = _report_unless_alone
    end_when_a_batch_is_lost()


def end_when_a_batch_is_lost() -> None:
    """Have this worker of a ``DataLoader`` end, with a line that says why, when it cannot hand a batch over.

    Python would report the error and drop the batch, for which the parent would wait for ever. A batch goes through
    /dev/shm, of which a container has 64 MB unless it is told otherwise.
    """
    queues.Queue._on_queue_feeder_error = staticmethod(_end_without_batch)  # type: ignore[attr-defined]


@contextmanager
def losing_workers() -> Iterator[None]:
    """Turn errors about a worker of a ``DataLoader`` that has ended, or that cannot start, into advice.

    Raises:
        UserError: a worker ended, by itself or killed, or the system has no room for another.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        try:
            _end_with_advice(error)
        except RuntimeError as news:  # PyTorch's, of the same worker
            _end_with_advice(news)
        raise


def _end_with_advice(error: OSError | EOFError | RuntimeError) -> None:
    """Kill the workers of a ``DataLoader`` that has lost one or could not start all; return at any other error.

    One of a training that has not loaded a clip yet heeds no other signal, and Python waits for all when it ends.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error at the end of a worker
    try:
        advice = _advice(error)
        if advice is None:
            return
        workers = [process for process in multiprocessing.active_children() if process.daemon]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    raise UserError(advice) from error


def _advice(error: OSError | EOFError | RuntimeError) -> str | None:
    """Return what to do about an error of starting or losing a worker; None if it is another error."""
    number, lost = None, False
    if isinstance(error, RuntimeError):
        number = errno.EAGAIN if str(error) == "can't start new thread" else None
        lost = str(error).startswith("DataLoader worker (pid")
    elif "multiprocessing" in {
        Path(f.f_code.co_filename).parent.name for f, _ in traceback.walk_tb(error.__traceback__)
    }:
        number = error.errno if isinstance(error, OSError) else None
        # It ended while it handed a batch over: its socket breaks, takes no connection, or is gone.
        lost = isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
    if number in _LIMITS:
        reason = os.strerror(number)
        return f"cannot start another process that loads clips ({reason}): {_FEWER}, or {_LIMITS[number]}"
    if not lost:
        return None
    return (
        "a process that loads clips has ended early. If it did not say why above, the system has killed it, as it "
        f"does when memory runs out: {_FEWER} or smaller batches"
    )


def _end_without_batch(error: Exception, batch: object) -> NoReturn:
    if not isinstance(error, ConnectionError):  # of a parent that is about to end
        room, remedy = "", "give it more shared memory (in a container: --shm-size=8g), take smaller batches"
        if os.strerror(errno.EMFILE) in str(error):
            remedy = _MORE_FILES
        elif sys.platform == "linux":
            usage = shutil.disk_usage("/dev/shm")
            room = f"; /dev/shm has {usage.total / 1e6:,.0f} MB, {usage.free / 1e6:,.0f} MB of it free"
        print(
            f"a process that loads clips cannot hand over a batch: {error}{room}. To mend it, {remedy}, or take fewer "
            "such processes (dataset.num_workers, --workers)",
            file=sys.stderr,
            flush=True,
        )
    os._exit(1)


def _report_unless_alone(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def _terminate_with(parent: int) -> None:
    _signal_at_end_of_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it ended just before
        os._exit(1)


def _signal_at_end_of_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, ``kill -9`` included; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(stream, 0)  # asks for nothing but errors
    return bool(poll.poll(0))
