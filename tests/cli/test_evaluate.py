"""``amae evaluate`` on real files; its figures are computed again here from what it wrote for each clip."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import LogMel, ModelInput
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.evaluation.classification import Evaluation
from amae_plugin.evaluation.report import summary
from amae_plugin.metrics.classification import multi_label, single_label
from amae_plugin.metrics.verification import equal_error_rate

CLASSES = ["bark", "meow", "moo", "unheard"]
PNG = b"\x89PNG"
TABLES = {"metrics.md", "metrics.csv", "metrics.tex"}
TRIALS = {"trials.md", "trials.csv", "trials.tex"}


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def evaluate(checkpoint, data, *arguments):
    return main(["evaluate", str(checkpoint), "--data", str(data), "--workers", "0", "--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def single(tmp_path_factory, write_split):
    """Thirty clips, every fifth of them in need of cropping; no clip is of the last class."""
    clips = [([CLASSES[index % 3]], 1.5 if index % 5 == 0 else 0.5, 16_000) for index in range(30)]
    return write_split(tmp_path_factory.mktemp("single"), clips, CLASSES)


@pytest.fixture(scope="module")
def several(tmp_path_factory, write_split):
    """Twenty clips of one to three of the classes, but for the last one, with a table of display names."""
    rng = np.random.default_rng(5)
    clips = [(rng.choice(CLASSES[:3], rng.integers(1, 3), replace=False).tolist(), 0.5, 16_000) for _ in range(20)]
    folder = write_split(tmp_path_factory.mktemp("several"), clips, CLASSES)
    (folder / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,bark,"Dog, barking"\n1,meow,Cat\n2,moo,Cow\n3,unheard,Silence\n'
    )
    return folder


def test_one_label_a_clip(single, tmp_path, capsys, write_checkpoint):
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", CLASSES)
    copy = tmp_path / "elsewhere" / "copy.json"
    assert evaluate(checkpoint, single, "--batch-size", "7", "--json", str(copy)) == 0
    out = tmp_path / "run" / "evaluation" / "test"
    assert {path.name for path in out.iterdir()} == {*TABLES, "metrics.json", "predictions.csv", "confusion.png"}
    assert (out / "confusion.png").read_bytes().startswith(PNG)
    metrics = json.loads((out / "metrics.json").read_text())
    assert json.loads(copy.read_text()) == metrics
    assert metrics["checkpoint"] == str(checkpoint)
    assert metrics["clips_longer_than_input"] == 6
    assert (metrics["data"], metrics["split"], metrics["crops"]) == (str(single), "test", 1)
    assert (metrics["clips"], metrics["multi_label"], metrics["skipped"]) == (30, False, [])

    predictions = rows_of(out / "predictions.csv")
    assert [row["path"] for row in predictions] == [f"{index}.flac" for index in range(30)]
    assert [row["labels"] for row in predictions] == [CLASSES[index % 3] for index in range(30)]
    for row in predictions:
        scores = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert row["predicted"] == max(scores, key=scores.get)
        assert float(row["score"]) == max(scores.values())
    pairs = [(row["labels"], row["predicted"]) for row in predictions]
    assert metrics["accuracy"] == pytest.approx(sum(one == other for one, other in pairs) / 30)
    confusion = [[pairs.count((label, chosen)) for chosen in CLASSES] for label in CLASSES]
    assert metrics["confusion"] == confusion
    assert 0 < metrics["accuracy"] < 1  # so that something was tested
    f1 = []
    for index, name in enumerate(CLASSES[:3]):
        chosen = sum(row[index] for row in confusion)
        f1.append(2 * confusion[index][index] / (10 + chosen))
        found = metrics["classes"][index]
        assert (found["name"], found["clips"], found["recall"]) == (name, 10, confusion[index][index] / 10)
        assert found["f1"] == pytest.approx(f1[-1])
        assert found["precision"] == pytest.approx(confusion[index][index] / max(chosen, 1))
    nothing = dict.fromkeys(("precision", "recall", "f1"))
    assert metrics["classes"][3] == {"name": "unheard", "display_name": "unheard", "clips": 0, **nothing}
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 3)

    output, _ = capsys.readouterr()
    assert "test: 30 clips, 4 classes" in output
    assert "6 clips are longer than the input or fill it, and are scored by their centre; --crops 3" in output
    for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        low, high = metrics["intervals"][key]
        assert low < metrics[key] < high
        row = [name, f"{metrics[key]:.4f}", f"{low:.4f} to {high:.4f}", "30"]
        assert " ".join(row) in " ".join(output.split())
        assert row in [list(found.values()) for found in rows_of(out / "metrics.csv")]
    assert (out / "metrics.md").read_text().startswith("| measure ")
    assert r"\toprule" in (out / "metrics.tex").read_text()
    assert "1 class has no clip in this split and is left out of the means: unheard" in output
    worst = min(range(3), key=f1.__getitem__)
    lines = output.splitlines()
    table = lines.index(next(line for line in lines if line.startswith("worst classes")))
    assert [lines[table + 1].split()[place] for place in (0, 3, 4)] == [CLASSES[worst], f"{f1[worst]:.4f}", "10"]
    most = max(
        ((confusion[one][other], one, other) for one in range(4) for other in range(4) if one != other),
        key=lambda entry: entry[0],
    )
    table = lines.index(next(line for line in lines if line.startswith("most frequent confusions")))
    assert int(lines[table + 1].split()[-2]) == most[0]
    assert str(copy) in lines[-1]


@pytest.mark.parametrize("wrong", [0, 2])
def test_no_perfect_class_is_among_the_worst(wrong):
    """Of twelve classes with a clip each, whose clip two confuse or none."""
    targets = np.eye(12, dtype=bool)
    scores = targets.astype(float)
    scores[:wrong] = scores[:wrong][::-1]
    names = tuple(f"class {index}" for index in range(12))
    for measures in (multi_label(scores, targets), single_label(scores, targets.argmax(axis=1))):
        result = Evaluation(
            *(Path("a.pt"), Path("data"), "test", 1, 1, ("audio",), ("audio",), names, names, names),
            *(np.ones(12, int), scores, targets, measures, {}),
        )
        table = summary(result).partition("worst classes")[2].split("\n\n")[0]
        listed = [line for line in table.splitlines() if line.startswith("class ")]
        assert sorted(line.split("  ")[0] for line in listed) == list(names[:wrong])


def average_precision(scores, positive):
    """Mean over the positives of the share of positives among what scores at least as high; scores all differ."""
    assert len(set(scores)) == len(scores)
    order = np.argsort(scores)[::-1]
    hits = np.asarray(positive)[order]
    return float(np.mean([hits[: place + 1].mean() for place in np.flatnonzero(hits)]))


def test_several_labels_a_clip(several, tmp_path, capsys, write_checkpoint):
    checkpoint = write_checkpoint(tmp_path / "last.pt", CLASSES, multi_label=True)
    assert evaluate(checkpoint, several) == 0
    out = tmp_path / "evaluation" / "test"  # the checkpoint lies in no folder of checkpoints
    assert {path.name for path in out.iterdir()} == {*TABLES, "metrics.json", "predictions.csv", "class_ap.png"}
    assert (out / "class_ap.png").read_bytes().startswith(PNG)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["multi_label"] is True
    assert "confusion" not in metrics
    predictions = rows_of(out / "predictions.csv")
    assert len(predictions) == 20
    precisions, areas = [], []
    for index, name in enumerate(CLASSES[:3]):
        scores = np.array([float(row[f"p({name})"]) for row in predictions])
        positive = np.array([name in row["labels"].split(",") for row in predictions])
        precisions.append(average_precision(scores, positive))
        areas.append(float((scores[positive][:, None] > scores[~positive]).mean()))
        entry = metrics["classes"][index]
        assert (entry["name"], entry["clips"]) == (name, positive.sum())
        assert entry["average_precision"] == pytest.approx(precisions[-1])
        assert entry["auc"] == pytest.approx(areas[-1])
    assert metrics["mAP"] == pytest.approx(np.mean(precisions))
    assert metrics["mAUC"] == pytest.approx(np.mean(areas))
    assert metrics["d_prime"] == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(float(np.mean(areas))))
    silence = {"name": "unheard", "display_name": "Silence", "clips": 0, "average_precision": None, "auc": None}
    assert metrics["classes"][3] == silence
    assert metrics["classes"][0]["display_name"] == "Dog, barking"
    for row in predictions:
        scores = {name: float(row[f"p({name})"]) for name in CLASSES}
        chosen = sorted((name for name in CLASSES if scores[name] >= 0.5), key=scores.get, reverse=True)
        assert row["predicted"] == ",".join(chosen)
        assert row["score"] == ",".join(row[f"p({name})"] for name in chosen)
        assert 0 < len(chosen) < len(CLASSES)

    output = capsys.readouterr().out
    for name, key in (("mAP", "mAP"), ("mAUC", "mAUC"), ("d'", "d_prime")):
        assert f"{name} {metrics[key]:.4f} {metrics['intervals'][key][0]:.4f} to" in " ".join(output.split())
    best = ["Dog, barking", "Cat", "Cow"][int(np.argmax(precisions))]
    lines = output.splitlines()
    assert lines[lines.index(next(line for line in lines if "best first" in line)) + 1].startswith(best)
    assert "left out of the means: Silence" in output


def test_of_many_classes_the_top_ten_are_written(tmp_path, capsys, write_checkpoint, write_split):
    classes = [f"class{index}" for index in range(101)]
    data = write_split(tmp_path / "data", [([classes[index]], 0.3, 16_000) for index in range(6)], classes, "valid")
    checkpoint = write_checkpoint(tmp_path / "last.pt", classes, loss="cross_entropy")
    assert evaluate(checkpoint, data, "--split", "valid", "--out", str(tmp_path / "out")) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "confusion" not in metrics
    assert len(metrics["classes"]) == 101
    assert (
        "95 classes have no clip in this split and are left out of the means: class6; class7; "
        in capsys.readouterr().out
    )
    for row in rows_of(tmp_path / "out" / "predictions.csv"):
        assert list(row)[4:8] == ["top1", "top1_score", "top2", "top2_score"]
        assert len(row) == 4 + 20
        assert (row["predicted"], row["score"]) == (row["top1"], row["top1_score"])
        scores = [float(row[f"top{rank}_score"]) for rank in range(1, 11)]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1  # a softmax


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_probabilities_are_averaged_over_pieces(single, tmp_path, capsys, write_checkpoint, loss):
    path = write_checkpoint(tmp_path / "last.pt", CLASSES, loss=loss)
    assert evaluate(path, single, "--crops", "3") == 0
    metrics = json.loads((tmp_path / "evaluation" / "test" / "metrics.json").read_text())
    assert (metrics["crops"], metrics["clips"], metrics["clips_longer_than_input"]) == (3, 30, 6)
    assert (
        "\n6 clips are longer than the input or fill it, and are scored each in 3 pieces\n" in capsys.readouterr().out
    )
    model = Checkpoint.read(path).model()
    model_input = ModelInput(LogMel(num_mel_bins=64), target_length=64, mean=-6.0, std=4.0)
    manifest = Manifest.read(single / "test.tsv")
    datasets = [AudioDataset(manifest, model_input, crop_position=position) for position in (0.0, 0.5, 1.0)]
    predictions = rows_of(tmp_path / "evaluation" / "test" / "predictions.csv")
    for clip in (0, 1, 5):
        with torch.no_grad():
            logits = model(torch.stack([dataset[clip]["source"] for dataset in datasets]))["logits"].double()
        scores = logits.softmax(1) if loss == "cross_entropy" else logits.sigmoid()
        found = [float(predictions[clip][f"p({name})"]) for name in CLASSES]
        np.testing.assert_allclose(found, scores.mean(0), atol=1e-5)


def test_clips_that_cannot_be_decoded(single, tmp_path, capsys, write_checkpoint, write_split):
    data = write_split(tmp_path / "data", [([CLASSES[index % 3]], 0.3, 16_000) for index in range(6)], CLASSES)
    (data / "2.flac").unlink()
    checkpoint = write_checkpoint(tmp_path / "last.pt", CLASSES)
    assert evaluate(checkpoint, data) == 2
    assert f"amae: cannot use {data / '2.flac'}: No such file" in capsys.readouterr().err
    assert evaluate(checkpoint, data, "--skip-bad-audio", "--workers", "100000") == 0  # no more than clips are started
    output, errors = capsys.readouterr()
    assert "left out, as they cannot be decoded: 1 clips\n  2.flac: No such file or directory\n" in errors
    assert "test: 5 clips" in output
    folder = tmp_path / "evaluation" / "test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["clips"] == 5
    assert metrics["skipped"] == [{"path": "2.flac", "reason": "No such file or directory"}]
    assert [row["path"] for row in rows_of(folder / "predictions.csv")] == [
        f"{index}.flac" for index in (0, 1, 3, 4, 5)
    ]


@pytest.fixture(scope="module")
def trials(tmp_path_factory, write_split):
    """Eight clips and all pairs of the first seven; those whose numbers have the same parity are of one speaker."""
    folder = tmp_path_factory.mktemp("trials")
    write_split(folder, [((), 1.2 if index < 2 else 0.5, 16_000) for index in range(8)], split="trials")
    lines = [f"{int((a - b) % 2 == 0)} {a}.flac {b}.flac\n" for a in range(7) for b in range(a)]
    (folder / "trials.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["classifier", "pretraining"])
def test_trials(trials, tmp_path, capsys, write_checkpoint, kind):
    path = write_checkpoint(tmp_path / "run" / "checkpoints" / "x.pt", CLASSES if kind == "classifier" else None)
    assert evaluate(path, trials, "--trials", "--crops", "2") == 0
    out = tmp_path / "run" / "evaluation" / "trials"
    assert {path.name for path in out.iterdir()} == {"trials.json", "scores.csv", *TRIALS}
    model = Checkpoint.read(path).model()
    model_input = ModelInput(LogMel(num_mel_bins=64), target_length=64, mean=-6.0, std=4.0)
    manifest = Manifest.read(trials / "trials.tsv")
    first, last = (AudioDataset(manifest, model_input, crop_position=position) for position in (0.0, 1.0))
    features = []
    for clip in range(7):
        source = torch.stack([dataset[clip]["source"] for dataset in (first, last)])
        with torch.no_grad():
            if kind == "classifier":
                found = model(source)["features"]
            else:
                tokens, _ = model.extract_features(source)
                found = tokens[:, 1:].mean(1)
        features.append(found.mean(0).double().numpy())
    rows = rows_of(out / "scores.csv")
    assert len(rows) == 21
    for row in rows:
        a, b = (features[int(row[key].removesuffix(".flac"))] for key in ("first", "second"))
        assert float(row["score"]) == pytest.approx(a @ b / math.sqrt(a @ a * (b @ b)), abs=1e-5)
    figures = json.loads((out / "trials.json").read_text())
    assert (figures["trials"], figures["clips"], figures["same_speaker"]) == (21, 7, 9)
    expected = equal_error_rate([float(row["score"]) for row in rows], [int(row["same"]) for row in rows])
    assert figures["equal_error_rate"] == pytest.approx(expected)
    output, _ = capsys.readouterr()
    assert f"equal error rate  {expected:.4f}" in output
    assert "21 trials of 7 clips, 9 of one speaker" in output


def test_trials_with_a_clip_that_cannot_be_decoded(tmp_path, capsys, write_checkpoint, write_split):
    data = write_split(tmp_path / "data", [((), 0.3, 16_000)] * 4, split="trials")
    (data / "trials.txt").write_text("1 0.flac 1.flac\n0 0.flac 2.flac\n0 3.flac 1.flac\n")
    (data / "3.flac").write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "last.pt", None)
    assert evaluate(checkpoint, data, "--trials") == 2
    assert "3.flac" in capsys.readouterr().err
    assert evaluate(checkpoint, data, "--trials", "--skip-bad-audio") == 0
    assert "left out: 1 trials with a clip that cannot be decoded" in capsys.readouterr().out
    figures = json.loads((tmp_path / "evaluation" / "trials" / "trials.json").read_text())
    assert (figures["trials"], figures["clips"], figures["left_out"]) == (2, 3, 1)
    (data / "2.flac").unlink()
    assert evaluate(checkpoint, data, "--trials", "--skip-bad-audio") == 2
    assert "trials.txt: needs trials of both kinds, 1 and 0, and there are 1 and 0" in capsys.readouterr().err


def test_features_without_direction_are_refused(trials, tmp_path, capsys, write_checkpoint):
    path = write_checkpoint(tmp_path / "last.pt", CLASSES)
    content = torch.load(path)
    content["model"]["fc_norm.weight"].zero_()
    torch.save(content, path)
    assert evaluate(path, trials, "--trials") == 2
    assert "the features of 0.flac are all 0" in capsys.readouterr().err


def refused(capsys, *arguments):
    assert evaluate(*arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("amae: ")
    return error


def test_classes_must_be_those_of_the_training(single, tmp_path, capsys, write_checkpoint):
    other = write_checkpoint(tmp_path / "other.pt", ["bark", "meow", "oink"])
    error = refused(capsys, other, single)
    assert f"{single / 'labels.txt'}: not the 3 classes that {other} was trained with" in error
    assert "it lacks oink; only it has moo, unheard;" in error
    turned = write_checkpoint(tmp_path / "turned.pt", ["bark", "moo", "meow", "unheard"])
    assert "the order differs, first on line 2: meow" in refused(capsys, turned, single)
    many = write_checkpoint(tmp_path / "many.pt", [*CLASSES, *(f"extra{index}" for index in range(12))])
    assert ", extra8, extra9 and 2 more;" in refused(capsys, many, single)


def test_checkpoints_that_cannot_be_evaluated(single, several, tmp_path, capsys, write_checkpoint):
    assert "no such" in refused(capsys, tmp_path / "missing.pt", single).lower()
    assert not (tmp_path / "evaluation").exists()
    pretrained = write_checkpoint(tmp_path / "pretrained.pt", None)
    error = refused(capsys, pretrained, single)
    assert "a pretraining checkpoint, which knows no classes; fine-tune it first" in error
    assert "--trials" in error
    path = write_checkpoint(tmp_path / "last.pt", CLASSES)
    content = torch.load(path)
    torch.save({**content, "task_state": {}}, tmp_path / "nameless.pt")
    assert "does not hold the names of its classes" in refused(capsys, tmp_path / "nameless.pt", single)
    content["cfg"]["criterion"] = {"_name": "mse"}
    torch.save(content, tmp_path / "criterion.pt")
    assert "criterion.loss is None" in refused(capsys, tmp_path / "criterion.pt", single)
    assert "several need a multi-label task" in refused(capsys, path, several)


def test_data_that_cannot_be_evaluated(single, tmp_path, capsys, write_checkpoint, seeing):
    checkpoint = write_checkpoint(tmp_path / "last.pt", CLASSES)
    error = refused(capsys, checkpoint, single, "--split", "valid")
    assert f"{single / 'valid.tsv'}: cannot read the manifest" in error and "its folder has test.tsv;" in error
    assert "labels.txt: cannot read the labels" in refused(capsys, checkpoint, tmp_path / "nowhere")
    error = refused(capsys, checkpoint, single, "--trials")
    assert f"{single}: has no trials.tsv; `amae manifest voxceleb1 --trials FILE` writes it" in error
    empty = tmp_path / "empty"
    empty.mkdir()
    write_manifest(empty / "test.tsv", ".", [])
    (empty / "test.lbl").write_text("")
    (empty / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    assert "test.tsv: holds no clips" in refused(capsys, checkpoint, empty)
    encoder = {**seeing, "modalities": ["audio", "image"]}
    path = write_checkpoint(tmp_path / "seeing.pt", CLASSES, encoder=encoder, pooling="avgtok")
    error = refused(capsys, path, single)
    assert "test.tsv: lists no pictures" in error and "--modalities audio does without" in error
    # Of two values, the last one counts.
    assert "device tpu: must be auto, cpu, cuda or cuda:N" in refused(capsys, checkpoint, single, "--device", "tpu")


def test_results_that_cannot_be_written_are_refused_before_the_work(single, tmp_path, capsys, write_checkpoint):
    checkpoint = write_checkpoint(tmp_path / "last.pt", CLASSES)
    (tmp_path / "file").write_text("")
    error = refused(capsys, checkpoint, single, "--out", str(tmp_path / "file" / "out"))
    assert f"{tmp_path / 'file' / 'out'}: cannot write there (Not a directory)" in error
    assert "scoring" not in error


@pytest.mark.parametrize("arguments", [["--crops", "0"], ["--split", "valid", "--trials"], ["--batch-size", "many"]])
def test_arguments_that_make_no_sense(tmp_path, arguments):
    with pytest.raises(SystemExit) as caught:
        evaluate(tmp_path / "last.pt", tmp_path, *arguments)
    assert caught.value.code == 2
