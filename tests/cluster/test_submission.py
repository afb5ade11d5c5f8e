from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import amae_plugin
from amae_plugin.cli.main import main
from amae_plugin.cluster.snapshot import Snapshot
from amae_plugin.cluster.submission import Resources
from amae_plugin.errors import UserError


def test_snapshot_holds_the_package_and_the_recipes_as_they_were(tmp_path: Path) -> None:
    recipes = tmp_path / "config"
    recipes.mkdir()
    (recipes / "recipe.yaml").write_text("as submitted")
    first = Snapshot.take(tmp_path / "run", recipes)
    (recipes / "recipe.yaml").write_text("changed since")
    second = Snapshot.take(tmp_path / "run", recipes)
    assert first.config is not None and second.config is not None
    assert (first.config / "recipe.yaml").read_text() == "as submitted"
    assert (second.config / "recipe.yaml").read_text() == "changed since"
    package = Path(amae_plugin.__file__).parent
    copied = first.code / "amae_plugin"
    files = (path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    sources = sorted(path.relative_to(package) for path in files)
    assert sorted(path.relative_to(copied) for path in copied.rglob("*") if path.is_file()) == sources
    assert all((copied / path).read_bytes() == (package / path).read_bytes() for path in sources)


def test_layout_that_is_neither_is_refused() -> None:
    settings: dict[str, Any] = {field.name: None for field in fields(Resources)}
    with pytest.raises(UserError, match=r"tasks_per_node=4: must be 1 .* or hydra\.launcher\.devices_per_node=8"):
        Resources(**{**settings, "devices_per_node": 8, "tasks_per_node": 4})


@pytest.mark.parametrize("action", ["status", "logs", "cancel"])
def test_folder_without_jobs(tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", action, str(tmp_path)]) == 2
    assert f"{tmp_path}: no job was submitted for this folder" in capsys.readouterr().err


def test_submitting_without_saying_what_to_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "--config-name", "pretrain_audio_mae_tiny", "task.data=data"]) == 2
    assert "run_config=slurm_1x8" in capsys.readouterr().err
