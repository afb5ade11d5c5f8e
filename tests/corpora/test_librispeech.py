import subprocess
import sys
from pathlib import Path

import fairseq
import pytest
from fairseq.data import Dictionary

from amae_plugin.corpora.librispeech import build
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError


@pytest.fixture
def root(tmp_path, sound):
    root = tmp_path / "LibriSpeech"
    for part in ("train-clean-100", "train-other-500", "dev-clean", "test-other"):
        for i in range(5):
            sound(root / part / "103" / "1240" / f"103-1240-{i:04d}.flac")
        lines = [f"103-1240-{i:04d} DON'T  LOOK {'BACK' if part.startswith('train') else 'UP'}\n" for i in range(5)]
        (root / part / "103" / "1240" / "103-1240.trans.txt").write_text("".join(lines))
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


def test_transcripts_are_those_of_the_publisher(root, tmp_path):
    out = tmp_path / "out"
    corpus = build(root, out, labels=["ltr", "wrd"])
    assert corpus.units == {"ltr": 13, "wrd": 4}
    assert (out / "train.ltr").read_text() == 10 * "D O N ' T | L O O K | B A C K |\n"
    assert (out / "valid.wrd").read_text() == 5 * "DON'T LOOK UP\n"
    assert (out / "dict.wrd.txt").read_text() == "BACK 10\nDON'T 10\nLOOK 10\nUP 0\n"
    assert (out / "dict.ltr.txt").read_text().splitlines()[:3] == ["O 30", "| 30", "K 20"]
    assert build(root, tmp_path / "pieces", labels=["spm"], vocab_size=18).units == {"spm": 14}
    (root / "test-other" / "103" / "1240" / "103-1240-0001.flac").write_bytes(b"broken" * 50)
    build(root, out, labels=["ltr"])
    assert len((out / "test.ltr").read_text().splitlines()) == 4


def test_the_files_are_those_of_fairseqs_scripts(root, tmp_path):
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    build(root, out, labels=["ltr", "wrd"])
    script = Path(fairseq.__file__).parent / "examples" / "wav2vec" / "libri_labels.py"
    for split in ("train", "valid", "test"):
        arguments = [str(out / f"{split}.tsv"), "--output-dir", str(theirs), "--output-name", split]
        subprocess.run([sys.executable, str(script), *arguments], check=True)
        for labels in ("ltr", "wrd"):
            assert (theirs / f"{split}.{labels}").read_bytes() == (out / f"{split}.{labels}").read_bytes()
    dictionary = Dictionary()
    for line in (theirs / "train.ltr").read_text().splitlines():
        dictionary.encode_line(line, append_eos=False)
    dictionary.finalize(padding_factor=1)
    dictionary.save(str(theirs / "dict.ltr.txt"))
    ours = (out / "dict.ltr.txt").read_text()
    assert ours == (theirs / "dict.ltr.txt").read_text() + "P 0\nU 0\n"  # letters of the other splits


def test_some_parts(root, tmp_path):
    out, clean = tmp_path / "out", ["train-clean-100", "dev-clean"]
    assert build(root, out, labels=["ltr"], parts=clean).summary.clips == {"train": 5, "valid": 5}
    other = build(root, tmp_path / "other", labels=["ltr"], parts=["test-other"], dictionary=out)
    assert other.summary.clips == {"test": 5}
    assert (tmp_path / "other" / "dict.ltr.txt").read_bytes() == (out / "dict.ltr.txt").read_bytes()
    with pytest.raises(UserError, match="--parts train-clean-360: not in"):
        build(root, out, parts=["train-clean-100", "train-clean-360"])
    with pytest.raises(UserError, match="--parts xxx"):
        build(root, out, parts=["x" * 256])
    with pytest.raises(UserError, match="no audio in its train"):
        build(root, out, parts=["test-other"])
    for path in root.glob("[td]*-*"):
        if path.name != "test-other":
            path.rename(tmp_path / f"no {path.name}")
    (tmp_path / "test-runs" / "log").mkdir(parents=True)
    for folder, parts in ((root, ["test-other"]), (tmp_path, None)):
        alone = build(folder, tmp_path / "alone", labels=["ltr"], parts=parts, dictionary=out)
        assert alone.summary.clips == {"test": 5}
        assert (tmp_path / "alone" / "test.ltr").read_bytes() == (tmp_path / "other" / "test.ltr").read_bytes()
        with pytest.raises(UserError, match="no audio in its train"):
            build(folder, out)


def test_transcripts_that_are_missing_or_malformed(root, tmp_path):
    path = root / "dev-clean" / "103" / "1240" / "103-1240.trans.txt"
    published = path.read_text()
    path.write_text(published.replace("103-1240-0002", "103-1240-0009"))
    with pytest.raises(
        UserError, match=r"1 of 20 files have no transcript(.|\n)*103-1240-0002.flac(.|\n)*--allow-missing"
    ):
        build(root, tmp_path / "out", labels=["ltr"])
    corpus = build(root, tmp_path / "out", labels=["ltr"], allow_missing=True)
    assert corpus.summary.clips["valid"] == 4
    for text, message in (
        (published.replace("UP", "|", 1), r"103-1240.trans.txt, line 1: '\|' in the text"),
        (published.replace(" DON'T  LOOK UP", "", 1), "line 1: no text for '103-1240-0000'"),
        (None, "103-1240.trans.txt: cannot read the transcripts"),
    ):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(UserError, match=message):
            build(root, tmp_path / "out", labels=["ltr"])
    with pytest.raises(UserError, match="say --labels"):
        build(root, tmp_path / "out", vocab_size=20)


def test_other_layouts(tmp_path):
    with pytest.raises(UserError, match="not the layout of LibriSpeech"):
        build(tmp_path, tmp_path / "out")
    (tmp_path / "train-clean-100" / "103").mkdir(parents=True)
    with pytest.raises(UserError, match="no audio in its train"):
        build(tmp_path, tmp_path / "out")
