from pathlib import Path

import pytest

from amae_plugin.corpora.esc50 import build
from amae_plugin.data.labels import read_names
from amae_plugin.errors import UserError

NAMES = {0: "dog", 14: "chirping_birds", 36: "vacuum_cleaner"}
HEADER = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.fixture
def root(tmp_path, sound):
    root = tmp_path / "ESC-50-master"
    lines = []
    for fold in range(1, 6):
        for target, name in NAMES.items():
            file = f"{fold}-100032-A-{target}.wav"
            sound(root / "audio" / file, rate=44_100)
            lines.append(f"{file},{fold},{target},{name},{target == 0},100032,A\n")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text(HEADER + "".join(reversed(lines)))
    return root


def folds(rows):
    return {int(Path(name).name[0]) for name, _ in rows}


def test_a_fold_is_tested_on_and_classes_are_in_the_publishers_order(root, tmp_path, rows):
    out = tmp_path / "out"
    corpus = build(root.parent, out, 2)
    assert read_names(out / "labels.txt") == tuple(NAMES.values())
    assert folds(rows(out, "train")) == {1, 3, 4, 5}
    assert folds(rows(out, "test")) == {2}
    assert rows(out, "valid") == rows(out, "test")
    for name, label in rows(out, "train"):
        assert NAMES[int(name.rsplit("-", 1)[1].removesuffix(".wav"))] == label
    assert corpus.summary.clips == {"train": 12, "valid": 3, "test": 3}
    assert "fold 1: 3 clips, as published there are 400" in corpus.warnings


def test_a_fold_for_validation(root, tmp_path, rows):
    build(root, tmp_path / "out", 1, valid_fold=5)
    assert [folds(rows(tmp_path / "out", split)) for split in ("train", "valid", "test")] == [{2, 3, 4}, {5}, {1}]
    for fold, valid_fold in ((1, 1), (0, None), (6, None)):
        with pytest.raises(UserError, match="two different ones"):
            build(root, tmp_path / "out", fold, valid_fold=valid_fold)


def test_the_next_fold_for_validation_of_all_runs(root, tmp_path, rows):
    outs = {fold: tmp_path / f"fold{fold}" for fold in range(1, 6)}
    assert list(build(root, tmp_path, "all", valid_fold="next").runs) == list(outs.values())
    assert [folds(rows(out, "valid")) for out in outs.values()] == [{2}, {3}, {4}, {5}, {1}]
    for fold, out in outs.items():
        assert folds(rows(out, "test")) == {fold}
        assert folds(rows(out, "train")) == {1, 2, 3, 4, 5} - folds(rows(out, "valid")) - {fold}


def test_malformed_tables_and_missing_clips(root, tmp_path):
    (root / "audio" / "1-100032-A-0.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 15 files listed in meta/esc50\.csv"):
        build(root, tmp_path / "out", 1)
    assert build(root, tmp_path / "out", 1, allow_missing=True).summary.clips["test"] == 2
    for row, problem in (
        ("4.wav,one,0,dog", "fold and target must be numbers"),
        ("4.wav,6,0,dog", "fold 6 is none of 1, 2, 3, 4, 5"),
        ("4.wav,5,0,do", "target 0 is 'do', and 'dog' above"),
        ("4.wav,5,1,dog", "'dog' is target 1, and 0 above"),
        ("4.wav,5,0,", "no category of target 0"),
        ("4.wav,5,0", "no category of target 0"),
        ("4.wav,5", "fold and target must be numbers"),
        ("4", "fold and target must be numbers"),
    ):
        (root / "meta" / "esc50.csv").write_text(f"{HEADER}3.wav,5,0,dog,True,100032,A\n{row}")
        with pytest.raises(UserError, match=rf"esc50\.csv, line 3: {problem}; correct it"):
            build(root, tmp_path / "out", 1, allow_missing=True)
    (root / "meta" / "esc50.csv").write_text("filename,fold\n")
    with pytest.raises(UserError, match="line 1: lacks some of the columns"):
        build(root, tmp_path / "out", 1)
