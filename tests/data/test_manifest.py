import gc
import os
import pickle
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.data.manifest import Clip, Manifest, Picture, write_manifest
from amae_plugin.errors import UserError

NAME = (
    st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
    .filter(lambda name: name.strip())
    .filter(lambda name: not name.startswith("/") and ".." not in name.split("/"))
)
SIZE = st.integers(0, 10**18 - 1)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "train.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(NAME, SIZE), max_size=12))
def test_what_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder / "train.tsv", folder, rows)
    manifest = Manifest.read(folder / "train.tsv")
    assert manifest.root == str(folder)
    assert [(manifest.name(i), int(manifest.sizes[i])) for i in range(len(manifest))] == rows
    assert manifest.sizes.dtype == np.int64


@settings(max_examples=60)
@given(
    stem=NAME,
    start=st.integers(0, 2**40),
    length=st.integers(0, 2**40),
    extension=st.sampled_from(["zip", "tar", "TAR", "wav", "tar.gz", "guitar"]),
)
def test_members_of_archives_and_segments_with_colons_in_the_path(tmp_path_factory, stem, start, length, extension):
    folder = tmp_path_factory.mktemp("manifest")
    path = f"{stem}.{extension}"
    kind = extension.lower() if extension.lower() in ("zip", "tar") else "segment"
    write_manifest(folder / "train.tsv", folder, [(f"{path}:{start}:{length}", 5)])
    clip = Manifest.read(folder / "train.tsv")[0]
    assert clip == Clip(f"{folder}/{path}", kind, start, length)
    assert str(clip) == f"{folder}/{path}:{start}:{length}"


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(NAME, SIZE, NAME), min_size=1, max_size=12))
def test_pictures_that_are_written_are_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder / "train.tsv", folder, rows)
    manifest = pickle.loads(pickle.dumps(Manifest.read(folder / "train.tsv")))
    assert manifest.has_pictures
    found = [(manifest.name(i), int(manifest.sizes[i]), manifest.picture_name(i)) for i in range(len(manifest))]
    assert found == rows


def test_pictures_pieces_of_videos_and_manifests_without(tmp_path, write):
    manifest = Manifest.read(write(f"{tmp_path}\na.wav\t7\ta b/p:1.png\r\nb.wav\t8\tv.mp4:1500:10000\r\n"))
    assert [manifest.picture(i) for i in (0, 1)] == [
        Picture(f"{tmp_path}/a b/p:1.png"),
        Picture(f"{tmp_path}/v.mp4", 1.5, 10.0),
    ]
    assert (manifest[1], manifest.sizes.tolist()) == (Clip(f"{tmp_path}/b.wav"), [7, 8])
    plain = Manifest.read(write(f"{tmp_path}\na.wav\t7\n"))
    assert not plain.has_pictures and not Manifest.read(write(str(tmp_path))).has_pictures
    with pytest.raises(UserError, match=r"train\.tsv: lists no pictures; `amae manifest videos`"):
        plain.picture(0)
    with pytest.raises(UserError, match="blank or holds a tab"):
        write_manifest(tmp_path / "x.tsv", tmp_path, [("a.wav", 1, "p\t.png")])


def test_whole_files_absolute_paths_and_bytes_that_are_not_utf8(tmp_path, write):
    path = write(f"{tmp_path}\na b/c:d.wav\t7\n/else/x:1.wav\t8\n".encode() + b"caf\xe9.wav\t9\n")
    manifest = Manifest.read(path)
    assert manifest[0] == Clip(f"{tmp_path}/a b/c:d.wav")
    assert manifest[1] == Clip("/else/x:1.wav")
    assert os.fsencode(manifest[2].path).endswith(b"caf\xe9.wav")
    assert manifest[-1] == manifest[2]
    write_manifest(tmp_path / "again.tsv", tmp_path, [(manifest.name(2), 9)])
    assert Manifest.read(tmp_path / "again.tsv")[0] == manifest[2]
    with pytest.raises(IndexError):
        manifest[3]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "\r\n\r\n", "\n  \n"])
def test_windows_line_ends_and_blank_lines_at_the_end(tmp_path, write, end):
    newline = "\r\n" if "\r" in end else "\n"
    manifest = Manifest.read(write("\ufeff" + newline.join([str(tmp_path), "a.wav\t10", "b.wav\t20"]) + end))
    assert (manifest.root, manifest.sizes.tolist(), manifest.name(1)) == (str(tmp_path), [10, 20], "b.wav")


def test_only_a_root_is_an_empty_manifest(tmp_path, write):
    manifest = Manifest.read(write(str(tmp_path)))
    assert len(manifest) == 0
    with pytest.raises(UserError, match=r"train\.tsv: holds no clips"):
        manifest.require_clips()


def test_relative_root_is_taken_from_the_manifests_own_folder(tmp_path, write, monkeypatch):
    (tmp_path / "wav").mkdir()
    path = write("wav\na.wav\t1\n")
    monkeypatch.chdir("/")
    assert Manifest.read(path)[0].path == str(tmp_path / "wav" / "a.wav")


@pytest.mark.parametrize(
    ("lines", "line", "hint"),
    [
        ("{root}\na.wav\t1\nb.wav\n", 3, "tab"),
        ("{root}\na.wav 1\n", 2, "tab"),
        ("{root}\na.wav\t1\t2\nb.wav\n", 2, "tab"),
        ("{root}\n\t1\n", 2, "path"),
        ("{root}\na.wav\t1\n\nb.wav\t2\n", 3, "tab"),
        ("{root}\na.wav\t1\nb.wav\t1.5\n", 3, "1.5"),
        ("{root}\na.wav\t-3\n", 2, "-3"),
        ("{root}\na.wav\t\n", 2, "whole number"),
        ("{root}\na.wav\t99999999999999999999\n", 2, "whole number"),
        ("{root}\na.wav\t1\n../b.wav\t1\n", 3, "out of the root"),
        ("{root}\nok../a.wav\t1\na/../../b.zip:0:4\t1\n", 3, "out of the root"),
        ("{root}\na/../..:0:4\t1\n", 2, "out of the root"),
        ("{root}\na.wav\t1\n{root}/../b.zip:0:4\t1\n", 3, "absolute and turns back"),
        ("{root}\na.wav\t1\nb.wav\0.txt\t1\n", 3, "NUL"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t2\nc.wav\t3\tc.png\nd.wav\t4\td.png\n", 3, "number and a picture"),
        ("{root}\na.wav\t1\nb.wav\t2\tb.png\nc.wav\t3\n", 3, "one path, one tab.*in all lines or none"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t2\t\n", 3, "a number and a picture"),
        ("{root}\na.wav\t1\ta.png\n\t2\tb.png\n", 3, "a number and a picture"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t\tb.png\n", 3, "whole number"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t1.5\tb.png\n", 3, "1.5"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t1\t../b.png\n", 3, "out of the root"),
        ("{root}\na.wav\t1\ta.png\n../b.wav\t1\tb.png\n", 3, "out of the root"),
        ("{root}\na.wav\t1\ta.png\nb.wav\t1\tb\0.png\n", 3, "NUL"),
        ("\na.wav\t1\n", 1, "root"),
        ("a.wav\t1\nb.wav\t1\n", 1, "root"),
        ("{root}/missing\na.wav\t1\n", 1, "does not exist"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, write, lines, line, hint):
    path = write(lines.format(root=tmp_path))
    with pytest.raises(UserError, match=hint) as error:
        Manifest.read(path)
    assert f"{path}, line {line}: " in str(error.value)


@pytest.mark.parametrize(
    ("line", "hint"),
    [("clip.wav", "one tab"), ("clip.wav\t-1", "'-1' samples"), ("../clip.wav\t1", "leads out"), ("a\0b\t1", "NUL")],
)
def test_of_many_bad_lines_a_few_are_named_and_all_are_counted(tmp_path, write, line, hint):
    path = write(f"{tmp_path}\nfine.wav\t1\n" + f"{line}\nfine.wav\t1\n" * 10)
    with pytest.raises(UserError, match=hint) as error:
        Manifest.read(path)
    first, *others = str(error.value).split("\n")
    assert first.startswith(f"{path}, line 3: ")
    assert [other.split(":")[0] for other in others[:-1]] == [f"  line {number}" for number in (5, 7, 9, 11)]
    assert others[-1] == "  10 bad lines in all"


@pytest.mark.parametrize(
    ("encoding", "newline", "hint"),
    [
        ("utf-16", "\n", "not UTF-8 text but UTF-16"),
        ("utf-16-le", "\r\n", "not UTF-8 text but UTF-16"),
        ("utf-16-be", "\n", "not UTF-8 text but UTF-16"),
        ("utf-8", "\r", "its lines end in a carriage return alone"),
        ("utf-8-sig", "\r", "its lines end in a carriage return alone"),
    ],
)
def test_texts_of_other_systems_are_named_for_what_they_are(tmp_path, write, encoding, newline, hint):
    path = write(newline.join([str(tmp_path), "a.wav\t10", "b.wav\t20", ""]).encode(encoding))
    with pytest.raises(UserError, match=hint) as error:
        Manifest.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_missing_and_empty_files(tmp_path, write):
    with pytest.raises(UserError, match=r"none\.tsv.*amae manifest"):
        Manifest.read(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="root folder"):
        Manifest.read(write(""))


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "train.tsv"
    write_manifest(path, tmp_path, [("a.wav", 1)])
    before = path.read_bytes()

    def fails_midway():
        yield "b.wav", 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, tmp_path, fails_midway())
    with pytest.raises(UserError, match="rename"):
        write_manifest(path, tmp_path, [("tab\there.wav", 2)])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.tsv"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_large_manifest_is_a_few_arrays_and_pickles_small(tmp_path):
    path = tmp_path / "train.tsv"
    lines = 200_000
    write_manifest(path, tmp_path, ((f"part/{i % 100:03d}/clip_{i:09d}.flac", 160_000 + i) for i in range(lines)))
    gc.collect()
    before = len(gc.get_objects())
    manifest = Manifest.read(path)
    assert len(gc.get_objects()) - before < 200
    arrays = [value for value in vars(manifest).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 24 * lines
    assert not any(isinstance(value, (list, tuple, dict)) for value in vars(manifest).values())
    assert manifest.name(lines - 1) == "part/099/clip_000199999.flac"
    pickled = pickle.dumps(manifest)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[123_456] == manifest[123_456]
