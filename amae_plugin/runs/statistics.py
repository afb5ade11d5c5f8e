"""Statistics of manifests, measured once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from amae_plugin.data.log_mel import FRONT_ENDS, FrontEnd, LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import measure
from amae_plugin.errors import UserError
from amae_plugin.files import write_json
from amae_plugin.models.downstream import encoder_section
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.recipes import model_section, open_recipe, whole_number
from amae_plugin.runs.training import available_cpus


def front_end_of(model: Mapping[str, Any]) -> FrontEnd:
    """Return the front end of the system that a model section names."""
    return find_system(model).input(model).front_end


def read_front_end(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> tuple[FrontEnd, int]:
    """Read the front end of a recipe's model and the frames of its input.

    A fine-tuning recipe whose encoder comes from a checkpoint has that of Audio-MAE unless it names another.

    Raises:
        UserError: see :func:`~amae_plugin.recipes.open_recipe`.
    """
    with open_recipe(recipe, config_dir, overrides) as config:
        encoder, frames = encoder_section(model_section(config)), whole_number(config, "task.target_length")
        named = OmegaConf.select(config, "task.front_end")
    front_end = front_end_of(encoder) if encoder and encoder.get("_name") in SYSTEMS else LogMel()
    return FRONT_ENDS[named]() if named and named != front_end.name else front_end, frames


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
