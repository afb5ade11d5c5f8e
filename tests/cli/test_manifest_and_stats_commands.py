import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.main import main
from amae_plugin.data.audio import load_clip
from amae_plugin.data.log_mel import LogMel, SlaneyLogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.recipes import override

CONFIG_DIR = Path(__file__).parents[2] / "config"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for index in range(20):
        samples = rng.normal(0, 10.0 ** rng.uniform(-3, -1), rng.integers(4_000, 12_000))
        soundfile.write(tree / f"{index}.wav", samples, 16_000)
    return tree


@pytest.fixture(scope="module")
def manifests(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("manifests")
    assert main(["manifest", "folder", str(tree), "--out", str(out)]) == 0
    return out


def test_manifest_folder_says_what_it_did_and_what_comes_next(tree, tmp_path, capsys, monkeypatch):
    (tree / "broken.wav").write_bytes(b"broken" * 50)
    monkeypatch.chdir(tmp_path)
    try:
        arguments = ["manifest", "folder", str(tree), "--out", "out", "--valid-fraction", "0.25", "--workers", "2"]
        assert main(arguments) == 0
    finally:
        (tree / "broken.wav").unlink()
    output, _ = capsys.readouterr()
    out = tmp_path / "out"
    assert "files: 20 (train 15, valid 5)" in output
    assert "16000 Hz (20)" in output
    assert f"unreadable: 1, listed with reasons in {out.relative_to(tmp_path)}/unreadable.tsv" in output
    assert f"--config-name pretrain_audio_mae_tiny task.data={out} task.mean=auto task.std=auto\n" in output
    assert Manifest.read(out / "train.tsv").root == str(tree)


def test_what_comes_next_can_be_typed_whatever_the_folder_is_called(tree, tmp_path, capsys):
    out = tmp_path / "a=b, (c) Übung's"
    assert main(["manifest", "folder", str(tree), "--out", str(out)]) == 0
    training = capsys.readouterr().out.splitlines()[-1]
    assert override("task.data", out) in shlex.split(training)


def test_a_folder_without_audio_is_a_message_not_a_traceback(tmp_path, capsys):
    assert main(["manifest", "folder", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no audio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workers", "front_end", "options"),
    [("0", LogMel(), []), ("2", LogMel(), []), ("0", SlaneyLogMel(), ["--front-end", "slaney"])],
)
def test_stats_are_those_of_all_real_frames(manifests, tmp_path, capsys, workers, front_end, options):
    figures_path = tmp_path / "figures.json"
    options = [*options, "--clips", "0", "--workers", workers, "--json", str(figures_path)]
    assert main(["stats", str(manifests), *options]) == 0
    manifest = Manifest.read(manifests / "train.tsv")
    values = torch.cat([front_end(load_clip(manifest[i])) for i in range(len(manifest))]).double()
    figures = json.loads(figures_path.read_text())
    assert figures["mean"] == pytest.approx(values.mean().item(), abs=1e-5)
    assert figures["std"] == pytest.approx(values.std(unbiased=False).item(), abs=1e-5)
    assert (figures["clips"], figures["frames"], figures["skipped"]) == (19, len(values), 0)
    assert f"task.mean={figures['mean']:.7g} task.std={figures['std']:.7g}" in capsys.readouterr().out


def test_stats_of_a_sample_of_a_split(manifests, tmp_path, capsys):
    path = tmp_path / "figures.json"
    arguments = [str(manifests / "train.tsv"), "--clips", "5", "--target-length", "10", "--workers", "0"]
    assert main(["stats", *arguments, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["frames"] == 50
    assert main(["stats", str(manifests), "--split", "valid", "--workers", "0"]) == 0
    assert main(["stats", str(manifests), "--split", "test", "--workers", "0"]) == 2
    assert "test.tsv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "same"),
    [
        ("pretrain_audio_mae_tiny", ["--target-length", "128"]),
        ("pretrain_m2d_tiny", ["--target-length", "128", "--front-end", "slaney"]),
        ("finetune_audio_mae_as20k", ["--target-length", "1024"]),
    ],
)
def test_stats_of_a_recipe_are_those_of_its_front_end_and_length(manifests, tmp_path, recipe, same):
    found = []
    for options in (["--recipe", recipe, "--config-dir", str(CONFIG_DIR)], same):
        command = ["stats", str(manifests), *options, "--workers", "0", "--json", str(tmp_path / "stats.json")]
        assert main(command) == 0
        found.append(json.loads((tmp_path / "stats.json").read_text()))
    assert found[0] == found[1]


def test_figures_that_cannot_be_written_are_not_measured(manifests, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("amae_plugin.data.statistics.measure", None)
    path = tmp_path / "none" / "figures.json"
    assert main(["stats", str(manifests), "--json", str(path)]) == 2
    message = f"amae: {path}: cannot write there (No such file or directory); make the folder first\n"
    assert capsys.readouterr().err == message
    assert main(["stats", str(manifests), "--json", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot write there (Is a directory)" in capsys.readouterr().err


def test_manifests_that_cannot_be_written_are_not_made(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("amae_plugin.corpora.folder.read_headers", None)
    (tmp_path / "file").touch()
    assert main(["manifest", "folder", str(tree), "--out", str(tmp_path / "file" / "out")]) == 2
    assert f"{tmp_path / 'file' / 'out'}: cannot write the manifests there (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--clips", "--target-length", "--seed"])
def test_stats_refuse_negative_numbers(manifests, option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["stats", str(manifests), option, "-1"])
    assert stop.value.code == 2
    assert "more, not -1" in capsys.readouterr().err


def test_stats_take_far_more_than_there_is(manifests, capsys):
    many = ["--workers", "100000", "--target-length", "1000000000", "--clips", "1000000000"]
    assert main(["stats", str(manifests), *many]) == 0
    with pytest.raises(SystemExit):
        main(["stats", str(manifests), "--target-length", "1" + 20 * "0"])
    assert "must be at most 1,000,000,000" in capsys.readouterr().err


def test_stats_count_unreadable_clips(tree, tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(f"{tree}\n0.wav\t4000\nmissing.wav\t4000\n")
    assert main(["stats", str(tmp_path), "--workers", "0"]) == 0
    assert "1 clips of 2" in capsys.readouterr().out
    (tmp_path / "train.tsv").write_text(f"{tree}\nmissing.wav\t4000\n")
    assert main(["stats", str(tmp_path), "--workers", "0"]) == 2
    assert "the first: cannot use" in capsys.readouterr().err
