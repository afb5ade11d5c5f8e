from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import amae_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = distribution("amae-plugin")
REQUIRED = {canonicalize_name(Requirement(line).name) for line in PACKAGE.requires or ()}
CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1].isalpha()]


def test_console_command() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("amae"), "--help"], capture_output=True, text=True, check=True
    )
    assert "manifest" in done.stdout and "stats" in done.stdout


def test_version_is_that_of_the_package() -> None:
    assert PACKAGE.version == amae_plugin.__version__


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "amae_plugin").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_import_is_of_a_requirement() -> None:
    names = set()
    for path in (*ROOT.glob("amae_plugin/**/*.py"), *ROOT.glob("slurm/hydra_plugins/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, "amae_plugin", "hydra_plugins"}
    # OmegaConf's requirement, PyTorch's where there are GPUs, and a client, which is there when it calls.
    names -= {"yaml", "triton", "mteb"}
    owners = packages_distributions()
    assert {name for name in names if canonicalize_name(owners[name][0]) not in REQUIRED} == set()


def test_constraints_pin_every_direct_requirement() -> None:
    assert {canonicalize_name(constraint.name) for constraint in CONSTRAINTS} >= REQUIRED


def test_constraints_hold_for_every_machine() -> None:
    for constraint in CONSTRAINTS:
        # No label of a build (+cpu, +cu130), no path, no address.
        assert re.fullmatch(r"==\d+(\.\d+)*", str(constraint.specifier)) and constraint.url is None


def make_setup(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """`make setup` in a folder of its own, where CUDA is installed; its pip only writes down how it was called."""
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    pip = folder / ".venv" / "bin" / "python"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho "$CUDA_HOME $*" >> calls\n')
    pip.chmod(0o755)
    command = ["make", "setup", f"PYTHON={python}", "CONSTRAINTS=constraints.txt"]
    environment = {**os.environ, "CUDA_HOME": "/usr/local/cuda"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_setup_compiles_without_cuda_and_with_tools_that_are_there(tmp_path: Path) -> None:
    assert make_setup(tmp_path, sys.executable).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [re.sub(r"-c \S+ .*", "", call) for call in calls] == [" -m pip install --disable-pip-version-check "] * 2
    tools = set(calls[0].partition("constraints.txt ")[2].split())
    assert {"torch", "numpy", "cython", "setuptools", "wheel", "pdm-backend"} <= tools  # fairseq's and editdistance's
    assert tools <= {canonicalize_name(constraint.name) for constraint in CONSTRAINTS}
    assert calls[1].endswith(" --no-build-isolation -e .[demo,dev]")


@pytest.mark.parametrize("version", ["3.10.19", "3.11.0", "3.12.3", "3.13.5", "3.14.0"])
def test_setup_takes_the_pythons_of_the_package_and_names_them(version: str, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    parts = (*map(int, version.split(".")), "final", 0)
    pretend = f"import sys; sys.version, sys.version_info = '{version} (main)', {parts}"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}; $2"\n')
    python.chmod(0o755)
    done = make_setup(tmp_path, str(python))
    if version in SpecifierSet(PACKAGE.metadata["Requires-Python"]):
        assert done.returncode == 0
    else:
        said = f"{python} is Python {version}, and 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11\n"
        assert done.returncode and said in done.stderr and not (tmp_path / "calls").exists()
