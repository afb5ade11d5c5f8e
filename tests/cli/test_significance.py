from __future__ import annotations

import csv
from pathlib import Path

import pytest

from amae_plugin.cli.main import main

HEADER = ["path", "labels", "predicted", "score"]


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def predictions(right: str) -> list[list[str]]:
    """Rows of clips whose class is predicted where there is a 1."""
    return [[f"{index}.wav", "a", "a" if digit == "1" else "b", "0.9"] for index, digit in enumerate(right)]


def test_two_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first.csv", predictions("1111110000"))
    second = write(tmp_path / "second.csv", predictions("1100001100")[::-1])
    assert main(["significance", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10 clips: both right 2, only the first 4, only the second 2, neither 2"
    assert lines[1] == "accuracy 0.6000 and 0.4000"
    assert lines[2] == "McNemar's exact test: p = 0.688"  # 44 of 64 cases


ROW = ["0.wav", "a", "a", "0.9"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([ROW, ["1.wav", "a", "b", "0.9"]], HEADER, "1 clips are in one of them only, first 1.wav"),
        ([["0.wav", "b", "a", "0.9"]], HEADER, "their labels differ, first of 0.wav"),
        ([["0.wav", "a,b", "a,b", "0.9,0.8"]], HEADER, "line 2: not one predicted class"),
        ([["0.wav", "a", "", ""]], HEADER, "line 2: not one predicted class"),
        ([["0.wav", "a"]], ["path", "labels"], "lacks the columns labels, path, predicted, score"),
        ([], HEADER, "holds no clips"),
    ],
)
def test_what_cannot_be_compared(
    rows: list[list[str]], header: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path / "first.csv", [ROW]), write(tmp_path / "second.csv", rows, header)
    assert main(["significance", str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(second) in error


def test_a_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["significance", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 2
    assert "amae evaluate writes predictions.csv" in capsys.readouterr().err
