"""A copy of the code and the recipes, so that a job that waits or starts again runs what was submitted."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import amae_plugin

_PACKAGE = Path(amae_plugin.__file__).parent


@dataclass(frozen=True)
class Snapshot:
    """Copies of the package and of a folder of recipes.

    Attributes:
        code: for ``PYTHONPATH``.
        config: for ``--config-dir``; None if there was none.
    """

    code: Path
    config: Path | None

    @classmethod
    def take(cls, folder: Path, config_dir: Path | None) -> Snapshot:
        """Copy to a new subfolder of *folder*, named by the time."""
        name = time.strftime("%Y%m%d-%H%M%S")
        suffix = 0
        while True:
            snapshot = folder / (f"{name}-{suffix}" if suffix else name)
            try:
                snapshot.mkdir(parents=True)
                break
            except FileExistsError:
                suffix += 1
        shutil.copytree(_PACKAGE, snapshot / "code" / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        if config_dir is not None:
            shutil.copytree(config_dir, snapshot / "config")
        return cls(snapshot / "code", None if config_dir is None else snapshot / "config")
