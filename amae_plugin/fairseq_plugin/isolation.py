"""fairseq keeps some of a run's state in its modules; a sweep runs several times in one process."""

from __future__ import annotations

from fairseq import checkpoint_utils
from fairseq.logging import metrics, progress_bar
from fairseq_cli import train


def forget_earlier_run() -> None:
    """Reset the best result, the early stopping, the measures and the TensorBoard files of an earlier run.

    Without this, the second run of a sweep in one process compares its results with the first run's best, may stop
    early for it, and writes its curves into the first run's folder.
    """
    for function, names in (
        (checkpoint_utils.save_checkpoint, ("best",)),
        (train.should_stop_early, ("best", "num_runs")),
    ):
        for name in names:
            if hasattr(function, name):
                delattr(function, name)
    metrics.reset()
    close_tensorboard()


def close_tensorboard() -> None:
    """Write out and close the TensorBoard files; fairseq leaves them to the interpreter's exit."""
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    progress_bar._tensorboard_writers.clear()
