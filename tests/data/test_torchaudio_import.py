"""A torchaudio that does not fit torch, as its import fails: a package of that name, first on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG_DIR = Path(__file__).parents[2] / "config"
LOADER_ERROR = "libc10_cuda.so: cannot open shared object file: No such file or directory"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    package = tmp_path / "broken" / "torchaudio"
    package.mkdir(parents=True)
    # torchaudio's own error has the loader's as its cause.
    (package / "__init__.py").write_text(
        f"try:\n    raise OSError({LOADER_ERROR!r})\n"
        "except OSError as error:\n    raise OSError('Could not load this library: _torchaudio.abi3.so') from error\n"
    )
    return {**os.environ, "PYTHONPATH": str(package.parent)}


def run(arguments: list[str], environment: dict[str, str], folder: Path) -> tuple[int, list[str]]:
    """Exit code and the lines of the error output."""
    done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr.strip().splitlines()


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_the_command_line_says_how_to_mend_it(environment: dict[str, str], tmp_path: Path) -> None:
    code, errors = run([script("amae"), "stats", "x.tsv"], environment, tmp_path)
    assert code == 2
    (line,) = errors
    assert line.startswith("amae: torchaudio ") and LOADER_ERROR in line
    assert "pip install --force-reinstall" in line


def test_so_does_training(environment: dict[str, str], tmp_path: Path) -> None:
    command = [script("fairseq-hydra-train"), "--config-dir", str(CONFIG_DIR)]
    command += ["--config-name", "pretrain_audio_mae_tiny", f"task.data={tmp_path}"]
    code, errors = run(command, environment, tmp_path)
    assert code != 0
    assert errors[-1].startswith("amae_plugin: torchaudio ") and LOADER_ERROR in errors[-1]
    assert "pip install --force-reinstall" in errors[-1]
    assert not any("Traceback" in line for line in errors)


def test_models_need_no_torchaudio(environment: dict[str, str], tmp_path: Path) -> None:
    code, errors = run(
        [sys.executable, "-c", "import amae_plugin.models.registry as r; r.SYSTEMS"], environment, tmp_path
    )
    assert (code, errors) == (0, [])


def test_as_a_library_it_is_the_users_error(environment: dict[str, str], tmp_path: Path) -> None:
    code, errors = run([sys.executable, "-c", "import amae_plugin.data.audio"], environment, tmp_path)
    assert code == 1
    assert errors[-1].startswith("amae_plugin.errors.UserError: torchaudio ")
    assert not any("OSError" in line for line in errors)
