"""``amae embed`` and ``amae predict`` as a user types them, and the same values from Python."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin import load_model
from amae_plugin.cli.main import main

CLASSES = ["bark", "meow", "moo", "Oink, loud"]


def run(command, *arguments):
    return main([command, *map(str, arguments), "--workers", "0", "--device", "cpu"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, write_checkpoint):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "pretraining": write_checkpoint(folder / "pretrained.pt", None),
        "classifier": write_checkpoint(folder / "classifier.pt", CLASSES, loss="cross_entropy"),
    }


@pytest.fixture
def clips(tmp_path):
    """Clips in a folder and a folder in it, of several lengths and rates, with a file that is no audio beside them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    (folder / "b").mkdir(parents=True)
    for name, rate, seconds in (("a.wav", 16_000, 0.5), ("b/c.flac", 8_000, 2.0), ("d.ogg", 44_100, 0.7)):
        soundfile.write(folder / name, rng.uniform(-0.5, 0.5, int(rate * seconds)), rate)
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_embed_to_one_file(checkpoints, clips, tmp_path, capsys, kind):
    out = tmp_path / "made" / "x.npz"
    assert run("embed", checkpoints[kind], clips, "--out", out, "--timestamps", "--batch-size", 3) == 0
    output, _ = capsys.readouterr()
    assert output == f"embeddings of 3 clips, 32 values each: {out}\n"
    found = np.load(out)
    assert set(found) == {"paths", "embeddings", "steps", "timestamps", "offsets"}
    assert found["paths"].tolist() == [str(clips / name) for name in ("a.wav", "b/c.flac", "d.ogg")]
    model = load_model(checkpoints[kind], device="cpu")
    offsets = found["offsets"]
    assert offsets.tolist() == [0, 3, 16, 21]
    for index, path in enumerate(found["paths"]):
        np.testing.assert_allclose(found["embeddings"][index], model.embed(path), rtol=1e-4, atol=1e-5)
        steps, timestamps = model.embed_timestamps(path)
        own = slice(offsets[index], offsets[index + 1])
        np.testing.assert_allclose(found["steps"][own], steps, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["timestamps"][own], timestamps)
    assert run("embed", checkpoints[kind], clips / "a.wav", clips / "d.ogg", "--out", out) == 0
    again = np.load(out)
    assert set(again) == {"paths", "embeddings"}
    np.testing.assert_allclose(again["embeddings"], found["embeddings"][[0, 2]], rtol=1e-4, atol=1e-5)


def test_embed_to_a_folder(checkpoints, clips, tmp_path):
    out = tmp_path / "out"
    assert run("embed", checkpoints["pretraining"], clips, "--out", out, "--timestamps") == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.npz")) == [
        "a.wav.npz",
        "b/c.flac.npz",
        "d.ogg.npz",
    ]
    model = load_model(checkpoints["pretraining"], device="cpu")
    found = np.load(out / "b" / "c.flac.npz")
    np.testing.assert_allclose(found["embedding"], model.embed(clips / "b" / "c.flac"), rtol=1e-4, atol=1e-5)
    assert found["steps"].shape == (13, 32)
    assert found["timestamps"].shape == (13,)
    assert run("embed", checkpoints["pretraining"], clips / "a.wav", "--out", out) == 0
    assert list(np.load(out / "a.wav.npz")) == ["embedding"]
    assert run("embed", checkpoints["pretraining"], clips, clips / "b" / "c.flac", "--out", out) == 0  # the same file


def test_embed_refuses_to_write_two_clips_to_one_file(checkpoints, clips, tmp_path, capsys):
    (clips / "b" / "a.wav").write_bytes((clips / "a.wav").read_bytes())
    assert run("embed", checkpoints["pretraining"], clips, clips / "b", "--out", tmp_path / "out") == 0
    arguments = (clips / "a.wav", clips / "b" / "a.wav", "--out", tmp_path / "out")
    assert run("embed", checkpoints["pretraining"], *arguments) == 2
    assert "a.wav would both be written to" in capsys.readouterr().err


def test_predict_on_the_terminal(checkpoints, clips, capsys):
    assert run("predict", checkpoints["classifier"], clips, "--top-k", 2) == 0
    output, _ = capsys.readouterr()
    model = load_model(checkpoints["classifier"], device="cpu")
    lines = []
    for name in ("a.wav", "b/c.flac", "d.ogg"):
        found = model.predict(clips / name, top_k=2)
        lines.append(f"{clips / name}: {', '.join(f'{label} {probability:.4f}' for label, probability in found)}")
    assert output.splitlines() == lines


@pytest.mark.parametrize("top_k", [2, 99])
def test_predict_to_csv_and_json(checkpoints, clips, tmp_path, capsys, top_k):
    out = tmp_path / "made" / "x.csv"
    assert run("predict", checkpoints["classifier"], clips, "--top-k", top_k, "--out", out) == 0
    assert capsys.readouterr().out == f"predictions of 3 clips: {out}\n"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = min(top_k, 4)
    assert list(rows[0]) == ["path", *(f"top{rank}{what}" for rank in range(1, shown + 1) for what in ("", "_score"))]
    model = load_model(checkpoints["classifier"], device="cpu")
    for row in rows:
        expected = model.predict(row["path"], top_k=top_k)
        assert [row[f"top{rank}"] for rank in range(1, shown + 1)] == [label for label, _ in expected]
        scores = [float(row[f"top{rank}_score"]) for rank in range(1, shown + 1)]
        np.testing.assert_allclose(scores, [probability for _, probability in expected], rtol=1e-4)
    assert run("predict", checkpoints["classifier"], clips, "--top-k", top_k, "--out", out.with_suffix(".json")) == 0
    content = json.loads(out.with_suffix(".json").read_text())
    assert [entry["path"] for entry in content] == [row["path"] for row in rows]
    for entry, row in zip(content, rows):
        assert [found["label"] for found in entry["predictions"]] == [row[f"top{n}"] for n in range(1, shown + 1)]
        assert entry["predictions"][0]["probability"] == pytest.approx(float(row["top1_score"]))


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_one_bad_file_of_a_folder(checkpoints, clips, tmp_path, capsys, command):
    soundfile.write(clips / "silent.wav", np.zeros(16_000), 16_000)
    (clips / "broken.mp3").write_bytes(b"broken" * 100)
    out = tmp_path / ("x.npz" if command == "embed" else "x.json")
    assert run(command, checkpoints["classifier"], clips, "--out", out) == 1
    output, error = capsys.readouterr()
    assert "of 3 clips" in output
    assert "left out, as they cannot be used: 2\n" in error
    assert f"\n  {clips / 'silent.wav'}: is silent: all its samples are equal\n" in error
    assert f"\n  {clips / 'broken.mp3'}: " in error
    assert out.exists()


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_what_cannot_be_done_at_all(checkpoints, clips, tmp_path, capsys, command):
    def refused(checkpoint, *paths, out=tmp_path / ("x.npz" if command == "embed" else "x.csv")):
        assert run(command, checkpoint, *paths, "--out", out) == 2
        output, error = capsys.readouterr()
        assert output == ""
        assert not (tmp_path / "x.npz").exists() and not (tmp_path / "x.csv").exists()
        return error.splitlines()[-1]

    model = checkpoints["classifier"]
    soundfile.write(tmp_path / "nan.wav", np.full(9000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.ones(300) * 0.1, 16_000)
    assert "nan.wav: holds samples that are not finite" in refused(model, tmp_path / "nan.wav")
    assert "short.wav: lasts 18.8 ms, which is less than one analysis window" in refused(model, tmp_path / "short.wav")
    assert (
        refused(model, tmp_path / "none.wav") == f"amae: cannot use {tmp_path / 'none.wav'}: No such file or directory"
    )
    assert "checkpoint" in refused(clips / "a.wav", clips)
    (tmp_path / "empty").mkdir()
    assert "no audio; looked for the extensions" in refused(model, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    suffix = "npz" if command == "embed" else "json"
    assert "cannot write" in refused(model, clips, out=tmp_path / "file" / f"x.{suffix}")


def test_predict_needs_a_classifier_and_a_format(checkpoints, clips, capsys):
    assert run("predict", checkpoints["pretraining"], clips) == 2
    assert "a pretraining checkpoint, which knows no classes; fine-tune it first" in capsys.readouterr().err
    assert run("predict", checkpoints["classifier"], clips, "--out", "x.txt") == 2
    assert "--out x.txt: its name must end in .csv or .json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("task_state", "classes", "does not hold the names of its classes"),
        ("criterion", "loss", "its setting criterion.loss is None"),
    ],
)
def test_predict_finds_out_before_the_work_what_a_checkpoint_lacks(checkpoints, tmp_path, capsys, part, key, message):
    content = torch.load(checkpoints["classifier"])
    del (content if part in content else content["cfg"])[part][key]
    torch.save(content, tmp_path / "x.pt")
    assert run("predict", tmp_path / "x.pt", tmp_path / "none.wav") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["checkpoint", "clips", "out"])
def test_an_empty_argument_is_not_the_current_folder(checkpoints, clips, tmp_path, capsys, monkeypatch, place):
    monkeypatch.chdir(clips)
    given = {"checkpoint": checkpoints["pretraining"], "clips": clips, "out": tmp_path / "out", place: ""}
    assert run("embed", given["checkpoint"], given["clips"], "--out", given["out"]) == 2
    assert "an argument is empty" in capsys.readouterr().err
    assert len(list(clips.iterdir())) == 4


def test_decoding_in_other_processes_gives_the_same(checkpoints, clips, tmp_path):
    for workers in ("0", "2"):
        out = tmp_path / f"{workers}.npz"
        assert (
            main(["embed", str(checkpoints["pretraining"]), str(clips), "--out", str(out), "--workers", workers]) == 0
        )
    one, other = (np.load(tmp_path / f"{workers}.npz")["embeddings"] for workers in ("0", "2"))
    torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))


@pytest.mark.parametrize("command", ["predict", "embed"])
@pytest.mark.parametrize("modalities", [["audio"], ["audio", "image"]])
def test_a_model_that_also_sees_is_told_to_hear_alone(
    command, modalities, clips, tmp_path, capsys, write_checkpoint, seeing
):
    path = write_checkpoint(
        tmp_path / "seeing.pt", CLASSES, encoder={**seeing, "modalities": modalities}, pooling="token_mean"
    )
    out = ["--out", tmp_path / "x.npz"] if command == "embed" else []
    assert run(command, path, clips / "a.wav", *out) == 0
    told = f"{path}: takes sound and picture, and is given the sound alone" in capsys.readouterr().err
    assert told == ("image" in modalities)
