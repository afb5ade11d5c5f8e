import errno
import os
from pathlib import Path
from pkgutil import resolve_name

import pytest

from amae_plugin.cli.main import main
from amae_plugin.corpora.audio_files import find_audio, find_listed, find_root
from amae_plugin.corpora.corpus import LabelledClip, write_corpus
from amae_plugin.errors import UserError


def test_missing_files_are_named_ten_at_most_and_counted(tmp_path, sound):
    sound(tmp_path / "a.wav")
    names = ["a.wav", *(f"gone{i:02d}.wav" for i in range(12))]
    with pytest.raises(UserError) as error:
        find_listed(tmp_path, names, "list.txt", allow_missing=False)
    message = str(error.value)
    assert "12 of 13 files listed in list.txt are not in" in message
    assert "gone00.wav" in message and "gone09.wav" in message and "gone10.wav" not in message
    assert "and 2 more" in message and "--allow-missing" in message
    found, warnings = find_listed(tmp_path, names, "list.txt", allow_missing=True)
    assert found == {"a.wav": "a.wav"}
    assert len(warnings) == 1 and "12 of 13" in warnings[0]


def test_converted_files_are_found_by_their_stem(tmp_path, sound):
    sound(tmp_path / "x" / "a.b.flac")
    found, warnings = find_listed(tmp_path, ["x/a.b.wav"], "list.txt", allow_missing=False)
    assert (found, warnings) == ({"x/a.b.wav": "x/a.b.flac"}, [])


def test_unreadable_clips_are_left_out_of_manifest_and_labels_alike(tmp_path, sound, rows):
    root, out = tmp_path / "root", tmp_path / "out"
    for name in "abc":
        sound(root / f"{name}.wav", seconds=1)
    (root / "b.wav").write_bytes(b"broken" * 50)
    clips = [
        LabelledClip("a.wav", ("x",)),
        LabelledClip("b.wav", ("y",)),
        LabelledClip("b.wav", ("y",), (0, 100)),
        LabelledClip("c.wav", ("z", "x")),
        LabelledClip("c.wav", ("z",), (4_000, 8_000)),
    ]
    corpus = write_corpus(root, {out: {"train": clips}}, ["x", "y", "z"], warnings=["before"], workers=1)
    assert rows(out, "train") == [("a.wav", "x"), ("c.wav", "z", "x"), ("c.wav:4000:8000", "z")]
    assert (out / "train.tsv").read_text().splitlines()[-1] == "c.wav:4000:8000\t8000"
    assert corpus.summary.unreadable == 1
    assert corpus.warnings == ("before", "train: no clip of 1 of the 3 classes: y")
    assert (out / "unreadable.tsv").read_text().startswith("b.wav\t")


def test_labels_of_an_earlier_run_do_not_stay(tmp_path, sound):
    sound(tmp_path / "a.wav")
    write_corpus(tmp_path, {tmp_path: {"train": [LabelledClip("a.wav", ("x",))]}}, ["x"])
    write_corpus(tmp_path, {tmp_path: {"train": [LabelledClip("a.wav")]}})
    assert not (tmp_path / "train.lbl").exists()


def test_classes_that_training_lacks_are_a_warning(tmp_path, sound):
    sound(tmp_path / "a.wav")
    corpus = write_corpus(tmp_path, {tmp_path: {"train": [LabelledClip("a.wav", ("x",))]}}, ["w", "x", "y"])
    assert corpus.warnings == ("train: no clip of 2 of the 3 classes: w, y",)


def test_a_class_with_a_comma_is_refused(tmp_path, sound):
    sound(tmp_path / "a.wav")
    with pytest.raises(UserError, match="cannot be a class"):
        write_corpus(tmp_path, {tmp_path: {"train": [LabelledClip("a.wav", ("a,b",))]}}, ["a,b"])
    assert not (tmp_path / "train.tsv").exists()


@pytest.mark.parametrize("failing", ["labels.write_names", "labels.write_labels", "manifest.write_manifest"])
def test_a_set_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, sound, rows, monkeypatch, failing):
    for name in "ab":
        sound(tmp_path / "root" / f"{name}.wav")
    runs = [tmp_path / "fold1", tmp_path / "fold2"]

    def write(name, label):
        splits = {split: [LabelledClip(f"{name}.wav", (label,))] for split in ("train", "valid")}
        return write_corpus(tmp_path / "root", dict.fromkeys(runs, splits), [label])

    def full(path, *content):
        if "fold2" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *content)

    write("a", "x")
    before = {path: path.read_bytes() for run in runs for path in run.iterdir()}
    original = resolve_name(f"amae_plugin.data.{failing}")
    monkeypatch.setattr(f"amae_plugin.data.{failing}", full)
    with pytest.raises(UserError, match=r"fold2: cannot write the manifests there \(No space left"):
        write("b", "y")
    assert {path: path.read_bytes() for run in runs for path in run.iterdir()} == before
    monkeypatch.undo()
    (runs[0] / ".manifests.killed").mkdir()
    write("b", "y")
    assert [rows(run, split) for run in runs for split in ("train", "valid")] == [[("b.wav", "y")]] * 4
    assert {path for run in runs for path in run.iterdir()} == before.keys()


def test_an_interruption_between_two_files_leaves_no_manifest_with_other_labels(tmp_path, sound, monkeypatch):
    sound(tmp_path / "a.wav")
    out, replace = tmp_path / "out", Path.replace

    def interrupted(path, target):
        if target.parent == out and target.suffix != ".lbl":
            raise KeyboardInterrupt
        return replace(path, target)

    write_corpus(tmp_path, {out: {"train": [LabelledClip("a.wav", ("x",))]}}, ["x"])
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, {out: {"train": [LabelledClip("a.wav", ("y",))]}}, ["y"])
    assert not (out / "train.tsv").exists()


def test_files_of_other_manifests_are_a_warning(tmp_path, sound):
    for name in "ab":
        sound(tmp_path / "root" / f"{name}.wav")
    out = tmp_path / "out"

    def write(name, *splits):
        clips = {split: [LabelledClip(f"{name}.wav", ("x",))] for split in splits}
        return write_corpus(tmp_path / "root", {out: clips}, ["x"])

    write("a", "train", "test")
    for name in ("train.weights.npy", "mine.tsv"):
        (out / name).touch()
    assert write("a", "train", "test").warnings == ()
    (warning,) = write("b", "train").warnings
    assert warning.startswith("train.weights.npy, test.tsv, test.lbl: left there from other manifests")


def test_an_output_folder_that_cannot_be_made(tmp_path, sound):
    sound(tmp_path / "a.wav")
    with pytest.raises(UserError, match="cannot write"):
        write_corpus(tmp_path, {tmp_path / "a.wav" / "out": {"train": [LabelledClip("a.wav")]}})


def test_the_root_or_the_one_folder_in_it(tmp_path):
    (tmp_path / "one" / "in" / "meta").mkdir(parents=True)
    assert find_root(tmp_path / "one", "meta", "X") == tmp_path / "one" / "in"
    assert find_root(tmp_path / "one" / "in", "meta", "X") == tmp_path / "one" / "in"
    (tmp_path / "one" / "other" / "meta").mkdir(parents=True)
    with pytest.raises(UserError, match="more than once"):
        find_root(tmp_path / "one", "meta", "X")
    with pytest.raises(UserError, match="not the layout of X"):
        find_root(tmp_path, "meta", "X")
    with pytest.raises(UserError, match="no such folder"):
        find_root(tmp_path / "none", "meta", "X")


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that its user may list but not enter, whoever runs the test."""
    folder = tmp_path / "locked"
    (folder / "in").mkdir(parents=True)

    def refusing(function):
        def refuse(path=".", *arguments, **options):
            if isinstance(path, (str, os.PathLike)) and folder in Path(os.path.realpath(path)).parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *arguments, **options)

        return refuse

    for name in ("stat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return folder


def test_what_cannot_be_reached_is_named(locked, tmp_path, sound, capsys):
    sound(tmp_path / "tree" / "a.wav")
    out = ["--out", str(tmp_path / "out")]
    for path, reason in ((locked / "in", "Permission denied"), (tmp_path / ("x" * 256), "File name too long")):
        for command, problem in (
            (["manifest", "folder", path], f"{path}: cannot be reached ({reason})"),
            (["manifest", "pairs", tmp_path / "tree", "--pictures", path], f"{path}: cannot be reached ({reason})"),
            (["manifest", "esc50", path, "--fold", "1"], f"{path}: cannot be reached ({reason})"),
            (["manifest", "voxceleb1", path], f"{path}: cannot be reached ({reason})"),
            (["manifest", "text", path], f"{path}: cannot read the table ({reason})"),
            (["manifest", "voxceleb1", tmp_path, "--split", path], f"{path}: cannot read the split ({reason})"),
            (["pack", path], f"{path}: cannot read"),
        ):
            assert main([*map(str, command), *out]) == 2
            assert problem in capsys.readouterr().err
    with pytest.raises(UserError, match="not the layout of X"):
        find_root(locked, "meta", "X")
    (tmp_path / "tree" / "linked").symlink_to(locked / "in")
    found = find_audio(tmp_path / "tree")
    assert (found.names, found.problems) == (["a.wav"], {"linked": "Permission denied"})
    with pytest.raises(UserError, match=r"1 of 2 files listed in a list are not in(.|\n)*locked/in/b\.wav"):
        find_listed(tmp_path, ["tree/a.wav", "locked/in/b.wav"], "a list", False)
