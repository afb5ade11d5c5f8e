"""Real runs: audio files on disk, manifests made by ``amae``, training by ``fairseq-hydra-train`` as a subprocess."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from amae_plugin.recipes import override

CONFIG_DIR = Path(__file__).parents[2] / "config"
BIN = Path(sys.executable).parent
SHORT = [
    "dataset.batch_size=8",
    "task.clips_per_update=8",
    "common.log_interval=1",
    "lr_scheduler.warmup_updates=2",
    "checkpoint.save_interval_updates=0",
    "dataset.validate_interval_updates=0",
]
# Of each tiny recipe, a smaller network and no pictures.
SMALLER = [*SHORT, "model.embed_dim=48", "model.depth=2", "task.picture_interval=0"]
SMALLER_DECODER = ["model.decoder_embed_dim=32", "model.decoder_depth=2"]
MICRO = {
    "pretrain_audio_mae_tiny": [*SMALLER, *SMALLER_DECODER],
    "pretrain_mae_ast_tiny": [*SMALLER, *SMALLER_DECODER],
    "pretrain_ssast_tiny": SMALLER,
    "pretrain_m2d_tiny": [*SMALLER, *SMALLER_DECODER],
    "pretrain_eat_tiny": SMALLER,
    "pretrain_cav_mae_tiny": [*SMALLER, *SMALLER_DECODER, "model.image_size=32"],
    # Batch norm depends on how a global batch is cut.
    "finetune_audio_mae_tiny": [*SHORT, "model.batch_norm=false"],
    "finetune_cav_mae_tiny": [*SHORT, "model.batch_norm=false"],
}
# For training from scratch.
ENCODER = ["model.pretrained=null", "+model.encoder={_name:amae_audio_mae,embed_dim:48,depth:2,num_heads:3}"]


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


def command(recipe: str, folder: Path, overrides: Sequence[str], smaller: Sequence[str] | None = None) -> list[str]:
    """The command line of a run that writes into a folder, ``smaller`` than the recipe as `MICRO` says if None."""
    return [
        str(BIN / "fairseq-hydra-train"),
        "--config-dir",
        str(CONFIG_DIR),
        "--config-name",
        recipe,
        override("hydra.run.dir", folder),
        *(MICRO[recipe] if smaller is None else smaller),
        *overrides,
    ]


def environment() -> dict[str, str]:
    """One thread a process: the runs are tiny, and several at a time must not fight for the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(
    folder: Path,
    *overrides: str,
    recipe: str = "pretrain_audio_mae_tiny",
    smaller: Sequence[str] | None = None,
    cwd: Path | None = None,
) -> Run:
    """Train and wait for the end."""
    done = subprocess.run(
        command(recipe, folder, overrides, smaller),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(folder, done.stdout, done.returncode)


def train_and_kill(folder: Path, update: int, *overrides: str, recipe: str = "pretrain_audio_mae_tiny") -> Run:
    """Train until an update is logged, then kill the run and its workers."""
    process = subprocess.Popen(
        command(recipe, folder, overrides),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if f'"num_updates": "{update}"' in line:
            os.killpg(process.pid, signal.SIGKILL)
    killed = Run(folder, output, process.wait())
    assert killed.returncode == -signal.SIGKILL, output
    return killed


IN_TURN = """
import json, sys, traceback
import fairseq_cli.hydra_train as cli
from hydra.core.global_hydra import GlobalHydra
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    code = 0
    try:
        cli.cli_main()
    except SystemExit as error:
        code = error.code
    GlobalHydra.instance().clear()
    print(f"EXIT CODE {code}", flush=True)
"""


def train_in_turn(folder: Path, runs: Sequence[Sequence[str]], recipe: str) -> list[Run]:
    """Train with each of these overrides as the command would, but in one process: what it imports takes long."""
    folders = [folder / str(index) for index in range(len(runs))]
    return run_in_turn({each: command(recipe, each, overrides) for each, overrides in zip(folders, runs)})


def run_in_turn(commands: Mapping[Path, Sequence[str]]) -> list[Run]:
    """Run training commands in one process, each for its folder."""
    done = subprocess.run(
        [str(BIN / "python"), "-c", IN_TURN, json.dumps(list(commands.values()))],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    parts = re.split(r"^EXIT CODE (\d+)\n", done.stdout, flags=re.M)
    assert len(parts) == 2 * len(commands) + 1, done.stdout
    return [Run(folder, parts[2 * i], int(parts[2 * i + 1])) for i, folder in enumerate(commands)]


def train_on_two_ranks(folder: Path, *overrides: str, recipe: str = "pretrain_audio_mae_tiny") -> Run:
    """Train with two processes that exchange gradients by gloo; the output is rank 0's."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    settings = [
        f"distributed_init_method=tcp://localhost:{port}",
        "distributed_backend=gloo",
        "ddp_backend=legacy_ddp",  # fairseq gives pytorch_ddp a device number, which a CPU does not have
        "distributed_world_size=2",
        "distributed_no_spawn=true",
    ]
    processes = [
        subprocess.Popen(
            command(recipe, folder, overrides)
            + [f"distributed_training.{setting}" for setting in (*settings, f"distributed_rank={rank}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return Run(folder, outputs[0], max(abs(process.returncode) for process in processes))


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


def amae(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a subcommand of ``amae`` to its end."""
    return subprocess.run(
        [str(BIN / "amae"), *arguments], capture_output=True, text=True, env=environment(), check=False
    )


def write_classes(root: Path, clips: int, seed: int) -> None:
    """Clips of half a second of three classes that are easy to tell apart: noise, a low tone, a high tone."""
    rng = np.random.default_rng(seed)
    time = np.arange(8000) / 16000
    for name, hz in (("noise", 0), ("low", 400), ("high", 3000)):
        (root / name).mkdir(parents=True)
        for index in range(clips):
            tone = np.sin(2 * np.pi * hz * rng.uniform(0.9, 1.1) * time + rng.uniform(0, 6))
            signal = (0.3 * tone if hz else 0) + rng.uniform(0.02, 0.05) * rng.standard_normal(len(time))
            soundfile.write(root / name / f"{index:02d}.wav", signal, 16000)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of three classes of 20 clips, of which 12 train, 4 valid and 4 test."""
    root, manifests = tmp_path_factory.mktemp("classes"), tmp_path_factory.mktemp("labelled")
    write_classes(root, clips=20, seed=1)
    done = amae(
        *("manifest", "folder", str(root), "--labels", "--out", str(manifests)),
        *("--valid-fraction", "0.2", "--test-fraction", "0.2"),
    )
    assert done.returncode == 0, done.stderr
    return manifests


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of the clips of `labelled`, each with a picture of its class's colour in noise."""
    root, manifests = tmp_path_factory.mktemp("classes"), tmp_path_factory.mktemp("pairs")
    write_classes(root, clips=20, seed=1)
    rng = np.random.default_rng(1)
    for colour, folder in enumerate(sorted(root.iterdir())):
        for sound in folder.glob("*.wav"):
            pixels = rng.integers(0, 100, (36, 48, 3), np.uint8)
            pixels[..., colour] += 150
            Image.fromarray(pixels).save(sound.with_suffix(".png"))
    done = amae(
        *("manifest", "pairs", str(root), "--labels", "--out", str(manifests)),
        *("--valid-fraction", "0.2", "--test-fraction", "0.2"),
    )
    assert done.returncode == 0, done.stderr
    return manifests


def pretrain(recipe: str, labelled: Path, folder: Path) -> Path:
    """A checkpoint of a short pretraining on the clips of `labelled`."""
    run = train(folder, f"task.data={labelled}", "optimization.max_update=5", recipe=recipe)
    assert run.returncode == 0, run.output
    return folder / "checkpoints" / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def checkpoint(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short pretraining of Audio-MAE on the clips of `labelled`."""
    return pretrain("pretrain_audio_mae_tiny", labelled, tmp_path_factory.mktemp("audio_mae"))


@pytest.fixture(scope="session")
def mae_ast_checkpoint(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of MAE-AST."""
    return pretrain("pretrain_mae_ast_tiny", labelled, tmp_path_factory.mktemp("mae_ast"))


@pytest.fixture(scope="session")
def ssast_checkpoint(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of SSAST."""
    return pretrain("pretrain_ssast_tiny", labelled, tmp_path_factory.mktemp("ssast"))


@pytest.fixture(scope="session")
def cav_mae_runs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Of CAV-MAE: six updates at once, and three and then three more."""
    whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))
    settings = [f"task.data={pairs}", "+lr_scheduler.max_update=6", "task.picture_interval=6"]
    runs = [(whole, 6), (parts, 3), (parts / ".." / parts.name, 6)]
    commands = {}
    for folder, updates in runs:
        overrides = [*settings, f"optimization.max_update={updates}"]
        commands[folder] = command("pretrain_cav_mae_tiny", folder.resolve(), overrides)
    return run_in_turn(commands)


@pytest.fixture(scope="session")
def cav_mae_checkpoint(cav_mae_runs: list[Run]) -> Path:
    """Of a short pretraining of CAV-MAE on `pairs`."""
    assert cav_mae_runs[0].returncode == 0, cav_mae_runs[0].output
    return cav_mae_runs[0].folder / "checkpoints" / "checkpoint_last.pt"
