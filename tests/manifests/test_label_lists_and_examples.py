import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from amae_plugin.corpora.folder import build
from amae_plugin.corpora.speech_commands import TWELVE, WORDS
from amae_plugin.data.labels import Labels, read_names
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.data.trials import Trials

MANIFESTS = Path(__file__).parents[2] / "manifests"


def test_label_lists():
    assert read_names(MANIFESTS / "speech_commands_v2_35.txt") == WORDS
    assert read_names(MANIFESTS / "speech_commands_v1_12.txt") == TWELVE
    assert (len(WORDS), len(TWELVE)) == (35, 12)
    esc50 = read_names(MANIFESTS / "esc50.txt")
    # Named in the publisher's file names: 1-100032-A-0, 1-100038-A-14, 1-100210-A-36, 1-19026-A-43 and 1-18810-A-49.
    assert [esc50[i] for i in (0, 14, 36, 43, 49)] == [
        "dog",
        "chirping_birds",
        "vacuum_cleaner",
        "car_horn",
        "hand_saw",
    ]
    assert len(esc50) == 50


@pytest.mark.parametrize("name", ["speech_commands_v1_12", "voxceleb1"])
def test_examples_load(name):
    folder = MANIFESTS / "examples" / name
    manifest = Manifest.read(folder / "train.tsv")
    labels = Labels.read(folder / "train.lbl", folder / "labels.txt", len(manifest))
    assert len(labels) == len(manifest) > 1


def test_the_command_that_joins_manifests(tmp_path):
    entries = {"a": [("x/1.wav:5:10", 10, "1.png"), ("/b c/2.wav", 20, "/2")], "b": [("3.mp4", 30, "3.mp4:0:10")]}
    for name, rows in entries.items():
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name / "train.tsv", tmp_path / name, rows)
    command = re.search(r"\(echo /; .*? > train\.tsv\n", (MANIFESTS / "README.md").read_text(), re.DOTALL)
    subprocess.run(["bash", "-c", command[0]], cwd=tmp_path, check=True)
    both, *parts = (Manifest.read(tmp_path / name / "train.tsv") for name in (".", "a", "b"))
    assert list(both) == [clip for part in parts for clip in part]
    pictures = [part.picture(index) for part in parts for index in range(len(part))]
    assert [both.picture(index) for index in range(3)] == pictures
    assert both.sizes.tolist() == [10, 20, 30]


def test_the_code_that_reads_a_table_of_labels(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("a 1.wav", "2.wav", "3.wav"):
        soundfile.write(tmp_path / "audio" / name, [0.1] * 800, 16_000)
    table = '\ufefflabel,filename\r\nrain,a 1.wav\r\n"dog bark","2.wav"\r\nrain,3.wav\r\n'
    (tmp_path / "labels.csv").write_bytes(table.encode())  # as spreadsheets write it
    (code,) = re.findall(r"```python\n(.*?)```", (MANIFESTS / "README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    build(tmp_path / "classes", tmp_path / "out", labels=True, valid_fraction=0)
    manifest = Manifest.read(tmp_path / "out" / "train.tsv")
    names = [manifest.name(index) for index in range(len(manifest))]
    assert sorted(names) == ["dog bark/2.wav", "rain/3.wav", "rain/a 1.wav"]


def test_what_the_examples_show():
    manifest = Manifest.read(MANIFESTS / "examples" / "speech_commands_v1_12" / "train.tsv")
    assert [manifest[i].kind for i in range(len(manifest))] == ["file", "file", "file", "segment"]
    trials = MANIFESTS / "examples" / "voxceleb1" / "trials.txt"
    assert Trials.read(trials, Manifest.read(trials.with_suffix(".tsv"))).same.tolist() == [True, False]
