"""Paths that lead nowhere: every command names them in one line."""

from pathlib import Path

import pytest

from amae_plugin.cli.main import main

COMMANDS = (
    "average {path} --out {folder}/out.pt",
    "average {path} --last 2 --out {folder}/out.pt",
    "convert {path} {folder}/out.pt",
    "embed {path} {path} --out {folder}/out.npz",
    "evaluate {path} --data {path}",
    "export {path} {folder}/out",
    "inspect {path}",
    "pack {path} --out {folder}/out",
    "predict {path} {path}",
    "probe {path} --data {path}",
    "reconstruct {path} {path} --out {folder}/out",
    "results {path}",
    "retrieve {path} --data {path}",
    "significance {path} {path}",
    "stats {path}",
    "transcribe {path} {path}",
    "weights {path}",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_no_file_can_have(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("x" * 300)
    try:
        code = main(command.format(path=path, folder=tmp_path).split())
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("usage"))
    assert str(path) in line
