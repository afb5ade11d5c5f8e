import pytest

from amae_plugin.corpora.iemocap import CLASSES, build
from amae_plugin.data.labels import read_names
from amae_plugin.errors import UserError

EMOTIONS = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")


@pytest.fixture
def root(tmp_path, sound):
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        folder = root / f"Session{session}"
        dialog = f"Ses{session:02d}F_script01_1"
        table = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        for number, emotion in enumerate(EMOTIONS):
            clip = f"{dialog}_M{number:03d}"
            sound(folder / "sentences" / "wav" / dialog / f"{clip}.wav")
            table.append(
                f"[{number}.2901 - {number + 1}.2357]\t{clip}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
                "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
            )
        evaluation = folder / "dialog" / "EmoEvaluation"
        (evaluation / "Categorical").mkdir(parents=True)
        (evaluation / f"{dialog}.txt").write_text("".join(table))
        (evaluation / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    return root


def test_four_emotions_and_a_session_held_out(root, tmp_path, rows):
    out = tmp_path / "out"
    corpus = build(tmp_path, out, 3)
    assert read_names(out / "labels.txt") == CLASSES
    assert corpus.summary.clips == {"train": 16, "valid": 4, "test": 5}
    assert [label for _, label in rows(out, "test")] == ["ang", "hap", "hap", "neu", "sad"]
    assert rows(out, "test")[0][0] == "Session3/sentences/wav/Ses03F_script01_1/Ses03F_script01_1_M000.wav"
    assert not any("Session3" in name for name, _ in rows(out, "train") + rows(out, "valid"))
    assert "hap: 10 clips, as published there are 1,636" in corpus.warnings


def test_other_layouts_and_missing_clips(root, tmp_path):
    with pytest.raises(UserError, match="--fold 6"):
        build(root, tmp_path / "out", 6)
    next((root / "Session2" / "sentences" / "wav").rglob("*_M000.wav")).unlink()
    with pytest.raises(UserError, match="1 of 25 files"):
        build(root, tmp_path / "out", 1)
    assert sum(build(root, tmp_path / "out", 1, allow_missing=True).summary.clips.values()) == 24
    (root / "Session5").rename(tmp_path / "Session5")
    with pytest.raises(UserError, match=r"Session5: dialog/EmoEvaluation"):
        build(root, tmp_path / "out", 1)
