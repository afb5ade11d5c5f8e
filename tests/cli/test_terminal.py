"""What commands print: names from files are shown and not obeyed, and progress bars still move."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tqdm import tqdm

from amae_plugin import progress
from amae_plugin.cli.main import COMMANDS, main
from amae_plugin.cli.terminal import ShownText, shown

PACKAGE = Path(__file__).parents[2] / "amae_plugin"
SCREEN = "\x1b[2J\x07clip.wav"  # clears the screen and rings


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # the name may not be UTF-8
        soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 12_000), 16_000, format="WAV")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("as it is: é 日本\n\tx", "as it is: é 日本\n\tx"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("caf\udce9 \u202egpj", r"caf\xe9 \u202egpj"),
        ("a\rb", r"a\rb"),
        ("a\x1b[A\x1b[A", r"a\x1b[A\x1b[A"),
    ],
)
def test_texts_are_shown(text: str, written: str) -> None:
    stream = io.StringIO()
    assert ShownText(stream).write(text) == len(written)
    ShownText(stream).writelines([text])
    assert stream.getvalue() == 2 * written


def test_an_encoding_that_lacks_a_character_is_no_error() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("Übung 日", file=ShownText(stream), flush=True)
    assert stream.buffer.getvalue() == rb"\xdcbung \u65e5" + b"\n"  # type: ignore[attr-defined]


def test_progress_bars_move_as_they_do_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    def bars() -> str:
        fixed = {"bar_format": "{desc}{n}", "mininterval": 0, "ncols": 20}
        with tqdm(total=2, desc="one", **fixed) as first, tqdm(total=2, desc="two", position=1, **fixed) as second:
            for bar in (first, second):
                bar.update()
        return capsys.readouterr().err

    plain = bars()
    with shown():
        through = bars()
    assert "\x1b[A" in plain and "\r" in plain
    assert through == plain


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_gets_bars(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    assert list(progress.tqdm(range(3), file=stream)) == [0, 1, 2]
    assert bool(stream.getvalue()) == terminal
    assert not list(progress.tqdm(range(0), file=stream, disable=True))


def test_few_values_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHARE", 4)
    begun: list[int] = []

    def square(value: int) -> int:
        begun.append(value)
        return value**2

    pairs = progress.map_in_threads(square, range(10), workers=2)
    assert next(pairs) == (0, 0)
    assert len(begun) <= 4
    assert list(pairs) == [(value, value**2) for value in range(1, 10)]
    assert sorted(begun) == list(range(10))
    assert not list(progress.map_in_threads(square, []))


def test_every_bar_is_one_of_these() -> None:
    package = Path(progress.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "from tqdm" in path.read_text()] == ["progress.py"]


def test_names_of_clips(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    for name in (SCREEN, "caf\udce9.wav", "line\nbreak.wav"):
        sound(folder / name)
    (folder / f"bad{SCREEN}").write_bytes(b"broken" * 50)
    checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", ["=1+1", "\x1b[31mred"])
    arguments = ["predict", str(checkpoint), str(folder), "--workers", "0", "--top-k", "2"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    named = {line.partition(".wav: ")[0].rpartition("/")[2] for line in out.splitlines()}
    assert named == {r"\x1b[2J\x07clip", r"caf\xe9", r"line\nbreak"}
    assert r"\x1b[31mred" in out
    assert r"bad\x1b[2J\x07clip.wav: " in err
    assert "\x1b[2J" not in out + err and "\x07" not in out + err

    assert main([*arguments, "--out", str(tmp_path / "labels.csv")]) == 1
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[0] == "path" and {Path(row[0]).name for row in rows} == {f"{name}.wav" for name in named}
    assert {row[1] for row in rows} | {row[3] for row in rows} == {"'=1+1", r"\x1b[31mred"}


def test_a_class_of_no_utf8_in_a_terminal_that_takes_nothing_else(tmp_path: Path) -> None:
    sound(tmp_path / "tree" / "caf\udce9" / "1.wav")
    command = [sys.executable, "-m", "amae_plugin.cli.main", "manifest", "folder", str(tmp_path / "tree"), "--labels"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert rb"caf\xe9: 'caf\xe9' cannot be a class: its name is not UTF-8; rename it" in done.stderr
    assert not (tmp_path / "out").exists()


WITH_WORKERS = {
    "benchmark": [],
    "embed": ["model.pt", "clips", "--out", "x.npz"],
    "evaluate": ["model.pt", "--data", "manifests"],
    "manifest": ["folder", "clips", "--out", "manifests"],
    "predict": ["model.pt", "clips"],
    "probe": ["model.pt", "--data", "manifests"],
    "reconstruct": ["model.pt", "clips", "--out", "page"],
    "pack": ["manifests", "--out", "packed"],
    "retrieve": ["model.pt", "--data", "manifests"],
    "stats": ["manifests"],
    "transcribe": ["model.pt", "clips"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_of_workers_below_0_is_refused_by_every_command_that_has_them(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = WITH_WORKERS.get(command)
    if arguments is None:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--workers" not in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as stop:
        main([command, *arguments, "--workers", "-1"])
    assert stop.value.code == 2
    assert "argument --workers: must be 0 or more, not -1" in capsys.readouterr().err
