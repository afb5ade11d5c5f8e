"""The whole demo, shrunk: real speech, real training, real pictures."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.run import main, run
from amae_plugin.demo.settings import Demo
from amae_plugin.demo.words import SPEAKERS
from amae_plugin.errors import UserError
from amae_plugin.runs.training import read_losses, read_probes

CONFIG_DIR = Path(__file__).parents[2] / "config"
HELD_OUT = [speaker for speaker in SPEAKERS if speaker.split == "valid"][:2]
VOICES = [
    *[speaker for speaker in SPEAKERS if speaker.split == "train"][:4],
    *HELD_OUT,
    *[speaker for speaker in SPEAKERS if speaker.split == "test"][:2],
]
SMALL = (
    "optimization.max_update=12",
    "task.clips_per_update=4",
    "dataset.batch_size=4",
    "dataset.validate_interval_updates=4",
    "checkpoint.save_interval_updates=4",
    "lr_scheduler.warmup_updates=2",
    "common.log_interval=1",
    "task.picture_interval=0",
    "task.probe_interval=6",
    "model.embed_dim=48",
    "model.depth=1",
    "model.decoder_embed_dim=32",
    "model.decoder_depth=2",
)
SMALL_FINE_TUNING = (
    "task.clips_per_update=4",
    "dataset.batch_size=4",
    "dataset.validate_interval_updates=0",
    "checkpoint.save_interval_updates=0",
    "lr_scheduler.warmup_updates=1",
    "common.log_interval=1",
)

FRACTIONS = {1.0: 6, 0.25: 4}


def demo(root: Path, overrides: tuple[str, ...] = SMALL, fractions: Mapping[float, int] = FRACTIONS) -> Demo:
    return Demo(
        root,
        CONFIG_DIR,
        clips_per_word=16,
        words=("cat", "seven"),
        speakers=VOICES,
        fractions=fractions,
        overrides=overrides,
        fine_tuning_overrides=SMALL_FINE_TUNING,
        seed=2,
    )


def log_of_pretraining(root: Path) -> Path:
    return root / "pretraining" / "output.log"


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished demo's folder, and what it printed."""
    root = tmp_path_factory.mktemp("demo") / "Démo, a=b (1)"
    with redirect_stdout(io.StringIO()) as printed:
        run(demo(root))
    return root, printed.getvalue()


def test_everything_is_there(first: tuple[Path, str]) -> None:
    root, printed = first
    pictures = ("loss.png", "reconstruction.png", "accuracy.png")
    for name in ("pretraining/checkpoints/checkpoint_last.pt", "index.html", *pictures):
        assert (root / name).stat().st_size > 10_000
        assert str(root / name) in printed
    assert len(re.findall(r"^-- \d+ s$", printed, re.M)) == 6, "each step says how long it took"
    for command in ("fairseq-hydra-train", "amae manifest folder", "from scratch"):
        assert command in printed


def test_held_out_voices_are_not_trained_on(first: tuple[Path, str]) -> None:
    root, _ = first
    voices = {}
    for split in ("train", "valid"):
        manifest = Manifest.read(root / "manifests" / f"{split}.tsv")
        voices[split] = {Path(manifest.name(i)).name.split("_")[0] for i in range(len(manifest))}
    assert voices["valid"] == {speaker.hash for speaker in HELD_OUT}
    assert not voices["valid"] & voices["train"]


def test_the_classes_are_the_words_that_are_spoken(first: tuple[Path, str]) -> None:
    root, _ = first
    last = root / "fine-tuning" / "pretrained_100"
    checkpoint = Checkpoint.read(last / "checkpoints" / "checkpoint_last.pt")
    assert checkpoint.task_state["classes"] == ["cat", "seven"]
    assert checkpoint.config["common"]["seed"] == 2
    measures = json.loads((last / "evaluation" / "test" / "metrics.json").read_text())
    assert [(each["name"], each["clips"]) for each in measures["classes"]] == [("cat", 4), ("seven", 4)]


def test_losses_are_those_logged(first: tuple[Path, str]) -> None:
    root, printed = first
    losses = read_losses(log_of_pretraining(root))
    assert [update for update, _ in losses["training"]] == list(range(1, 13))
    assert [update for update, _ in losses["validation"]] == [4, 8, 12]
    assert losses["validation"][-1][1] < losses["validation"][0][1]
    assert f"{losses['validation'][-1][1]:.3f} after 12" in printed
    assert [probe.update for probe in read_probes(log_of_pretraining(root))] == [0, 6, 12]


def test_accuracies_are_those_of_the_classifiers_on_unheard_voices(first: tuple[Path, str]) -> None:
    root, printed = first
    accuracies = json.loads((root / "accuracies.json").read_text())
    page = html.unescape((root / "index.html").read_text(encoding="utf-8"))
    assert {labels: set(row) for labels, row in accuracies.items()} == {
        "100% of the labels": {"pretrained", "from scratch"},
        "25% of the labels": {"pretrained", "from scratch"},
    }
    for labels, row in accuracies.items():
        for start, (accuracy, low, high) in row.items():
            folder = root / "fine-tuning" / f"{start.replace(' ', '_')}_{labels.split('%')[0]}"
            with (folder / "evaluation" / "test" / "predictions.csv").open() as file:
                rows = list(csv.DictReader(file))
            assert accuracy == pytest.approx(sum(row["labels"] == row["predicted"] for row in rows) / len(rows))
            assert low <= accuracy <= high
            assert f"{accuracy:.1%} ({low:.1%} to {high:.1%})" in printed
            assert f"{accuracy:.1%}<br><small>{100 * low:.1f} to {100 * high:.1f}</small>" in page
    test = Manifest.read(root / "manifests" / "test.tsv")
    assert len(rows) == len(test)
    assert not {Path(row["path"]).name.split("_")[0] for row in rows} & {
        speaker.hash for speaker in VOICES if speaker.split != "test"
    }


def test_from_scratch_the_network_is_the_one_that_was_pretrained(first: tuple[Path, str]) -> None:
    root, _ = first
    pretrained, scratch = (
        Checkpoint.read(root / "fine-tuning" / name / "checkpoints" / "checkpoint_last.pt")
        for name in ("pretrained_100", "from_scratch_100")
    )
    assert {name: value.shape for name, value in pretrained.state.items()} == {
        name: value.shape for name, value in scratch.state.items()
    }
    assert pretrained.config["optimization"]["max_update"] == scratch.config["optimization"]["max_update"] == 6


def test_run_again_it_reuses_everything(first: tuple[Path, str]) -> None:
    root, printed = first
    before = contents(root)
    with redirect_stdout(io.StringIO()) as again:
        run(demo(root))
    assert contents(root) == before
    assert re.findall(r"loss: .*", again.getvalue()) == re.findall(r"loss: .*", printed)


def test_a_lost_picture_is_drawn_again(first: tuple[Path, str]) -> None:
    root, _ = first
    picture = root / "reconstruction.png"
    before = picture.read_bytes()
    picture.unlink()
    run(demo(root))
    assert picture.read_bytes() == before


def test_frozen_features_are_probed_and_mapped(first: tuple[Path, str]) -> None:
    root, printed = first
    found = json.loads((root / "probe" / "probe.json").read_text())
    assert found["checkpoint"] == str(root / "pretraining" / "checkpoints" / "checkpoint_last.pt")
    assert found["clips"] == len(Manifest.read(root / "manifests" / "test.tsv"))
    assert f"{found['layers']['linear probe'][1]:.4f}" in printed
    for folder in ("probe", "map"):
        assert {path.name for path in (root / folder).glob("map_*")} == {"map_word.png", "map_voice.png"}


def test_the_page_names_only_files_that_are_there_and_commands_that_can_be_pasted(first: tuple[Path, str]) -> None:
    root, printed = first
    page = (root / "index.html").read_text(encoding="utf-8")
    addresses = [unquote(address) for address in re.findall(r'(?:src|href)="([^"]*)"', page)]
    assert len(addresses) > 30
    assert not [one for one in addresses if one != "data:," and not (root / one).is_file()]
    commands = [html.unescape(command) for command in re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.S)]
    assert len(commands) == 3
    for command in commands:
        assert command in printed
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
        assert not re.search(r"<|>|\.\.\.", command)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(width: int, first: tuple[Path, str], open_page: Callable[..., Any]) -> None:
    root, _ = first
    page = open_page(root / "index.html", width)
    assert page.complaints() == []
    assert all(request.startswith(root.as_uri()) for request in page.requests())
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth && innerWidth") == width
    outside = "e => !e.closest('pre') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1"
    assert page.evaluate(f"[...document.body.querySelectorAll('*')].filter({outside}).map(e => e.outerHTML)") == []
    shown = page.evaluate("[...document.images].map(i => i.naturalWidth > 0 && i.clientWidth > 100 && i.alt != '')")
    assert all(shown) and len(shown) > 15
    durations = page.evaluate(
        "Promise.all([...document.querySelectorAll('audio')].map(a => a.readyState ? a.duration :"
        " new Promise(done => ['loadedmetadata', 'error'].map(e => a.addEventListener(e, () => done(a.duration))))))"
    )
    assert len(durations) == 13 and all(0.3 < seconds <= 1 for seconds in durations)


def test_other_settings_are_refused(first: tuple[Path, str]) -> None:
    root, _ = first
    with pytest.raises(UserError, match=r"pretraining holds a training with other settings: delete it"):
        run(demo(root, (*SMALL, "optimization.lr=[0.1]")))


def test_killed_training_goes_on(first: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = first
    shutil.copytree(root / "words", tmp_path / "words")
    killed = demo(tmp_path, fractions={1.0: 2})
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from test_demo import *\nrun(demo(Path({str(tmp_path)!r}), fractions={{1.0: 2}}))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "pretraining" / "checkpoints" / "checkpoint_last.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "loss.png").exists()

    run(killed)
    losses = read_losses(log_of_pretraining(tmp_path))
    assert [update for update, _ in losses["training"]] == list(range(1, 13))
    assert losses == read_losses(log_of_pretraining(root))
    assert "Loaded checkpoint" in log_of_pretraining(tmp_path).read_text()
    assert (tmp_path / "reconstruction.png").exists()


def test_outside_the_repository_it_says_where_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--config-dir", str(tmp_path)]) == 2
    assert "run this from the root of the repository" in capsys.readouterr().err
