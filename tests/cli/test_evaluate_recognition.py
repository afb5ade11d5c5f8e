"""``amae evaluate`` and other commands with a recogniser, on real files."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.metrics.recognition import TextErrors

TEXTS = ["A B | C |", "", "B B A | A | C |", "Q A |", "C |", "A C | B |"]


@pytest.fixture
def data(tmp_path, write_split):
    """Clips of which two are longer than the model's input, and one holds a letter that it does not know."""
    clips = [((), 3.0 if index in (2, 5) else 0.4 + 0.05 * index, 16_000) for index in range(len(TEXTS))]
    folder = write_split(tmp_path / "data", clips)
    (folder / "test.ltr").write_text("".join(f"{text}\n" for text in TEXTS))
    return folder


def evaluate(checkpoint, data, *arguments):
    return main(["evaluate", str(checkpoint), "--data", str(data), "--workers", "0", "--device", "cpu", *arguments])


def test_error_rates_and_the_worst_clips(tmp_path, data, capsys, write_recogniser):
    path = write_recogniser(tmp_path / "run" / "checkpoints" / "best.pt")
    assert evaluate(path, data, "--batch-size", "3") == 0
    folder = tmp_path / "run" / "evaluation" / "test"
    tables = {"metrics.md", "metrics.csv", "metrics.tex"}
    assert {file.name for file in folder.iterdir()} == {*tables, "metrics.json", "predictions.csv"}
    output, _ = capsys.readouterr()
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{index}.flac" for index in range(6)]
    assert [row["reference"] for row in rows] == ["AB C", "", "BBA A C", "QA", "C", "AC B"]
    model = load_model(path, "cpu")
    for row in rows:  # each clip alone
        assert row["hypothesis"] == model.transcribe(data / row["path"]).text
    assert any(row["hypothesis"] for row in rows)  # so that something was tested

    pairs = [[row[side] for row in rows] for side in ("reference", "hypothesis")]
    expected = TextErrors.of_all(*pairs)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["clips"], metrics["split"], metrics["skipped"]) == (6, "test", [])
    assert {name: metrics[name] for name in ("wer", "cer")} == expected.headline
    assert metrics["words"] == vars(expected.words) and metrics["characters"] == vars(expected.characters)
    for name, found in vars(expected).items():
        assert sum(int(row[f"{name}_insertions"]) for row in rows) == found.insertions
        line = next(line for line in output.splitlines() if line.startswith(name))
        low, high = metrics["intervals"][{"words": "wer", "characters": "cer"}[name]]
        assert low <= found.rate <= high
        assert line.split()[1:6] == [f"{found.rate:.4f}", f"{low:.4f}", "to", f"{high:.4f}", str(found.length)]
        assert line.split()[6:] == [str(found.substitutions), str(found.deletions), str(found.insertions)]
    totals = [TextErrors.between(one, other).words.total for one, other in zip(*pairs)]
    worst = max(range(6), key=totals.__getitem__)
    lines = output.splitlines()
    place = lines.index("worst clips") + 1
    assert lines[place] == f"  {worst}.flac: {totals[worst]} errors, {len(pairs[0][worst].split())} words"
    assert lines[place + 1].split(maxsplit=1) == ["reference", pairs[0][worst]]
    assert lines[place + 2].split(maxsplit=1) == ["hypothesis", *([pairs[1][worst]] if pairs[1][worst] else [])]


def test_clips_that_cannot_be_decoded(tmp_path, data, capsys, write_recogniser):
    path = write_recogniser(tmp_path / "best.pt")
    (data / "1.flac").write_bytes(b"no audio")
    assert evaluate(path, data) == 2
    assert "1.flac" in (error := capsys.readouterr().err) and "--skip-bad-audio" in error
    assert evaluate(path, data, "--skip-bad-audio", "--json", str(tmp_path / "m.json")) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["clips"] == 5 and [skipped["path"] for skipped in metrics["skipped"]] == ["1.flac"]


def test_what_a_recogniser_cannot_do_is_said(tmp_path, data, capsys, write_recogniser, write_checkpoint):
    path = write_recogniser(tmp_path / "best.pt")
    lack = "best.pt: a recogniser, which knows no classes; this needs a classifier"
    for arguments in (["predict", str(path), str(data)], ["export", str(path), str(tmp_path / "out")]):
        assert main(arguments) == 2
        assert lack in capsys.readouterr().err
    assert evaluate(path, data, "--crops", "2") == 2
    assert "--crops 2: a recogniser takes whole clips" in capsys.readouterr().err
    (data / "test.ltr").write_text("A |\n")
    assert evaluate(path, data) == 2
    assert "test.ltr has 1 lines, but the manifest beside it has 6 clips" in capsys.readouterr().err
    classifier = Checkpoint.read(write_checkpoint(tmp_path / "c.pt", ["a", "b"]))
    with pytest.raises(Exception, match=r"c\.pt: a classifier, which knows no words; this needs a recogniser"):
        _ = classifier.units


def test_a_recogniser_is_described(tmp_path, capsys, write_recogniser):
    path = write_recogniser(tmp_path / "best.pt")
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["encoder"], facts["classes"]) == ("amae_ctc", "amae_audio_mae", None)
    assert facts["units"]["symbols"][4:] == ["|", "A", "B", "C"]
    assert set(facts["parameters"]) == {"encoder", "sub_steps", "head", "total"}
    assert main(["inspect", str(path)]) == 0
    assert "4 of ltr, which make words as post_process=letter: |, A, B, C" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["task_state"].clear(), "its entry task_state.units must be a section with labels"),
        (lambda content: content["task_state"]["units"]["symbols"].pop(), "has 7 units, and the model 8"),
        (lambda content: content["cfg"]["model"].update(num_units=9), "model.num_units is 9, but the weights have 8"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, data, capsys, write_recogniser, change, message):
    path = write_recogniser(tmp_path / "best.pt")
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    if "num_units is" in message:  # as the weights are checked after the units
        content["task_state"]["units"]["symbols"].append("D")
        torch.save(content, path)
    assert evaluate(path, data) == 2
    assert message in capsys.readouterr().err


def test_features_of_a_recogniser_verify_and_embed(tmp_path, data, write_recogniser):
    path = write_recogniser(tmp_path / "best.pt")
    model = load_model(path, "cpu")
    short, long = model.embed([data / "0.flac", data / "2.flac"])
    assert short.shape == long.shape == (32,)
    torch.testing.assert_close(model.embed(data / "0.flac"), short)
