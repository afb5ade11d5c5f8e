"""Maps of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amae_plugin.evaluation import maps


def features(groups: list[str]) -> np.ndarray:
    """Clips of a group that differ less from each other than from those of another one."""
    rng = np.random.default_rng(0)
    centres = {name: rng.standard_normal(16) for name in sorted(set(groups))}
    return np.array([centres[name] + 0.1 * rng.standard_normal(16) for name in groups], np.float32)


def test_alike_clips_are_neighbours() -> None:
    groups = list("abc") * 10
    clips, places = maps.lay_out(features(groups))
    assert clips.tolist() == list(range(30)) and places.shape == (30, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(30, np.inf))
    assert [groups[near] for near in distances.argmin(axis=1)] == groups
    assert (maps.lay_out(features(groups))[1] == places).all()


def test_of_many_clips_some_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(maps, "_MOST_CLIPS", 8)
    groups = [f"group {index // 4}" for index in range(16)]
    clips, places = maps.lay_out(features(groups))
    assert len(set(clips.tolist())) == len(places) == 8 and (np.diff(clips) > 0).all()
    written = maps.write_maps(features(groups), {"class": groups, "speaker": groups}, tmp_path / "new", "title")
    assert [path.name for path in written] == ["map_class.png", "map_speaker.png"]
    assert all(path.stat().st_size > 5000 for path in written)


@pytest.mark.parametrize("clips", [maps.LEAST_CLIPS, 7])
def test_few_clips_have_a_map(clips: int) -> None:
    places = maps.lay_out(features([str(index % 2) for index in range(clips)]))[1]
    assert places.shape == (clips, 2) and np.isfinite(places).all()
