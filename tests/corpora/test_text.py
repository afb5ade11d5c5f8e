"""Own tables of clips and their texts."""

import codecs
import re

import numpy as np
import pytest
import soundfile

from amae_plugin.cli.main import main
from amae_plugin.corpora.text import build
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.transcripts import Transcripts, Units
from amae_plugin.errors import UserError

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@pytest.fixture
def table(tmp_path, sound):
    """A table of ten clips, each with its word."""
    for number in range(len(WORDS)):
        sound(tmp_path / "clips" / f"{number}.wav")
    return write(tmp_path / "all.tsv", [f"clips/{number}.wav\t{word}" for number, word in enumerate(WORDS)])


def write(path, lines, end="\n"):
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def read(out, split, labels="ltr"):
    """The text of each clip of a split, by its path."""
    manifest = Manifest.read(out / f"{split}.tsv")
    units = Units.read(out, labels)
    transcripts = Transcripts.read(out / f"{split}.{labels}", units, len(manifest))
    return {manifest[i].path: units.to_text(transcripts[i].tolist()) for i in range(len(manifest))}


def test_every_clip_keeps_its_text_in_every_split_and_kind_of_units(table, tmp_path, capsys):
    out = tmp_path / "out"
    drawn = ["--valid-fraction", "0.2", "--test-fraction", "0.1"]
    kinds = ["--labels", "ltr", "--labels", "spm", "--vocab-size", "20", "--labels", "wrd"]
    assert main(["manifest", "text", *kinds, str(table), "--out", str(out), *drawn]) == 0
    expected = {str(tmp_path / "clips" / f"{number}.wav"): word for number, word in enumerate(WORDS)}
    for labels in ("ltr", "spm", "wrd"):
        splits = {split: read(out, split, labels) for split in ("train", "valid", "test")}
        assert {split: len(part) for split, part in splits.items()} == {"train": 7, "valid": 2, "test": 1}
        assert {clip: text for part in splits.values() for clip, text in part.items()} == expected
    captured = capsys.readouterr()
    assert "spm: 16 units, listed in " in captured.out and "wrd: 10 units" in captured.out
    # 39 letters and 10 ends of words in ten clips of 50 ms
    assert f"ltr: 15 units, listed in {out / 'dict.ltr.txt'}; 98.0 a second\n" in captured.out
    assert re.search(r"train: \d+ characters occur fewer than 5 times", captured.err)


def test_a_clip_that_cannot_be_read_is_left_out_with_its_text(table, tmp_path):
    (tmp_path / "clips" / "3.wav").write_bytes(b"broken" * 50)
    build([str(table)], tmp_path / "out", valid_fraction=0)
    assert list(read(tmp_path / "out", "train").values()) == [word for word in WORDS if word != "four"]
    assert (tmp_path / "out" / "unreadable.tsv").read_text().startswith("clips/3.wav\t")
    assert not (tmp_path / "out" / "valid.tsv").exists()


@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_marks(table, tmp_path, start, end):
    build([str(table)], tmp_path / "before")
    write(table, [*table.read_text().splitlines(), "", ""], end)
    table.write_bytes(start + table.read_bytes())
    build([str(table)], tmp_path / "after")
    for split in ("train", "valid"):
        assert read(tmp_path / "after", split) == read(tmp_path / "before", split)


def test_texts_are_normalised_as_the_user_says(tmp_path, sound):
    sound(tmp_path / "a.wav")
    table = write(tmp_path / "all.tsv", ["a.wav\tDon't shout:  “Fire”!"])
    for options, text in (
        ([], "don't shout fire"),
        (["--case", "keep"], "Don't shout Fire"),
        (["--case", "upper", "--punctuation", "keep"], "DON'T SHOUT: “FIRE”!"),
    ):
        command = ["manifest", "text", str(table), "--out", str(tmp_path / "out"), "--valid-fraction", "0"]
        assert main([*command, *options]) == 0
        assert list(read(tmp_path / "out", "train").values()) == [text]


def test_tables_of_splits_in_several_folders(table, tmp_path, sound):
    sound(tmp_path / "other" / "a.wav")
    (tmp_path / "lists" / "deep").mkdir(parents=True)
    test = write(tmp_path / "lists" / "deep" / "test.tsv", ["../../other/a.wav\tzero"])
    corpus = build([str(table), f"test={test}"], tmp_path / "out")
    assert corpus.summary.clips == {"train": 9, "valid": 1, "test": 1}
    assert read(tmp_path / "out", "test") == {str(tmp_path / "other" / "a.wav"): "zero"}
    assert "z 0" in (tmp_path / "out" / "dict.ltr.txt").read_text().splitlines()
    alone = build([f"test={test}"], tmp_path / "alone", dictionary=tmp_path / "out")  # out of its own folder
    assert alone.summary.clips == {"test": 1}
    assert (tmp_path / "alone" / "dict.ltr.txt").read_bytes() == (tmp_path / "out" / "dict.ltr.txt").read_bytes()
    assert read(tmp_path / "alone", "test") == read(tmp_path / "out", "test")


def test_a_table_in_a_folder_above(table, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    build(["../all.tsv"], tmp_path / "out")
    assert Manifest.read(tmp_path / "out" / "valid.tsv").root == str(tmp_path)
    assert (tmp_path / "out" / "valid.tsv").read_text().splitlines()[1].startswith("clips/")


def test_units_of_the_training_serve_other_data(table, tmp_path, sound, capsys):
    assert main(["manifest", "text", str(table), "--out", str(tmp_path / "out")]) == 0
    assert "next, a training" in capsys.readouterr().out
    sound(tmp_path / "new.wav")
    new = write(tmp_path / "new.tsv", ["new.wav\tŽe neon"])
    command = ["manifest", "text", f"test={new}", "--dictionary", str(tmp_path / "out"), "--out", str(tmp_path / "new")]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "test: 1 units of ltr are not in the dictionary, 1 different ones: 'ž'; training" in captured.err
    assert "next, a training" not in captured.out  # there is no split to train on
    assert (tmp_path / "new" / "test.ltr").read_text() == "ž e | n e o n |\n"


def test_other_labels_of_the_same_clips_go(table, tmp_path):
    out = tmp_path / "out"
    build([str(table)], out)
    corpus = build([str(table)], out, labels=["wrd"], valid_fraction=0)
    assert not (out / "train.ltr").exists() and (out / "train.wrd").exists()
    assert "valid.tsv, valid.ltr: left there from other manifests" in corpus.warnings[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2: empty"),
        ("clips/1.wav", "line 2: no tab in 'clips/1.wav'"),
        ("clips/1.wav two", "line 2: no tab in 'clips/1.wav two'"),
        ("clips/1.wav\ttwo\ta", "line 2: 2 tabs in"),
        ("\ttwo", "line 2: no path before the tab"),
        ("clips/1.wav\t", "line 2: no text for 'clips/1.wav'"),
        ("clips/1.wav\t \u00a0", "line 2: no text for"),
        ("clips/1.wav\t...", "line 2: nothing but punctuation in the text '...'"),
        ("clips/1.wav\ttwo|", "line 2: '|' in the text"),
        ("clips/1.wav\tt\x00wo", "line 2: the control character"),
        ("clips/\x00.wav\ttwo", "line 2: a NUL character in the path"),
        ("clips/../clips/0.wav\ttwo", "line 2: 'clips/../clips/0.wav' is the clip of line 1 too"),
        ("clips/0.flac\ttwo", "line 2: 'clips/0.flac' is the clip of line 1 too"),  # converted, as elsewhere
        ("clips/none.wav\ttwo", "1 of 10 files listed in"),
        ("clips\ttwo", "line 2: clips"),
        ("two and then some " * 20 + "\tclips/1.wav", "line 2: two and then some two"),
    ],
)
def test_bad_lines_are_named(table, tmp_path, line, message):
    lines = table.read_text().splitlines()
    write(table, [lines[0], line, *lines[2:]])
    with pytest.raises(UserError) as error:
        build([str(table)], tmp_path / "out", allow_missing=False)
    assert str(table) in str(error.value) and message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_arguments_that_contradict_each_other(table, tmp_path):
    test = f"test={table}"
    for tables, options, message in (
        ([test], {}, "give a table of train as well, or --dictionary"),
        ([str(table), f"train={table}"], {}, "is the table of train already"),
        ([str(table), test], {}, "is a clip of another table too"),
        ([f"other={table}"], {}, "with the split train, valid, test"),
        ([str(table)], {"vocab_size": 20}, "with --labels spm"),
        ([str(table)], {"vocab_size": 20, "labels": ["spm"], "dictionary": tmp_path}, "that are learned"),
        ([str(table)], {"valid_fraction": 0.6, "test_fraction": 0.5}, "together below 1"),
        ([str(tmp_path / "none.tsv")], {}, "none.tsv: cannot read the table"),
        (["train=" + "x" * 256], {}, "xxx: cannot read the table"),
        ([str(write(tmp_path / "empty.tsv", []))], {}, "empty.tsv: empty"),
    ):
        with pytest.raises(UserError, match=message):
            build(tables, tmp_path / "out", **options)


def test_nothing_that_can_be_read(table, tmp_path):
    for number in range(len(WORDS)):
        (tmp_path / "clips" / f"{number}.wav").write_bytes(b"broken" * 50)
    with pytest.raises(UserError, match="none of the 10 audio files can be read"):
        build([str(table)], tmp_path / "out")
    soundfile.write(tmp_path / "clips" / "0.wav", np.zeros(800), 16_000)
    with pytest.raises(UserError, match="cannot be split into 2 parts"):
        build([str(table)], tmp_path / "out")
