from collections import Counter

import pytest

from amae_plugin.corpora.class_folders import build
from amae_plugin.data.labels import read_names
from amae_plugin.errors import UserError


@pytest.fixture
def tree(tmp_path, sound):
    for label, count in (("dog barks", 10), ("cat", 20), ("lone", 2)):
        for i in range(count):
            sound(tmp_path / "tree" / label / f"part {i % 2}" / f"{i}.wav")
    return tmp_path / "tree"


def test_the_topmost_folder_is_the_class_and_each_is_split_by_itself(tree, tmp_path, rows):
    corpus = build(tree, tmp_path / "out", valid_fraction=0.1, test_fraction=0.2)
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


def test_trees_without_classes(tree, tmp_path, sound):
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="no audio in its folders"):
        build(tree, tmp_path / "out", extensions=["mp3"])
    with pytest.raises(UserError, match="each must be 0 or more"):
        build(tree, tmp_path / "out", valid_fraction=-0.1)
    sound(tree / "stray.wav")
    with pytest.raises(UserError, match=r"stray\.wav lies in no class"):
        build(tree, tmp_path / "out")
    sound(tmp_path / "split" / "Train" / "cat" / "1.wav")
    sound(tmp_path / "split" / "test" / "cat" / "1.wav")
    with pytest.raises(UserError, match="look like splits"):
        build(tmp_path / "split", tmp_path / "out")
