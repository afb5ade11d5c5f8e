"""Tar and zip archives of audio: what is listed of them, with which labels, and what is said of the rest."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.main import main
from amae_plugin.corpora.archives import Archive
from amae_plugin.data.audio import load_clip
from amae_plugin.data.labels import Labels, read_names
from amae_plugin.data.manifest import Clip, Manifest

Content = Mapping[str, bytes]


def sound(number: int = 0, kind: str = "flac", samples: int = 800) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(number).normal(0, 0.1, samples), 16_000, format=kind)
    return file.getvalue()


def write_tar(path: Path, content: Content, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, content: Content, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "a", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def shards(folder: Path, out: Path, *options: str) -> int:
    return main(["manifest", "shards", str(folder), "--out", str(out), "--valid-fraction", "0", *options])


def clips(out: Path, split: str = "train") -> list[Clip]:
    manifest = Manifest.read(out / f"{split}.tsv")
    return [manifest[index] for index in range(len(manifest))]


def labels(out: Path, split: str = "train") -> list[tuple[str, ...]]:
    found = Labels.read(out / f"{split}.lbl", out / "labels.txt", len(clips(out, split)), multi=True)
    return [tuple(found.names[label] for label in found[clip]) for clip in range(len(found))]


LONG = "a/" * 120 + "ñ" * 90  # needs the extensions of either form


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("kind", ["flac", "wav", "ogg"])
def test_every_clip_of_a_tar_is_the_file_that_was_packed(tmp_path: Path, form: int, kind: str) -> None:
    content = {f"{name}.{kind}": sound(number, kind, 400 + number) for number, name in enumerate(["a", "b/b", LONG])}
    write_tar(tmp_path / "in" / "x.tar", {"readme.md": b"x", **content}, form)
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    found = clips(tmp_path / "out")
    assert Manifest.read(tmp_path / "out" / "train.tsv").sizes.tolist() == [400, 401, 402]
    for clip, data in zip(found, content.values(), strict=True):
        (tmp_path / f"whole.{kind}").write_bytes(data)
        assert clip.kind == "tar"
        assert torch.equal(load_clip(clip), load_clip(Clip(str(tmp_path / f"whole.{kind}"))))


def test_what_cannot_be_read_in_place_is_listed_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    path = write_tar(folder / "x.tar", {"good.flac": sound(), "bad.wav": b"noise" * 40, "twice.wav": b"old"})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("hard.flac", tarfile.LNKTYPE), ("soft.flac", tarfile.SYMTYPE), ("pipe.wav", b"6")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "good.flac"
            archive.addfile(member)
        sparse = tarfile.TarInfo("holes.wav")
        sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
        sparse.size = 1
        archive.addfile(sparse, io.BytesIO(b"x"))
        for name in ("twice.wav", "._good.flac", "__MACOSX/good.flac"):
            member = tarfile.TarInfo(name)
            member.size = len(data := sound(2, "wav"))
            archive.addfile(member, io.BytesIO(data))
    write_zip(folder / "y.zip", {"deflated.wav": sound(3, "wav")}, zipfile.ZIP_DEFLATED)
    write_zip(folder / "y.zip", {"stored.wav": sound(4, "wav")})
    with zipfile.ZipFile(folder / "y.zip", "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), sound(5, "wav"))  # which can only be ignored
    with tarfile.open(folder / "z.tar.gz", "w:gz") as archive:
        archive.add(path, "a.wav")
    (folder / "renamed.tar").write_bytes((folder / "z.tar.gz").read_bytes())
    assert shards(folder, tmp_path / "out") == 0
    assert [Path(clip.path).name for clip in clips(tmp_path / "out")] == ["x.tar", "x.tar", "y.zip"]
    report = (tmp_path / "out" / "unreadable.tsv").read_text().splitlines()
    reasons = dict(line.split("\t") for line in report)
    expected = {
        "x.tar/bad.wav": "not a format",
        "x.tar/hard.flac": "is a link to good.flac",
        "x.tar/soft.flac": "is a link to good.flac",
        "x.tar/pipe.wav": "not a regular file",
        "x.tar/holes.wav": "holes",
        "x.tar/twice.wav": "replaced by a later member",
        "y.zip/deflated.wav": "is compressed",
        "z.tar.gz": "compressed as a whole",
        "renamed.tar": "compressed as a whole",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_hidden_members_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "in" / "x.tar", {"./a.flac": sound(), "./._a.flac": b"fork", "__MACOSX/b.flac": b"fork"})
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert len(clips(tmp_path / "out")) == 1
    assert "left out: 2: x.tar/./._a.flac, x.tar/__MACOSX/b.flac" in capsys.readouterr().err


def cut(data: bytes) -> bytes:
    return data[:4_000]


def flip(data: bytes) -> bytes:
    place = data.rindex(b"PK\3\4") if data.startswith(b"PK") else data.index(b"b.flac")  # a checksum covers the name
    return data[:place] + b"c" + data[place + 1 :]


DAMAGES = {
    "cut within a member": cut,
    "a damaged header": flip,
    "not an archive": lambda data: b"audio" * 1000,
    "empty": lambda data: b"",
    "joined": lambda data: data + data,
}


# A zip may follow on anything.
@pytest.mark.parametrize(("damage", "extension"), sorted({*product(DAMAGES, ("tar", "zip"))} - {("joined", "zip")}))
def test_a_damaged_archive_is_named_and_left_out_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, extension: str
) -> None:
    content = {f"{name}.flac": sound(number, samples=4_000) for number, name in enumerate("abc")}
    (tmp_path / "in").mkdir()
    write = write_tar if extension == "tar" else write_zip
    good = write(tmp_path / "in" / f"good.{extension}", content)
    bad = write(tmp_path / "in" / f"bad.{extension}", content)
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert f"warning: {bad.name}: " in capsys.readouterr().err
    assert [clip.path for clip in clips(tmp_path / "out")] == [str(good)] * 3
    assert (tmp_path / "out" / "unreadable.tsv").read_text().startswith(f"{bad.name}\t")
    good.unlink()
    assert shards(tmp_path / "in", tmp_path / "other") == 2
    assert f"{bad.name}: " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_tar_without_its_end_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "in" / "x.tar", {"a.flac": sound()})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512])
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert "x.tar: ends without the mark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beside", "options", "classes", "expected"),
    [
        ({"a.cls": b"10\n", "b.cls": b"9", "c.cls": b"10"}, (), ["9", "10"], [("10",), ("9",), ("10",)]),
        (
            {"a.cls": b"dog", "b.cls": b"cat,dog", "c.cls": b"cat"},
            (),
            ["cat", "dog"],
            [("dog",), ("cat", "dog"), ("cat",)],
        ),
        (
            {"a.json": b'["/m/1", "/m/2"]', "b.json": b'"/m/2"', "c.json": b'{"labels": ["/m/1"]}'},
            (),
            ["/m/1", "/m/2"],
            [("/m/1", "/m/2"), ("/m/2",), ("/m/1",)],
        ),
        (
            {
                name: json.dumps({"label": 1, "tags": [name[0], "x"]}).encode()
                for name in ("a.json", "b.json", "c.json")
            },
            ("--field", "tags"),
            ["a", "b", "c", "x"],
            [("a", "x"), ("b", "x"), ("c", "x")],
        ),
        (
            {"a.txt": b"dog", "b.txt": b"cat", "c.txt": b"dog\n"},
            ("--labels", "txt"),
            ["cat", "dog"],
            [("dog",), ("cat",), ("dog",)],
        ),
        ({"a.txt": b"A caption.", "b.json": b'{"artist": "x"}'}, (), None, None),
        ({"a.cls": b"1"}, ("--labels", "none"), None, None),
    ],
    ids=["cls numbers", "cls names", "json", "json field", "txt", "captions", "none"],
)
def test_labels_are_those_of_the_members_of_one_name(
    tmp_path: Path,
    beside: Content,
    options: tuple[str, ...],
    classes: list[str] | None,
    expected: list[tuple[str, ...]] | None,
) -> None:
    audio = {f"{name}.flac": sound(number) for number, name in enumerate("abc")}
    write_tar(tmp_path / "in" / "x.tar", {**audio, **beside})
    assert shards(tmp_path / "in", tmp_path / "out", *options) == 0
    assert len(clips(tmp_path / "out")) == 3
    if expected is None or classes is None:
        assert not (tmp_path / "out" / "labels.txt").exists()
    else:
        assert list(read_names(tmp_path / "out" / "labels.txt")) == classes
        assert labels(tmp_path / "out") == expected


def test_a_key_ends_at_the_last_dot_or_the_first(tmp_path: Path) -> None:
    content = {"d.x/1.left.flac": sound(), "d.x/1.cls": b"a", "d.x/2.0.flac": sound(1), "d.x/2.0.CLS": b"b"}
    write_tar(tmp_path / "in" / "x.tar", content)
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert labels(tmp_path / "out") == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no .json of the same name"),
        (b"{", "cannot be read"),
        (b"[]", "is empty"),
        (b"[1.5]", "whole numbers"),
        (b"{}", "no field"),
    ],
)
def test_a_clip_without_a_label_among_others_is_listed(tmp_path: Path, content: bytes | None, reason: str) -> None:
    beside = {"a.json": b'{"label": "x"}', **({} if content is None else {"b.json": content})}
    write_tar(tmp_path / "in" / "x.tar", {"a.flac": sound(), "b.flac": sound(1), **beside})
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert labels(tmp_path / "out") == [("x",)]
    report = (tmp_path / "out" / "unreadable.tsv").read_text()
    assert report.startswith("x.tar/b.flac\thas no label: ") and reason in report


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00.tar", "train-01.tar", "validation-00.tar", "test-00.tar"], {"train": 8, "valid": 4, "test": 4}),
        (["bal_train00.tar", "eval00.tar"], {"train": 4, "test": 4}),
        (["training/0.tar", "dev/0.zip"], {"train": 4, "valid": 4}),
        (["contest-latest.tar"], {"train": 4}),
    ],
)
def test_the_names_of_archives_tell_the_splits(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write = write_zip if name.endswith("zip") else write_tar
        write(tmp_path / "in" / name, {f"{number}.flac": sound(number) for number in range(4)})
    assert shards(tmp_path / "in", tmp_path / "out") == 0
    assert {path.stem: len(clips(tmp_path / "out", path.stem)) for path in (tmp_path / "out").glob("*.tsv")} == splits


def test_what_is_held_out_is_drawn_from_each_class_and_stays_in_order(tmp_path: Path) -> None:
    content = {}
    for number in range(20):
        content |= {f"{number}.flac": sound(number), f"{number}.cls": str(number % 2).encode()}
    write_tar(tmp_path / "in" / "x.tar", content)
    assert shards(tmp_path / "in", tmp_path / "out", "--valid-fraction", "0.2", "--test-fraction", "0.1") == 0
    for split, count in (("train", 7), ("valid", 2), ("test", 1)):
        assert sorted(labels(tmp_path / "out", split)) == [("0",)] * count + [("1",)] * count
        starts = [clip.start for clip in clips(tmp_path / "out", split)]
        assert starts == sorted(starts)


def test_a_label_that_cannot_be_a_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "in" / "x.tar", {"a.flac": sound(), "a.json": b'["Horn, honking"]'})
    assert shards(tmp_path / "in", tmp_path / "out") == 2
    assert f"{tmp_path}/in/x.tar/a.json: 'Horn, honking' cannot be a class" in capsys.readouterr().err


def test_a_folder_without_archives_or_without_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert shards(tmp_path / "in", tmp_path / "out") == 2
    assert "no archives" in capsys.readouterr().err
    with tarfile.open(tmp_path / "in" / "x.tar.gz", "w:gz"):
        pass
    assert shards(tmp_path / "in", tmp_path / "out") == 2
    assert "x.tar.gz: is compressed as a whole" in capsys.readouterr().err


def test_a_large_tar_is_listed_by_its_headers_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    size = 1 << 33
    member = tarfile.TarInfo("a.wav")
    member.size = size
    with path.open("wb") as file:
        file.seek(file.write(member.tobuf()) + size)
        file.write(bytes(1024))  # the rest is a hole
    tracemalloc.start()
    try:
        archive = Archive.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(each.name, each.length) for each in archive.members] == [("a.wav", size)]
    assert peak < 1 << 22
