"""Masked autoencoders on audio spectrograms: plain PyTorch models, and a fairseq plugin that trains them.

Importing this package is cheap and imports neither fairseq nor Hydra. As soon as the process imports fairseq, before
this package or after it, the plugin registers its tasks, models, criterions, optimizers and schedules, under names that
begin with ``amae_``. Functions of fairseq change only in a process that starts a run of a recipe: see
:mod:`amae_plugin.fairseq_plugin.patches`. Beside fairseq's training, Hydra says in a sentence what it cannot read: see
``hydra_plugins.amae_messages``. Registration adds one method, which says what is wrong where fairseq would
fail without it: see :mod:`amae_plugin.fairseq_plugin.speech`.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

import wrapt

from amae_plugin.errors import UserError

if TYPE_CHECKING:
    from amae_plugin.inference.model import AudioModel

__version__ = "0.1.0"


def load_model(
    path: str | os.PathLike[str],
    device: str = "auto",
    batch_size: int = 16,
    *,
    teacher: bool = False,
    pooling: str = "mean",
) -> AudioModel:
    """Load a checkpoint for use on audio; see :func:`amae_plugin.inference.model.load_model`."""
    from amae_plugin.inference.model import load_model

    return load_model(path, device, batch_size, teacher=teacher, pooling=pooling)


@wrapt.when_imported("fairseq")
def _register_plugin(fairseq: ModuleType) -> None:
    try:
        import amae_plugin.fairseq_plugin  # noqa: F401
    except UserError as error:
        # The installation is broken, and fairseq and Hydra would hide this error behind one of their own.
        raise SystemExit(f"amae_plugin: {error}") from None
