"""Runs that stop and go on, and runs that are started again."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import CONFIG_DIR, Run, command, environment, train, train_in_turn

# A global decoder's dropout does not depend on the batch.
OVERRIDES = ["optimization.max_update=14", "model.decoder=global", "task.mean=auto", "task.std=auto"]
RECIPE = "pretrain_audio_mae_tiny"


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = train(tmp_path_factory.mktemp("whole"), f"task.data={corpus}", *OVERRIDES)
    assert run.returncode == 0, run.output
    return run


TWO = ["distributed_world_size=2", "distributed_backend=gloo", "ddp_backend=legacy_ddp"]
ON_TWO = [*(f"distributed_training.{setting}" for setting in TWO), "common.cpu=true", "dataset.batch_size=4"]


@pytest.mark.parametrize(
    ("number", "everywhere", "before", "after"),
    [
        # A cloud machine asks the first process alone, a terminal interrupts all of them.
        (signal.SIGTERM, False, ON_TWO, ["dataset.batch_size=8"]),
        (signal.SIGINT, True, ["dataset.batch_size=8", "dataset.num_workers=2"], ["dataset.batch_size=2"]),
    ],
    ids=["SIGTERM to two ranks", "SIGINT to one with workers"],
)
def test_a_stopped_run_continues_with_the_same_clips_however_it_is_cut(
    number: signal.Signals,
    everywhere: bool,
    before: list[str],
    after: list[str],
    whole: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    overrides = [f"task.data={corpus}", *OVERRIDES]
    process = subprocess.Popen(
        command(RECIPE, tmp_path, [*overrides, *before]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
        # Ignored in the background of a shell, and then by what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if '"num_updates": "6"' in line:  # in the second epoch, of four updates
            (os.killpg if everywhere else os.kill)(process.pid, number)
    assert process.wait() == 128 + number, output
    assert output.count("a checkpoint was written, from which the same command continues") == 1
    assert "Traceback" not in output
    resumed = train(tmp_path, *overrides, *after)
    assert resumed.returncode == 0, resumed.output
    stopped = Run(tmp_path, output, process.returncode)
    assert not stopped.losses().keys() & resumed.losses().keys()
    losses = {**stopped.losses(), **resumed.losses()}
    expected = {update: pytest.approx(float(loss), rel=1e-5) for update, loss in whole.losses().items()}
    assert {update: float(loss) for update, loss in losses.items()} == expected


UNWANTED = ("Traceback", "HYDRA_FULL_ERROR", "ConfigStore", "'common': {")


def test_values_that_no_run_can_have_and_a_run_that_its_epochs_end(corpus: Path, tmp_path: Path) -> None:
    data = [f"task.data={corpus}", "optimization.max_update=3", "optimization.max_epoch=1"]
    (tmp_path / "file").touch()
    refused = {
        "dataset.batch_size=3": "task.clips_per_update=8 is not a multiple of dataset.batch_size=3 times 1 devices",
        "dataset.batch_size=null": "dataset.batch_size=null: must be 1 or more, or set optimization.update_freq",
        "task.data=???": "task.data is not set, and has no default: give task.data=..., a folder of manifests",
        "model.mask_ration=0.5": "model.mask_ration: there is no such setting; the nearest is model.mask_ratio",
        "+task.batch_lenght=fixed": "task.batch_lenght: there is no such setting; the nearest is task.batch_length",
        "max_updates=9": "max_updates: there is no such setting; the nearest is optimization.max_update",
        "task.image_size=9": "task.image_size: the recipe does not have it; +task.image_size=... adds it",
        "model.depth=many": "model.depth: Value 'many' of type 'str' could not be converted to Integer",
        "task.recipe": "task.recipe: cannot be read; an override is key=value",
        "model=amae_audio_mea": "Could not find 'model/amae_audio_mea'; the nearest are amae_audio_mae",
        "--config-name=pretrain_audio_mae_tinny": f"in {CONFIG_DIR}; the nearest are pretrain_audio_mae_tiny, ",
        "--config-dir=elsewhere": "elsewhere' not found",
        "task.std=null": "task.std=null: must be a number, or auto for that of the training clips",
        "task.std=0": "task: std is 0, must be above 0 and finite",
        "optimizer.betas=[1.5,0.9]": "optimizer: Invalid beta parameter at index 0: 1.5",
        "optimization.lr=[1e30]": "training has diverged (gradients are Nan/Inf); lower optimization.lr",
        f"common.tensorboard_logdir={tmp_path}/file/x": f"{tmp_path}/file/x: cannot write there (Not a directory)",
    }
    runs = [[*data, setting] for setting in refused]
    *failed, ended = train_in_turn(tmp_path, [*runs, [*data, "optimization.max_update=100"]], RECIPE)
    for run, message in zip(failed, refused.values(), strict=True):
        last = run.output.rstrip().splitlines()[-1]
        unwanted = [
            text for text in ("Traceback", "HYDRA_FULL_ERROR", "ConfigStore", "'common': {") if text in run.output
        ]
        assert (run.returncode, message in last, unwanted) == (2, True, []), run.output
    log = (failed[-1].folder / "hydra_train.log").read_text()
    assert "Traceback" in log and "'common': {" in log and "Not a directory" in log
    assert ended.returncode == 0, ended.output
    assert (ended.folder / "checkpoints" / "checkpoint_last.pt").exists()
    assert len(ended.logged("valid")) == 1


def test_a_finished_run_and_settings_that_do_not_fit_its_checkpoint(whole: Run, corpus: Path, tmp_path: Path) -> None:
    folder, last = f"hydra.run.dir={whole.folder}", whole.folder / "checkpoints" / "checkpoint_last.pt"
    content = last.read_bytes()
    data = f"task.data={corpus}"
    runs = [
        [data, *OVERRIDES, folder],
        [data, *OVERRIDES, folder, "task.mean=3"],
        [data, *OVERRIDES, folder, "model.embed_dim=96"],
        [data, *OVERRIDES, "checkpoint.restore_file=nowhere.pt"],
        [data, *OVERRIDES, "lr_scheduler._name=cosine", "lr_scheduler.warmup_updates=14"],
    ]
    again, statistics, width, missing, warmup = train_in_turn(tmp_path, runs, RECIPE)
    assert again.returncode == 0, again.output
    assert "this run is finished after 14 updates, by optimization.max_update=14" in again.output
    for run, message in (
        (statistics, f"{last} was trained with another input of the model: task.mean"),
        (width, f"Cannot load model parameters from checkpoint {last}: size mismatch for encoder.cls_token"),
        (missing, "checkpoint.restore_file=nowhere.pt: there is no such file"),
        (warmup, "lr_scheduler=cosine has no learning rate for update 14"),
    ):
        assert (run.returncode, message in run.output) == (2, True), run.output
        assert "Traceback" not in run.output
    assert f"{last} was written with model.embed_dim=48, this run has 96" in width.output
    assert last.read_bytes() == content


@pytest.mark.parametrize(
    ("limit", "most", "workers", "messages"),
    [
        # The bytes of a file in /dev/shm as on a disk: less than a batch, more than the log.
        (
            resource.RLIMIT_FSIZE,
            100_000,
            1,
            [
                r"a process that loads clips cannot hand over a batch: unable to .*/dev/shm has .*dataset\.num_workers",
                r"fairseq-hydra-train: a process that loads clips has ended early\.",
            ],
        ),
        (
            resource.RLIMIT_FSIZE,
            1000,
            1,
            [r"fairseq-hydra-train: .*: cannot write in this folder, .* \(File too large\)"],
        ),
        (
            resource.RLIMIT_NOFILE,
            64,
            32,
            [r"fairseq-hydra-train: cannot start another process .* \(Too many open files\): .*\(ulimit -n\)"],
        ),
    ],
    ids=["shared memory", "disk", "open files"],
)
def test_a_run_that_lacks_room_says_so_instead_of_waiting(
    limit: int, most: int, workers: int, messages: list[str], corpus: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(RECIPE, tmp_path, [f"task.data={corpus}", f"dataset.num_workers={workers}"]),
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(limit, (most, most)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    for line, message in zip(done.stderr.splitlines()[-len(messages) :], messages, strict=True):
        assert re.match(message, line), done.stderr
    assert "Traceback" not in done.stderr
