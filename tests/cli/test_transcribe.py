"""``amae transcribe`` as a user types it, and the same texts from Python and from ``amae evaluate``."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin import load_model
from amae_plugin.cli.main import main
from amae_plugin.cli.transcribe import _subtitles
from amae_plugin.corpora.text import build
from amae_plugin.evaluation.recognition import recognize
from amae_plugin.inference.transcription import TimedWord


def run(*arguments):
    return main(["transcribe", *map(str, arguments), "--workers", "0", "--device", "cpu"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, write_recogniser):
    return write_recogniser(tmp_path_factory.mktemp("checkpoint") / "recogniser.pt")


@pytest.fixture
def clips(tmp_path):
    """Clips in a folder and a folder in it, of several lengths and rates, with a file that is no audio beside them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    (folder / "b").mkdir(parents=True)
    for name, rate, seconds in (("a.wav", 16_000, 0.5), ("b/c.flac", 8_000, 4.0), ("d.ogg", 44_100, 0.6)):
        loudness = np.interp(
            np.arange(int(rate * seconds)), np.arange(0, rate * seconds, rate / 10), rng.random(int(10 * seconds))
        )
        soundfile.write(folder / name, rng.uniform(-0.5, 0.5, len(loudness)) * loudness, rate)
    (folder / "notes.txt").write_text("no audio")
    return folder


NAMES = ("a.wav", "b/c.flac", "d.ogg")


def test_on_the_terminal(checkpoint, clips, capsys):
    assert run(checkpoint, clips) == 0
    output, _ = capsys.readouterr()
    model = load_model(checkpoint, device="cpu")
    found = {str(clips / name): model.transcribe(clips / name) for name in NAMES}
    assert output.splitlines() == [f"{path}: {transcription.text}" for path, transcription in found.items()]
    assert sum(len(transcription.words) for transcription in found.values()) > 2
    assert run(checkpoint, clips / "b", "--timestamps") == 0
    words = [f"  {start:.2f}\t{end:.2f}\t{word}" for word, start, end in found[str(clips / "b" / "c.flac")].words]
    assert capsys.readouterr().out.splitlines()[1:] == words


def test_to_files(checkpoint, clips, tmp_path, capsys):
    model = load_model(checkpoint, device="cpu")
    found = {str(clips / name): model.transcribe(clips / name) for name in NAMES}
    timed = [(path, *word) for path, transcription in found.items() for word in transcription.words]

    def write(name, *options):
        out = tmp_path / "made" / name
        assert run(checkpoint, clips, "--out", out, *options) == 0
        assert capsys.readouterr().out == f"texts of 3 clips: {out}\n"
        return out

    with write("x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["path", "text"], *([path, text] for path, (text, _) in found.items())]
    with write("y.csv", "--timestamps").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "start", "end", "word"]
    assert [(path, word) for path, *_, word in rows] == [(path, word) for path, word, *_ in timed]
    times = [[float(time) for time in row[1:3]] for row in rows]
    np.testing.assert_allclose(times, [row[2:] for row in timed], atol=1e-3)
    entries = json.loads(write("x.json").read_text())
    assert [(entry["path"], entry["text"]) for entry in entries] == [(path, text) for path, (text, _) in found.items()]
    words = [(e["path"], word["word"], word["start"], word["end"]) for e in entries for word in e["words"]]
    assert [row[:2] for row in words] == [row[:2] for row in timed]
    np.testing.assert_allclose([row[2:] for row in words], [row[2:] for row in timed], atol=1e-3)
    for name in ("x.txt", "x.tsv"):
        lines = write(name).read_text().splitlines()
        assert lines == [f"{path}\t{text}" for path, (text, _) in found.items()]


def test_the_table_is_one_of_amae_manifest_text_and_evaluation_has_the_same_texts(
    checkpoint, clips, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(checkpoint, "clips", "--out", "texts.tsv") == 0
    corpus = build(["texts.tsv"], tmp_path / "out", valid_fraction=0, case="keep", punctuation="keep")
    assert corpus.summary.clips == {"train": 3}
    result = recognize(checkpoint, tmp_path / "out", "train")
    assert result.hypotheses == result.references and result.total.characters.total == 0


def test_clips_in_which_nothing_is_heard_are_not_in_the_table(checkpoint, clips, tmp_path, capsys):
    content, out = torch.load(checkpoint), tmp_path / "texts.tsv"
    blanks = content["model"]["head.bias"]
    for _ in range(100):
        blanks[0] += 0.5
        torch.save(content, tmp_path / "quiet.pt")
        model = load_model(tmp_path / "quiet.pt", device="cpu")
        wordless = [str(clips / name) for name in NAMES if not model.transcribe(clips / name).text]
        if wordless:
            break
    assert 0 < len(wordless) < 3
    assert run(tmp_path / "quiet.pt", clips, "--out", out) == 0
    output, error = capsys.readouterr()
    assert error == f"left out, as no word is heard in them: {len(wordless)} clips, {', '.join(wordless)}\n"
    assert output == f"texts of {3 - len(wordless)} clips: {out}\n"
    corpus = build([str(out)], tmp_path / "out", valid_fraction=0, case="keep")
    assert corpus.summary.clips == {"train": 3 - len(wordless)}


def test_subtitles(checkpoint, clips, tmp_path, capsys):
    out = tmp_path / "x.srt"
    assert run(checkpoint, clips / "b" / "c.flac", "--out", out) == 0
    assert out.read_text().startswith("1\n00:00:0")
    assert run(checkpoint, clips, "--out", out) == 2
    assert "subtitles are those of one clip, and there are 3" in capsys.readouterr().err
    words = [TimedWord("one", 0.5, 0.9), TimedWord("two", 1.2, 1.6), TimedWord("after", 3661.0, 3661.25)]
    long = [TimedWord("x" * 50, 3662.0, 3662.5), TimedWord("y" * 50, 3662.5, 3663.0)]
    assert list(_subtitles([*words, *long])) == [
        *("1", "00:00:00,500 --> 00:00:01,600", "one two", ""),
        *("2", "01:01:01,000 --> 01:01:02,500", f"after {'x' * 50}", ""),
        *("3", "01:01:02,500 --> 01:01:03,000", "y" * 50, ""),
    ]
    steady = [TimedWord("w", second, second + 0.5) for second in range(14)]
    assert list(_subtitles(steady))[1::4] == [
        "00:00:00,000 --> 00:00:05,500",
        "00:00:06,000 --> 00:00:11,500",
        "00:00:12,000 --> 00:00:13,500",
    ]


def test_bad_files_are_listed(checkpoint, clips, tmp_path, capsys):
    soundfile.write(clips / "silent.wav", np.zeros(16_000), 16_000)
    (clips / "broken.mp3").write_bytes(b"broken" * 100)
    assert run(checkpoint, clips, "--out", tmp_path / "x.json") == 1
    output, error = capsys.readouterr()
    assert "texts of 3 clips" in output and len(json.loads((tmp_path / "x.json").read_text())) == 3
    assert "left out, as they cannot be used: 2\n" in error
    assert run(checkpoint, clips / "silent.wav", "--out", tmp_path / "y.json") == 2
    assert "silent.wav: is silent" in capsys.readouterr().err and not (tmp_path / "y.json").exists()


def test_what_cannot_be_done_is_found_out_before_the_work(checkpoint, clips, tmp_path, capsys, write_checkpoint):
    classifier = write_checkpoint(tmp_path / "classifier.pt", ["bark", "meow"])
    pretrained = write_checkpoint(tmp_path / "pretrained.pt", None)
    (tmp_path / "file").touch()
    for path, options, message in (
        (classifier, [], "a classifier, which knows no"),
        (pretrained, [], "a pretraining checkpoint, which knows no"),
        (checkpoint, ["--out", "x.doc"], "--out x.doc: its name must end in .csv or "),
        (checkpoint, ["--out", tmp_path / "file" / "x.csv"], "cannot write"),
    ):
        assert run(path, clips / "none.wav", *options) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(checkpoint), str(clips), "--device", "cpu"]) == 2
    assert "a recogniser, which knows no" in capsys.readouterr().err
