"""Statistics of manifests, measured once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amae_plugin.data.log_mel import FrontEnd
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import measure
from amae_plugin.errors import UserError
from amae_plugin.files import write_json
from amae_plugin.models.registry import find_system
from amae_plugin.runs.training import available_cpus


def front_end_of(model: Mapping[str, Any]) -> FrontEnd:
    """Return the front end of the system that a model section names."""
    return find_system(model).input(model).front_end


def read_or_measure(path: Path, front_end: FrontEnd, target_length: int, cache: Path) -> tuple[float, float]:
    """Return the mean and standard deviation of a manifest's log-mel values, as ``amae stats`` computes them.

    Args:
        path: manifest file.
        front_end: log-mel front end.
        target_length: frames taken of longer clips.
        cache: file of the statistics of several manifests; a manifest that changed is measured again.

    Raises:
        UserError: the cache is damaged, or the manifest cannot be measured.
    """
    try:
        known = json.loads(cache.read_text()) if cache.exists() else {}
    except ValueError:
        raise UserError(f"{cache}: does not hold the statistics of manifests; delete it") from None
    key, modified = f"{path.absolute()}, {target_length} frames of {front_end}", path.stat().st_mtime_ns
    if key not in known or known[key]["modified"] != modified:
        options = {"target_length": target_length, "workers": available_cpus()}
        measured = measure(Manifest.read(path), front_end=front_end, **options)
        known[key] = {"modified": modified, **measured}
        write_json(cache, known)
    return known[key]["mean"], known[key]["std"]
