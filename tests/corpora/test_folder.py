import contextlib
import os
from collections import Counter

import numpy as np
import pytest
import soundfile

from amae_plugin.corpora.audio_files import find_audio
from amae_plugin.corpora.folder import build
from amae_plugin.corpora.splits import split_names
from amae_plugin.data.audio import load_clip
from amae_plugin.data.labels import read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError, printable


def sound(path, seconds=0.1, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # the name may not be UTF-8
        soundfile.write(file, np.zeros(int(seconds * rate)), rate, format=path.suffix[1:].upper())


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    for index in range(30):
        sound(tree / f"speaker {index % 3}" / f"é{index:02d}.{['wav', 'FLAC', 'ogg'][index % 3]}")
    (tree / "notes.txt").write_text("not audio")
    return tree


def names(manifest):
    return [manifest.name(i) for i in range(len(manifest))]


def test_every_audio_file_lands_in_one_split(tree, tmp_path):
    corpus = build(tree, tmp_path / "out", valid_fraction=0.2)
    summary = corpus.summary
    train, valid = (Manifest.read(tmp_path / "out" / f"{split}.tsv") for split in ("train", "valid"))
    assert (len(train), len(valid), corpus.warnings) == (24, 6, ())
    assert sorted(names(train) + names(valid)) == find_audio(tree).names
    assert names(train) == sorted(names(train))
    assert train.root == str(tree)
    assert set(train.sizes) == {1_600}
    assert summary.clips == {"train": 24, "valid": 6}
    assert summary.hours == pytest.approx(30 * 0.1 / 3600)
    assert summary.sample_rates == {16_000: 30}
    assert summary.report is None
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["train.tsv", "valid.tsv"]


def test_the_split_depends_on_the_seed_alone(tree, tmp_path):
    for out, seed, workers in [("a", 1, 1), ("b", 1, 4), ("c", 2, 1)]:
        build(tree, tmp_path / out, valid_fraction=0.2, seed=seed, workers=workers)
    valid = {out: (tmp_path / out / "valid.tsv").read_bytes() for out in "abc"}
    assert valid["a"] == valid["b"] != valid["c"]


def test_more_files_hardly_change_the_split():
    before = split_names([f"{i}.wav" for i in range(1000)], {"valid": 0.1}, 1)["valid"]
    after = split_names([f"{i}.wav" for i in range(1100)], {"valid": 0.1}, 1)["valid"]
    assert len(after) == 110
    assert len(set(before) & set(after)) > 85


def test_several_splits_and_small_folders():
    splits = split_names(list("abcd"), {"valid": 0.01, "test": 0.9}, 1)
    assert {split: len(part) for split, part in splits.items()} == {"train": 1, "valid": 1, "test": 2}
    assert sorted(name for part in splits.values() for name in part) == list("abcd")
    assert split_names(["a"], {"valid": 0.0}, 1) == {"train": ["a"]}
    with pytest.raises(UserError, match="1 audio files cannot be split into 2 parts"):
        split_names(["a"], {"valid": 0.05}, 1)
    for fraction in (1.0, -0.1):
        with pytest.raises(UserError, match="below 1"):
            split_names(list("abcd"), {"valid": fraction}, 1)


def test_unreadable_files_are_reported_and_left_out(tree, tmp_path):
    (tree / "broken.wav").write_bytes(b"broken" * 50)
    soundfile.write(tree / "empty.wav", np.zeros(0), 16_000)
    sound(tree / "tab\there.wav")
    (tree / "gone.wav").symlink_to(tree / "nowhere.wav")
    summary = build(tree, tmp_path / "out", valid_fraction=0.2).summary
    assert (sum(summary.clips.values()), summary.unreadable) == (30, 4)
    report = dict(line.split("\t") for line in summary.report.read_text().splitlines())
    assert report.keys() == {"broken.wav", "empty.wav", r"tab\there.wav", "gone.wav"}
    assert "not a format" in report["broken.wav"]
    assert "no samples" in report["empty.wav"]
    assert "No such file" in report["gone.wav"]
    assert "4, listed with reasons in" in str(summary)

    for name in report:
        (tree / name.replace(r"\t", "\t")).unlink()
    summary = build(tree, tmp_path / "out", valid_fraction=0.2).summary
    assert summary.report is None
    assert not (tmp_path / "out" / "unreadable.tsv").exists()


def test_what_is_not_a_regular_file_is_reported_and_not_opened(tree, tmp_path):
    os.mkfifo(tree / "pipe.wav")
    (tree / "device.wav").symlink_to("/dev/zero")
    summary = build(tree, tmp_path / "out", valid_fraction=0.2).summary
    assert summary.report.read_text() == "device.wav\tnot a regular file\npipe.wav\tnot a regular file\n"


def test_incomplete_files_are_counted_and_listed_as_long_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.wav", "b.mp3", "whole.wav", "whole.mp3"):
        (tmp_path / "tree").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "tree" / name, rng.normal(0, 0.1, 32_000), 16_000)
        if "whole" not in name:
            content = (tmp_path / "tree" / name).read_bytes()
            (tmp_path / "tree" / name).write_bytes(content[: len(content) // 2])
    (warning,) = build(tmp_path / "tree", tmp_path / "out", valid_fraction=0).warnings
    assert warning.startswith(
        "incomplete or damaged files, used as far as they go: 2: a.wav (its header states 32,000 samples, but only 15,9"
    )
    assert "b.mp3 (its header states 32,000 samples, but only 1" in warning
    manifest = Manifest.read(tmp_path / "out" / "train.tsv")
    assert {manifest.name(i): int(manifest.sizes[i]) for i in range(4) if "whole" in manifest.name(i)} == {
        "whole.wav": 32_000,
        "whole.mp3": 32_000,
    }
    assert [len(load_clip(clip)) for clip in manifest] == manifest.sizes.tolist()


def test_links_are_followed_and_nothing_is_listed_twice(tmp_path):
    tree = tmp_path / "tree"
    sound(tree / "z" / "real.wav")
    sound(tmp_path / "elsewhere" / "other.wav")
    (tree / "a_link.wav").symlink_to(tree / "z" / "real.wav")
    (tree / "a_folder").symlink_to(tree / "z")
    (tree / "z" / "loop").symlink_to(tree)
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    os.link(tree / "z" / "real.wav", tree / "z" / "same.wav")
    found = find_audio(tree)
    assert found.names == ["linked/other.wav", "z/real.wav"]
    assert found.duplicates == ["z/same.wav", "a_link.wav"]
    assert not found.problems
    corpus = build(tree, tmp_path / "out")
    assert corpus.warnings == ("links to other files of the tree, left out: 2",)


def test_a_link_to_a_file_of_a_linked_folder_is_no_other_file(tmp_path):
    sound(tmp_path / "elsewhere" / "real.wav")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a_link.wav").symlink_to(tmp_path / "elsewhere" / "real.wav")
    (tmp_path / "tree" / "b_folder").symlink_to(tmp_path / "elsewhere")
    found = find_audio(tmp_path / "tree")
    assert (found.names, found.duplicates) == (["a_link.wav"], ["b_folder/real.wav"])


class SharedEntry:
    """Entry of a folder that another machine shares: its number is not that of the file."""

    def __init__(self, entry):
        self._entry = entry

    def __getattr__(self, name):
        return getattr(self._entry, name)

    def inode(self):
        return 2**32 - 1


def test_a_shared_folder_whose_entries_have_made_up_numbers(tree, monkeypatch):
    scan = os.scandir
    (tree / "link.wav").symlink_to(tree / "speaker 0" / "é00.wav")
    os.link(tree / "speaker 0" / "é00.wav", tree / "speaker 0" / "same.wav")
    expected = find_audio(tree)
    assert (len(expected.names), len(expected.duplicates)) == (30, 2)
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(map(SharedEntry, list(scan(path)))))
    assert find_audio(tree) == expected


def test_folders_without_usable_audio(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "none", tmp_path / "out")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"no audio; looked for the extensions wav flac.*--ext"):
        build(tmp_path, tmp_path / "out")
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match=r"none of the 1 audio files can be read; see .*unreadable\.tsv"):
        build(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "unreadable.tsv").read_text().startswith("a.wav\t")


def test_only_the_extensions_asked_for(tree):
    assert len(find_audio(tree, ["flac"]).names) == 10
    assert len(find_audio(tree, [".WAV", "ogg"]).names) == 20


@pytest.fixture
def classes(tmp_path):
    for label, count in (("dog barks", 10), ("cat", 20), ("lone", 2)):
        for i in range(count):
            sound(tmp_path / "tree" / label / f"part {i % 2}" / f"{i}.wav")
    return tmp_path / "tree"


def test_the_topmost_folder_is_the_class_and_each_is_split_by_itself(classes, tmp_path, rows):
    corpus = build(classes, tmp_path / "out", labels=True, valid_fraction=0.1, test_fraction=0.2)
    assert read_names(tmp_path / "out" / "labels.txt") == ("cat", "dog barks", "lone")
    counts = {}
    for split in ("train", "valid", "test"):
        part = rows(tmp_path / "out", split)
        assert all(name.split("/")[0] == label for name, label in part)
        counts[split] = Counter(label for _, label in part)
    assert counts["valid"] == {"cat": 2, "dog barks": 1}
    assert counts["test"] == {"cat": 4, "dog barks": 2}
    assert counts["train"] == {"cat": 14, "dog barks": 7, "lone": 2}
    assert corpus.warnings == ("lone: all 2 clips are in train, too few for every split",)


def test_what_is_hidden_or_damaged_is_no_class_and_is_named(classes, tmp_path):
    for hidden in (".ipynb_checkpoints/0-checkpoint.wav", "__MACOSX/cat/._0.wav", "cat/._0.wav", "cat/.trash/0.wav"):
        sound(classes / hidden)
    (classes / ".DS_Store").touch()
    (classes / "damaged").mkdir()
    for name in "abc":
        (classes / "damaged" / f"{name}.wav").write_bytes(b"broken" * 50)
    corpus = build(classes, tmp_path / "out", labels=True, valid_fraction=0.1)
    assert read_names(tmp_path / "out" / "labels.txt") == ("cat", "dog barks", "lone")
    assert (corpus.classes, sum(corpus.summary.clips.values())) == (3, 32)
    assert corpus.warnings == (
        "hidden, or made by a system, and left out: .ipynb_checkpoints, __MACOSX, cat/._0.wav, cat/.trash",
        "damaged: none of its clips can be read, so it is no class",
    )


def test_a_tree_that_lies_in_a_hidden_folder_is_not_hidden(tmp_path):
    sound(tmp_path / ".cache" / "a.wav")
    assert find_audio(tmp_path / ".cache").names == ["a.wav"]


def test_clips_are_held_out_of_those_that_can_be_read(classes, tmp_path, rows):
    build(classes, tmp_path / "before", labels=True, valid_fraction=0.1)
    for name, _ in rows(tmp_path / "before", "valid"):
        (classes / name).write_bytes(b"broken" * 50)
    corpus = build(classes, tmp_path / "out", labels=True, valid_fraction=0.1)
    assert corpus.summary.clips["valid"] == 3
    assert not set(rows(tmp_path / "out", "valid")) & set(rows(tmp_path / "before", "valid"))


def test_a_split_that_stays_empty_is_a_warning(tmp_path):
    for label in ("cat", "dog"):
        sound(tmp_path / "tree" / label / "1.wav")
    corpus = build(tmp_path / "tree", tmp_path / "out", labels=True)
    assert corpus.warnings[-1] == "valid: this split is empty, as no clip for it can be read"


@pytest.mark.parametrize("name", ["caf\udce9", "cats, dogs", " cat"])
def test_a_folder_that_cannot_be_a_class_is_named_before_headers_are_read(tmp_path, monkeypatch, name):
    sound(tmp_path / "tree" / "dog" / "1.wav")
    (tmp_path / "tree" / "dog").rename(tmp_path / "tree" / name)
    monkeypatch.setattr("amae_plugin.corpora.folder.read_headers", None)
    with pytest.raises(UserError, match=r"cannot be a class: .*; rename it") as error:
        build(tmp_path / "tree", tmp_path / "out", labels=True)
    assert printable(name) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_whose_names_are_not_utf8_are_listed_as_they_are(tmp_path):
    for name in ("caf\udce9.wav", "b.wav"):
        sound(tmp_path / "tree" / name)
    (tmp_path / "tree" / "na\udcefve.wav").write_bytes(b"broken" * 50)
    out = tmp_path / "out"
    build(tmp_path / "tree", out, valid_fraction=0.5)
    listed = [*names(Manifest.read(out / "train.tsv")), *names(Manifest.read(out / "valid.tsv"))]
    assert sorted(listed) == ["b.wav", "caf\udce9.wav"]
    assert (out / "unreadable.tsv").read_text(encoding="utf-8").startswith(r"na\xefve.wav")


def test_trees_without_classes(classes, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "none", tmp_path / "out", labels=True)
    with pytest.raises(UserError, match="no audio; looked for the extensions mp3"):
        build(classes, tmp_path / "out", labels=True, extensions=["mp3"])
    with pytest.raises(UserError, match="each must be 0 or more"):
        build(classes, tmp_path / "out", labels=True, valid_fraction=-0.1)
    sound(classes / "stray.wav")
    with pytest.raises(UserError, match=r"stray\.wav lies in no class"):
        build(classes, tmp_path / "out", labels=True)
    sound(tmp_path / "split" / "Train" / "cat" / "1.wav")
    sound(tmp_path / "split" / "evaluation" / "cat" / "1.wav")
    with pytest.raises(UserError, match="look like splits"):
        build(tmp_path / "split", tmp_path / "out", labels=True)
