import pytest

from amae_plugin.corpora.librispeech import build
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError


@pytest.fixture
def root(tmp_path, sound):
    root = tmp_path / "LibriSpeech"
    for part in ("train-clean-100", "train-other-500", "dev-clean", "test-other"):
        for i in range(5):
            sound(root / part / "103" / "1240" / f"103-1240-{i:04d}.flac")
        (root / part / "103" / "1240" / "103-1240.trans.txt").write_text("text")
    (root / "SPEAKERS.TXT").write_text("")
    (tmp_path / "train-clean-100.tar.gz").write_bytes(b"")
    return root


def test_parts_are_splits_without_labels(root, tmp_path):
    out = tmp_path / "out"
    corpus = build(tmp_path, out)
    assert corpus.summary.clips == {"train": 10, "valid": 5, "test": 5}
    assert corpus.classes == 0
    assert sorted(path.name for path in out.iterdir()) == ["test.tsv", "train.tsv", "valid.tsv"]
    assert Manifest.read(out / "valid.tsv").name(0) == "dev-clean/103/1240/103-1240-0000.flac"
    assert "train-clean-100: 5 clips, as published there are 28,539" in corpus.warnings
    assert not any("train-clean-360" in warning for warning in corpus.warnings)


def test_without_a_dev_part_some_of_train_is_held_out(root, tmp_path):
    (root / "dev-clean").rename(tmp_path / "elsewhere")
    corpus = build(root, tmp_path / "out")
    assert corpus.summary.clips == {"train": 9, "valid": 1, "test": 5}
    assert any("no dev-* part" in warning for warning in corpus.warnings)


def test_other_layouts(tmp_path):
    with pytest.raises(UserError, match="not the layout of LibriSpeech"):
        build(tmp_path, tmp_path / "out")
    (tmp_path / "train-clean-100" / "103").mkdir(parents=True)
    with pytest.raises(UserError, match="no audio in its train"):
        build(tmp_path, tmp_path / "out")
