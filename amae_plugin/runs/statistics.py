"""Statistics of a manifest, measured once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import measure
from amae_plugin.runs.training import available_cpus, write_json

_MOST_CLIPS = 2000


def statistics_of(path: Path, target_length: int, cache: Path) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel values of a manifest's clips, as ``amae stats`` computes them.

    Args:
        path: the manifest; of a large one, 2,000 clips.
        target_length: frames taken of longer clips.
        cache: what was measured is kept in this file, and read from it if it is not older than the manifest.
    """
    if not cache.exists() or cache.stat().st_mtime < path.stat().st_mtime:
        manifest = Manifest.read(path)
        dataset = AudioDataset(manifest, ModelInput(target_length=target_length, normalization="model"))
        clips = np.linspace(0, len(manifest) - 1, min(len(manifest), _MOST_CLIPS)).round().astype(int)
        write_json(cache, measure(dataset, clips.tolist(), workers=available_cpus()))
    figures = json.loads(cache.read_text())
    return figures["mean"], figures["std"]
