"""The package without its repository: built, installed into an empty folder, and trained with from another one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BIN, CONFIG_DIR, MICRO, environment

ROOT = CONFIG_DIR.parent
FOLDERS, FILES = ("amae_plugin", "config", "slurm"), ("setup.py", "pyproject.toml", "README.md", "LICENSE")
RECIPE = "pretrain_audio_mae_tiny"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but what the wheel installs, which was built from the sdist alone."""
    folder = tmp_path_factory.mktemp("installed")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    python = [sys.executable, "-c", build]
    subprocess.run([*python, "build_sdist", str(folder)], cwd=folder / "source", capture_output=True, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([*python, "build_wheel", str(folder)], cwd=unpacked, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*install, wheel], check=True)
    return folder / "site"


def run(installed: Path, cwd: Path, *command: str) -> str:
    """Run a command of the installed package in a folder."""
    environ = {**environment(), "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_recipe_is_installed(installed: Path, tmp_path: Path) -> None:
    package = installed / "amae_plugin"
    names = {path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml")}
    assert {path.relative_to(package / "config") for path in (package / "config").rglob("*")} >= names
    assert "site" in run(installed, tmp_path, sys.executable, "-c", "import amae_plugin; print(amae_plugin.__file__)")


def test_the_parts_of_every_page_are_installed(installed: Path) -> None:
    folder = ROOT / "amae_plugin"
    parts = {path.relative_to(folder) for kind in ("css", "jinja", "js") for path in folder.rglob(f"*.{kind}")}
    assert parts and not [part for part in parts if not (installed / "amae_plugin" / part).is_file()]


def test_recipes_are_listed_shown_and_copied_and_train_anywhere(
    installed: Path, labelled: Path, tmp_path: Path
) -> None:
    amae = [sys.executable, "-m", "amae_plugin", "recipes"]
    listed = run(installed, tmp_path, *amae).splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
    assert all(line.endswith(".") for line in listed)  # a whole sentence
    shown = run(installed, tmp_path, *amae, "show", RECIPE, "model.depth=7")
    assert "_name: amae_audio_mae" in shown and "depth: 7" in shown and "???" in shown
    copied = tmp_path / "mine"
    next_command = run(installed, tmp_path, *amae, "copy", str(copied))
    assert f"--config-dir {copied}" in next_command and "task.mean=auto task.std=auto" in next_command
    assert {path.relative_to(copied) for path in copied.rglob("*.yaml")} == {
        path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml")
    }
    train = [str(BIN / "fairseq-hydra-train"), "--config-dir", str(copied), "--config-name", RECIPE]
    output = run(installed, tmp_path, *train, f"task.data={labelled}", *MICRO[RECIPE], "optimization.max_update=4")
    assert (tmp_path / "outputs" / RECIPE / "checkpoints" / "checkpoint_last.pt").is_file()
    assert '"num_updates": "4"' in output
