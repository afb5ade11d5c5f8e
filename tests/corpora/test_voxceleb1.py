from pathlib import Path

import pytest

from amae_plugin.corpora.voxceleb1 import build
from amae_plugin.data.labels import read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.trials import Trials
from amae_plugin.errors import UserError

CLIPS = [(f"id1000{s}/video_{v}/0000{n}.wav", 1 + n % 3) for s in (2, 1, 3) for v in "ab" for n in range(4)]
TRIALS = [
    (1, "id10001/video_a/00000.wav", "id10001/video_b/00001.wav"),
    (0, "id10001/video_a/00000.wav", "id10003/video_b/00001.wav"),
]


@pytest.fixture
def root(tmp_path, sound):
    root = tmp_path / "vox"
    for name, _ in CLIPS:
        sound(root / "wav" / name)
    (root / "iden_split.txt").write_text("".join(f"{split} {name}\n" for name, split in CLIPS))
    (root / "veri_test.txt").write_text("".join(f"{same} {a} {b}\n" for same, a, b in TRIALS))
    return root


def test_identification(root, tmp_path, rows):
    out = tmp_path / "out"
    corpus = build(root, out, root / "iden_split.txt")
    assert read_names(out / "labels.txt") == ("id10001", "id10002", "id10003")
    for number, split in enumerate(("train", "valid", "test"), 1):
        expected = [(f"wav/{name}", name.split("/")[0]) for name, of in CLIPS if of == number]
        assert rows(out, split) == expected
    assert corpus.summary.clips == {"train": 12, "valid": 6, "test": 6}
    assert "train: 12 clips, as published there are 138,361" in corpus.warnings
    assert "classes: 3 speakers, as published there are 1,251" in corpus.warnings
    assert not (out / "trials.tsv").exists()


@pytest.mark.parametrize("moves", [{"wav": "."}, {"wav/id10003": "test/wav/id10003", "wav": "dev/wav"}])
def test_other_places_for_the_folder_of_the_speakers(root, tmp_path, rows, moves):
    given = root / "wav" if moves == {"wav": "."} else root
    for old, new in moves.items():
        if new != ".":
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)
    build(given, tmp_path / "out", root / "iden_split.txt")
    manifest = Manifest.read(tmp_path / "out" / "train.tsv")
    assert len(manifest) == 12
    assert all((given / manifest.name(i)).is_file() for i in range(12))


def test_lists_are_looked_for_in_the_root_and_may_name_folders_above(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (root / "iden_split.txt").read_text()
    (root / "iden_split.txt").write_text("\ufeff" + text.replace(" id", " wav/id").replace("\n", "\r\n") + "\r\n")
    corpus = build(root, tmp_path / "out", Path("iden_split.txt"))
    assert sum(corpus.summary.clips.values()) == 24


def test_verification_pairs(root, tmp_path):
    out = tmp_path / "out"
    build(root, out, root / "iden_split.txt", trials=root / "veri_test.txt")
    manifest = Manifest.read(out / "trials.tsv")
    assert len(manifest) == 3
    assert not (out / "trials.lbl").exists()
    trials = Trials.read(out / "trials.txt", manifest)
    assert trials.same.tolist() == [True, False]
    named = [[manifest.name(i).removeprefix("wav/") for i in pair] for pair in trials.pairs]
    assert named == [[a, b] for _, a, b in TRIALS]
    (out / "trials.txt").write_text("1 wav/id10001/video_a/00000.wav other.wav\n")
    with pytest.raises(UserError, match=r"line 1: 'other\.wav' is not in"):
        Trials.read(out / "trials.txt", manifest)


def test_missing_clips(root, tmp_path):
    (root / "wav" / TRIALS[1][2]).unlink()
    arguments = {"split": root / "iden_split.txt", "trials": root / "veri_test.txt"}
    with pytest.raises(UserError, match=r"1 of 24 files listed in iden_split\.txt(.|\n)*id10003/video_b/00001\.wav"):
        build(root, tmp_path / "out", **arguments)
    corpus = build(root, tmp_path / "out", **arguments, allow_missing=True)
    assert sum(corpus.summary.clips.values()) == 23 + 2
    assert sum("left out" in warning for warning in corpus.warnings) == 2
    assert (tmp_path / "out" / "trials.txt").read_text().count("\n") == 1


def test_pairs_with_a_damaged_clip_are_left_out(root, tmp_path):
    (root / "wav" / TRIALS[1][2]).write_bytes(b"broken" * 50)
    corpus = build(root, tmp_path / "out", root / "iden_split.txt", trials=root / "veri_test.txt")
    assert "trials: 1 pairs have a clip that cannot be read; left out" in corpus.warnings
    manifest = Manifest.read(tmp_path / "out" / "trials.tsv")
    assert len(Trials.read(tmp_path / "out" / "trials.txt", manifest).same) == len(TRIALS) - 1


def test_trials_that_could_not_be_read_back_are_refused(root, tmp_path):
    (root / "wav").rename(root / "the wav files")
    with pytest.raises(UserError, match=r"a blank or is not UTF-8; give the folder of the speakers itself"):
        build(root, tmp_path / "out", root / "iden_split.txt", trials=root / "veri_test.txt")
    assert not (tmp_path / "out").exists()


def test_a_speaker_that_is_not_there_at_all_is_missing_clips(root, tmp_path):
    (root / "wav" / "id10002").rename(tmp_path / "id10002")
    with pytest.raises(UserError, match="8 of 24 files"):
        build(root, tmp_path / "out", root / "iden_split.txt")


@pytest.mark.parametrize(
    ("line", "hint"),
    [("4 id10001/a/1.wav", "line 2: expected"), ("1 file.wav", "line 2"), ("id10001/a/1.wav", "line 2")],
)
def test_malformed_lists(root, tmp_path, line, hint):
    (root / "iden_split.txt").write_text(f"1 {CLIPS[0][0]}\n{line}\n")
    with pytest.raises(UserError, match=hint):
        build(root, tmp_path / "out", root / "iden_split.txt")
    (root / "veri_test.txt").write_text("2 a/b/c.wav d/e/f.wav\n")
    (root / "iden_split.txt").write_text(f"1 {CLIPS[0][0]}\n")
    with pytest.raises(UserError, match=r"veri_test\.txt, line 1: expected"):
        build(root, tmp_path / "out", root / "iden_split.txt", trials=root / "veri_test.txt")
    with pytest.raises(UserError, match="VoxCeleb calls it"):
        build(root, tmp_path / "out", root / "none.txt")
    (root / "iden_split.txt").write_text(f"3 {CLIPS[0][0]}\n")
    with pytest.raises(UserError, match="no clip for training"):
        build(root, tmp_path / "out", root / "iden_split.txt")
