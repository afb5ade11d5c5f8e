"""Real runs: audio files on disk, manifests made by ``amae``, training by ``fairseq-hydra-train`` as a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

CONFIG_DIR = Path(__file__).parents[2] / "config"
BIN = Path(sys.executable).parent
MICRO = [
    "dataset.batch_size=8",
    "task.clips_per_update=8",
    "model.embed_dim=48",
    "model.depth=2",
    "model.decoder_embed_dim=32",
    "model.decoder_depth=2",
    "common.log_interval=1",
    "lr_scheduler.warmup_updates=2",
    "checkpoint.save_interval_updates=0",
    "dataset.validate_interval_updates=0",
    "task.picture_interval=0",
]


class Run:
    """A training run and what it logged."""

    def __init__(self, folder: Path, output: str, returncode: int):
        self.folder = folder
        self.output = output
        self.returncode = returncode

    def logged(self, tag: str) -> list[dict[str, str]]:
        """Entries of fairseq's JSON log under a tag: train_inner, train or valid."""
        marker = f"[{tag}][INFO] - {{"
        return [json.loads(line[line.index(" - {") + 3 :]) for line in self.output.splitlines() if marker in line]

    def losses(self) -> dict[int, str]:
        """Training loss as printed, by update."""
        return {int(entry["num_updates"]): entry["loss"] for entry in self.logged("train_inner")}


def command(recipe: str, folder: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of a run that writes into a folder."""
    return [
        str(BIN / "fairseq-hydra-train"),
        "--config-dir",
        str(CONFIG_DIR),
        "--config-name",
        recipe,
        f"hydra.run.dir={folder}",
        *MICRO,
        *overrides,
    ]


def environment() -> dict[str, str]:
    """One thread a process: the runs are tiny, and several at a time must not fight for the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(folder: Path, *overrides: str, recipe: str = "pretrain_audio_mae_tiny", cwd: Path | None = None) -> Run:
    """Train and wait for the end."""
    done = subprocess.run(
        command(recipe, folder, overrides),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(folder, done.stdout, done.returncode)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips of 0.5 to 1.5 s, sweeps in noise, in three formats and at three sample rates; 32 train, 8 valid."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rates, formats = (16000, 22050, 44100), ("wav", "flac", "ogg")
    for index in range(40):
        rate = rates[index % 3]
        time = np.arange(int(rng.uniform(0.5, 1.5) * rate)) / rate
        sweep = np.sin(2 * np.pi * (rng.uniform(100, 1000) + rng.uniform(0, 2000) * time) * time)
        signal = 0.3 * sweep + 0.01 * rng.standard_normal(len(time))
        soundfile.write(root / f"clip{index:02d}.{formats[index % 3]}", signal, rate)
    manifests = tmp_path_factory.mktemp("manifests")
    arguments = ["manifest", "folder", str(root), "--out", str(manifests), "--valid-fraction", "0.2"]
    subprocess.run([str(BIN / "amae"), *arguments], check=True, env=environment())
    return manifests
