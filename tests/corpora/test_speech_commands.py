from pathlib import Path

import numpy as np
import pytest

from amae_plugin.corpora.speech_commands import COMMANDS, TWELVE, WORDS, build
from amae_plugin.data.audio import load_clip
from amae_plugin.data.labels import Labels, read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory, sound):
    """Ten commands and two other words; of each, 10 clips for training, 3 for validation, 2 for testing."""
    root = tmp_path_factory.mktemp("corpus") / "speech_commands_v0.01"
    lists = {"validation_list.txt": [], "testing_list.txt": []}
    for word in (*COMMANDS, "bed", "marvin"):
        for i in range(15):
            name = f"{word}/{i:08x}_nohash_0.wav"
            sound(root / name)
            if i >= 10:
                lists["validation_list.txt" if i < 13 else "testing_list.txt"].append(name)
    for name, lines in lists.items():
        (root / name).write_text("".join(f"{line}\n" for line in lines))
    sound(root / "_background_noise_" / "tap.wav", seconds=10)
    sound(root / "_background_noise_" / "bike.wav", seconds=20, rate=8_000)
    sound(root / "_background_noise_" / "short.wav", seconds=1)
    (root / "_background_noise_" / "README.md").write_text("noise")
    (root / "bed" / "._hidden.wav").write_bytes(b"")
    return root


def by_class(rows):
    classes = {}
    for name, label in rows:
        classes.setdefault(label, []).append(name)
    return classes


def test_v2_35_has_the_publishers_splits(root, tmp_path, rows):
    corpus = build(root, tmp_path, "v2-35")
    assert read_names(tmp_path / "labels.txt") == WORDS
    assert corpus.summary.clips == {"train": 120, "valid": 36, "test": 24}
    splits = {split: dict(rows(tmp_path, split)) for split in ("train", "valid", "test")}
    for part in splits.values():
        assert all(name.split("/")[0] == label for name, label in part.items())
    assert set(splits["valid"]) == set((root / "validation_list.txt").read_text().split())
    assert set(splits["test"]) == set((root / "testing_list.txt").read_text().split())
    assert not set(splits["train"]) & (set(splits["valid"]) | set(splits["test"]))
    assert "train: 120 clips, as published there are 84,843" in corpus.warnings
    ten = "backward, bird, cat, dog, eight, five, follow, forward, four, happy"
    assert f"train: no clip of 23 of the 35 classes: {ten} and 13 more" in corpus.warnings


def test_the_folder_above_will_do_and_nothing_is_random(root, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(root.parent, tmp_path / out, "v1-12", seed=seed)
    for split in ("train", "valid", "test"):
        a, b, c = ((tmp_path / out / f"{split}.tsv").read_bytes() for out in "abc")
        assert a == b != c


def test_v1_12_samples_unknown_words_and_silence(root, tmp_path, rows):
    corpus = build(root, tmp_path, "v1-12")
    assert read_names(tmp_path / "labels.txt") == TWELVE
    for split, words in (("train", 100), ("valid", 30), ("test", 20)):
        classes = by_class(rows(tmp_path, split))
        assert sum(len(classes[word]) for word in COMMANDS) == words
        assert len(set(classes["_unknown_"])) == words // 10
        assert {name.split("/")[0] for name in classes["_unknown_"]} <= {"bed", "marvin"}
        assert len(classes["_silence_"]) == words // 10
    assert any("--test-root" in warning for warning in corpus.warnings)


def test_silence_is_a_second_of_a_part_of_the_recordings_that_only_one_split_hears(root, tmp_path):
    build(root, tmp_path, "v1-12")
    heard = {}
    for split in ("train", "valid", "test"):
        manifest = Manifest.read(tmp_path / f"{split}.tsv")
        labels = Labels.read(tmp_path / f"{split}.lbl", tmp_path / "labels.txt", len(manifest))
        for i in np.flatnonzero(labels.ids == TWELVE.index("_silence_")):
            clip = manifest[int(i)]
            assert clip.kind == "segment"
            assert clip.length == manifest.sizes[i] == (8_000 if "bike" in clip.path else 16_000)
            assert len(load_clip(clip)) == 16_000
            heard.setdefault(clip.path, []).append((clip.start, clip.start + clip.length, split))
    assert len(heard) == 2
    for pieces in heard.values():
        order = [split for _, _, split in sorted(pieces)]
        assert order == sorted(order, key=("train", "valid", "test").index)
        for split in set(order) - {"train"}:
            first = min(start for start, _, of in pieces if of == split)
            assert all(end <= first for _, end, of in pieces if of == "train")


def test_all_other_words(root, tmp_path, rows):
    build(root, tmp_path, "v1-12", other_words="all")
    classes = by_class(rows(tmp_path, "train"))
    assert len(classes["_unknown_"]) == 20
    assert len(classes["_silence_"]) == 10


def test_the_test_archive(root, tmp_path, sound, rows):
    archive = tmp_path / "archive"
    for label in TWELVE:
        for i in range(2):
            sound(archive / label / f"{i}.wav")
    corpus = build(root, tmp_path / "out", "v1-12", test_root=archive)
    assert corpus.summary.clips["test"] == 24
    assert rows(tmp_path / "out", "test")[0] == (str(archive / "yes" / "0.wav"), "yes")
    assert set(by_class(rows(tmp_path / "out", "test"))) == set(TWELVE)
    assert "test: 24 clips, as published there are 3,081" in corpus.warnings
    for file in (archive / "go").iterdir():
        file.unlink()
    (archive / "go").rmdir()
    with pytest.raises(UserError, match="lacks the folders go"):
        build(root, tmp_path / "out", "v1-12", test_root=archive)


def test_archives_in_a_folder_above(root, tmp_path, sound, rows, monkeypatch):
    for label in TWELVE:
        sound(tmp_path / "archive" / label / "0.wav")
    (tmp_path / "sc").symlink_to(root)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    build(Path("../sc"), Path("out"), "v1-12", test_root=Path("../archive"))
    assert Manifest.read("out/train.tsv").root == str(tmp_path / "sc")
    assert (tmp_path / "below" / "out" / "train.tsv").read_text().splitlines()[0] == str(tmp_path / "sc")
    assert rows(Path("out"), "test")[0] == (str(tmp_path / "archive" / "yes" / "0.wav"), "yes")


def test_other_words_than_the_publishers_are_classes_of_their_own(tmp_path, sound):
    root = tmp_path / "corpus"
    for word in ("ja", "nein"):
        for i in range(4):
            sound(root / word / f"{i}.wav")
    (root / "validation_list.txt").write_text("ja/0.wav\nnein/0.wav\n")
    (root / "testing_list.txt").write_text("ja/1.wav\r\nnein/1.wav\r\n")
    corpus = build(root, tmp_path / "out", "v2-35")
    assert read_names(tmp_path / "out" / "labels.txt") == ("ja", "nein")
    assert corpus.summary.clips == {"train": 4, "valid": 2, "test": 2}
    assert any("not all words of Speech Commands: ja, nein" in warning for warning in corpus.warnings)
    (root / "testing_list.txt").write_text("ja/1.wav\nnein/9.wav\n")
    with pytest.raises(UserError, match=r"1 of 2 files listed in testing_list\.txt"):
        build(root, tmp_path / "out", "v2-35")
    assert build(root, tmp_path / "out", "v2-35", allow_missing=True).summary.clips["test"] == 1
    with pytest.raises(UserError, match="_background_noise_: no such folder"):
        build(root, tmp_path / "out", "v1-12", allow_missing=True)


def test_a_copy_in_another_format_is_no_other_clip(tmp_path, sound):
    root = tmp_path / "corpus"
    for i in range(3):
        for extension in ("flac", "ogg", "wav"):
            sound(root / "yes" / f"{i}.{extension}")
    sound(root / "yes" / "3.ogg")
    (root / "yes" / "1.wav").unlink()
    (root / "validation_list.txt").write_text("yes/0.wav\n")
    (root / "testing_list.txt").write_text("yes/1.wav\n")
    corpus = build(root, tmp_path / "out", "v2-35")
    listed = {split: Manifest.read(tmp_path / "out" / f"{split}.tsv") for split in ("train", "valid", "test")}
    assert {split: [part.name(i) for i in range(len(part))] for split, part in listed.items()} == {
        "train": ["yes/2.wav", "yes/3.ogg"],
        "valid": ["yes/0.wav"],
        "test": ["yes/1.flac"],
    }
    assert "copies of clips in another format, left out: 5" in corpus.warnings


def test_options_of_the_other_task_and_other_layouts(root, tmp_path):
    with pytest.raises(UserError, match="belong to --task v1-12"):
        build(root, tmp_path, "v2-35", test_root=root)
    with pytest.raises(UserError, match=r"not the layout of Speech Commands.*testing_list\.txt"):
        build(root / "bed", tmp_path, "v2-35")
