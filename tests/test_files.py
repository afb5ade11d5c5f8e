from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amae_plugin.errors import UserError, printable
from amae_plugin.files import (
    open_regular,
    reading,
    remove_partial_files,
    replacing,
    try_file,
    try_folder,
    try_place,
    write_csv,
    write_json,
    writing,
)


def test_a_replaced_file_is_what_it_was_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        partial.write_text("new")
    assert path.read_text() == "new"
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), replacing(path) as partial:
            partial.write_text("half")
            raise error
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_is_tried_without_touching_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.txt"
    try_place(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    try_place(path)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    for wrong in (path.parent, path / "y.txt", Path("/dev/null"), Path("/proc/x.txt")):
        with pytest.raises(OSError):
            try_place(wrong)


def test_pipes_devices_and_sockets_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "link", Path("/dev/zero")):
        with (
            pytest.raises(UserError, match=f"^{path}: cannot read the labels .not a regular file.$"),
            reading(path, "the labels"),
        ):
            path.read_text()
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "other").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "other") as file:
        assert file.read() == b"content"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = "import os, sys\nfrom amae_plugin.files import replacing\n"
    code += "with replacing(sys.argv[1]) as partial:\n    partial.touch()\n    os.kill(os.getpid(), 9)"
    for name in ("x.pt", "x.txt"):
        assert subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial_files(tmp_path, "*.pt")
    assert [path.name.split(".")[1:3] for path in tmp_path.iterdir()] == [["x", "txt"]]


def test_errors_name_the_path_the_reason_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.txt"
    with pytest.raises(UserError) as error, reading(path, "the list", "make one"):
        path.read_text()
    assert str(error.value) == f"{path}: cannot read the list (No such file or directory); make one"
    with pytest.raises(UserError) as error, writing(path):
        write_json(path, {})
    assert str(error.value) == f"{path}: cannot write there (No such file or directory)"
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8 text"), reading(tmp_path / "x.txt"):
        (tmp_path / "x.txt").read_text(encoding="utf-8")


def test_a_full_disk_is_the_reason_and_not_the_error_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with (
        pytest.raises(UserError, match=r"cannot write the checkpoint \(No space left on device\)$"),
        writing(path, "the checkpoint"),
        replacing(path) as partial,
    ):
        partial.symlink_to("/dev/full")
        with partial.open("wb") as file:
            torch.save({"weights": torch.zeros(10**6)}, file)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog.wav", "dog.wav"),
        ("Übung 日本 🐕", "Übung 日本 🐕"),
        ("a\x1b[2J\x07\r\n\t.wav", r"a\x1b[2J\x07\r\n\t.wav"),
        ("c1\x9b31m", r"c1\x9b31m"),
        ("gpj\u202evaw\u2028\u200b", r"gpj\u202evaw\u2028\u200b"),
        ("caf\udce9", r"caf\xe9"),
    ],
)
def test_names_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(UserError(text)) == shown.replace(r"\n", "\n")  # a message may have several lines


def test_cells_are_texts_in_a_spreadsheet_and_harmless_in_a_terminal(tmp_path: Path) -> None:
    harmless = ["a", "-0RWZT-miFs.wav", "--PJHxphWEs.wav", "-1.5e-07", "-3", "+2.5", "1e+05", "", "a=b", "Übung"]
    formulas = ["=1+1", "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "-SUM(A1)", "\uff1dA1", "=a,b"]
    write_csv(tmp_path / "x.csv", [harmless, formulas, ["\x1b[2J", "caf\udce9", "\t=1", 7, 0.5]])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        first, second, third = csv.reader(file)
    assert first == harmless
    assert second == [f"'{formula}" for formula in formulas]
    assert third == [r"\x1b[2J", r"caf\xe9", r"\t=1", "7", "0.5"]


def test_places_are_tried_before_the_work_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "new" / "folder"):
        try_folder(place)
    try_file(tmp_path / "new.json")
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match=f"{place}: cannot write the page"):
            try_folder(place, "the page")
    refused = {tmp_path / "none" / "x.json": "No such file.*; make the folder first", tmp_path: "Is a directory"}
    for path, reason in refused.items():
        with pytest.raises(UserError, match=rf"{path}: cannot write there \({reason}"):
            try_file(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_texts_and_tables_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("a,b\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"x\.csv: not UTF-8 text but UTF-16.*; save it as UTF-8$"), reading(path):
        path.read_text(encoding="utf-8")
    path.write_text("a" * 200_000)
    with pytest.raises(UserError, match=r"x\.csv: not a table in CSV"), reading(path), path.open() as file:
        list(csv.reader(file))


def test_json_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2.5, None]}
