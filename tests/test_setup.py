from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import amae_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = distribution("amae-plugin")


def required(python: str, extra: str = "") -> dict[str, Requirement]:
    """What is installed with the package on a Python version."""
    environment = {"python_version": python, "extra": extra}
    requirements = map(Requirement, PACKAGE.requires or ())
    chosen = (r for r in requirements if r.marker is None or r.marker.evaluate(environment))
    return {canonicalize_name(r.name): r for r in chosen}


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_console_command() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("amae"), "--help"], capture_output=True, text=True, check=True
    )
    assert "manifest" in done.stdout and "stats" in done.stdout


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_later_pythons_get_the_fairseq_that_runs_on_them(python: str) -> None:
    assert "fairseq-fixed" in required(python) and "fairseq" not in required(python)


@pytest.mark.parametrize("python", ["3.9", "3.10"])
def test_earlier_pythons_get_the_last_release_of_fairseq(python: str) -> None:
    assert str(required(python)["fairseq"].specifier) == "==0.12.2"
    assert "fairseq-fixed" not in required(python)


def test_everything_that_training_needs_is_installed() -> None:
    needed = {
        "torch",
        "torchaudio",
        "sentencepiece",
        "soundfile",
        "tensorboardx",
        "submitit",
        "hydra-submitit-launcher",
    }
    assert needed <= set(required("3.11"))


def test_extras() -> None:
    assert "av" in required("3.11", "video")
    assert "espeakng-loader" in required("3.11", "demo")
    assert {"mypy", "pytest", "ruff"} <= set(required("3.11", "dev"))


def test_version_is_that_of_the_package() -> None:
    assert PACKAGE.version == amae_plugin.__version__


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "amae_plugin").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_constraints_pin_every_direct_requirement() -> None:
    pinned = {canonicalize_name(constraint.name) for constraint in constraints()}
    for extra in ("", "video", "demo", "dev"):
        assert set(required("3.11", extra)) <= pinned


def test_constraints_hold_for_every_machine() -> None:
    for constraint in constraints():
        # No label of a build (+cpu, +cu130), no path, no address.
        assert re.fullmatch(r"==\d+(\.\d+)*", str(constraint.specifier)) and constraint.url is None
