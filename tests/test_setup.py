from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
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
    names -= {"yaml", "mteb"}  # OmegaConf's requirement, and a client, which is there when it calls
    owners = packages_distributions()
    assert {name for name in names if canonicalize_name(owners[name][0]) not in REQUIRED} == set()


def test_constraints_pin_every_direct_requirement() -> None:
    assert {canonicalize_name(constraint.name) for constraint in CONSTRAINTS} >= REQUIRED


def test_constraints_hold_for_every_machine() -> None:
    for constraint in CONSTRAINTS:
        # No label of a build (+cpu, +cu130), no path, no address.
        assert re.fullmatch(r"==\d+(\.\d+)*", str(constraint.specifier)) and constraint.url is None
