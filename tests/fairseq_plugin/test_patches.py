"""The changes to fairseq: they fit the installed release, say so if another one differs, and do what they are for."""

from __future__ import annotations

import copy
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import DatasetConfig, DistributedTrainingConfig, EMAConfig, FairseqConfig
from fairseq.logging import progress_bar
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train
from omegaconf import OmegaConf

from amae_plugin.cluster import signals
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import launch, patches
from amae_plugin.fairseq_plugin.hydra import LogFile, RegisterPlugin
from amae_plugin.fairseq_plugin.optim import AmaeSGD, AmaeSGDConfig
from amae_plugin.files import remove_partial_files

SIZE = 32 * 2**20


def test_every_change_fits_the_installed_fairseq_and_is_made_once() -> None:
    script = """
import fairseq
from amae_plugin.fairseq_plugin import patches
before = {function.__name__: getattr(owner, function.__name__) for function, owner in patches.REPLACEMENTS}
patches.check()
for _ in range(2):
    patches.install()
patches.check()
assert all(getattr(owner, function.__name__) is function for function, owner in patches.REPLACEMENTS)
assert patches._originals == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_without_assertions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Under -O, all of PyTorch would be compiled anew.
    monkeypatch.setattr(patches, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=1)))
    with pytest.raises(UserError, match=r"within assertions, which Python's -O \(PYTHONOPTIMIZE\) leaves out; start"):
        patches.check()


def test_curves_that_cannot_be_written_are_lost_with_a_warning(tmp_path: Path) -> None:
    script = """
import resource, sys
from fairseq.logging import progress_bar
from amae_plugin.fairseq_plugin import patches
writer = progress_bar._tensorboard_writers["train"] = progress_bar.SummaryWriter(sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
writer.add_scalar("loss", 1.0, 2)
patches.forget_run()
"""
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"{tmp_path}: the last points of the curves are lost (File too large)\n"), done.stderr


def test_a_log_that_cannot_be_written_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile("/dev/full")
    for _ in range(2):
        log.handle(logging.makeLogRecord({"msg": "text"}))
    with suppress(OSError):
        log.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fairseq-hydra-train: /dev/full: cannot write the log (No space left on device); make room")


@pytest.mark.parametrize("in_job", [True, False])
def test_torchruns_processes_start_no_others(in_job: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1"}
    for name, value in {**torchrun, **({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"} if in_job else {})}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patches, "HydraConfig", SimpleNamespace(get=lambda: SimpleNamespace(launcher={})))
    laid_out: list[DistributedTrainingConfig] = []
    monkeypatch.setitem(
        patches._originals, "call_main", lambda cfg, *_: laid_out.append(copy.copy(cfg.distributed_training))
    )
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.dataset.batch_size, cfg.common.cpu, processes = 1, True, cfg.distributed_training.distributed_num_procs
    cfg.distributed_training.update(
        {"distributed_world_size": 2, "distributed_backend": "gloo", "ddp_backend": "legacy_ddp"}
    )
    patches.call_main(cfg, lambda cfg: None)
    signals.forget()
    (made,) = laid_out
    assert (made.distributed_num_procs, made.distributed_init_method, made.distributed_no_spawn) == (
        processes,
        "env://",
        True,
    )
    assert (made.distributed_rank, made.distributed_world_size, made.device_id) == (1, 2, 0)


def test_torchruns_processes_are_as_many_as_the_recipe_computed_its_batches_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchrun = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "WORLD_SIZE": "4", "RANK": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.distributed_training.distributed_world_size = 1
    launch.lay_out_by_torchrun(cfg)  # of a cluster's container, in which one process is started
    assert cfg.distributed_training.distributed_init_method is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for world_size in (1, 2):
        cfg.distributed_training.distributed_world_size = world_size
        with pytest.raises(UserError, match=rf"world_size={world_size}, but .* WORLD_SIZE=4.*world_size=4, or"):
            launch.lay_out_by_torchrun(cfg)
    cfg.distributed_training.distributed_world_size = 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"no GPU for torchrun's processes; .*distributed_backend=gloo"):
        launch.lay_out_by_torchrun(cfg)


def without_lookup(self: Trainer, filename: str, extra_state: dict[str, Any]) -> None:
    """A `Trainer.save_checkpoint` that writes by other means."""


CHANGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "a function is gone": (
        lambda patch: patch.delattr(fairseq_train, "validate_and_save"),
        "there is no fairseq_cli.train.validate_and_save",
    ),
    "other parameters": (
        lambda patch: patch.setattr(fairseq_train, "validate_and_save", lambda cfg, trainer: None),
        "fairseq_cli.train.validate_and_save takes cfg, trainer;",
    ),
    "another function in its place": (
        lambda patch: patch.setattr(Trainer, "save_checkpoint", without_lookup),
        "fairseq.trainer:Trainer.save_checkpoint does not use torch_persistent_save",
    ),
    "state of a run elsewhere": (
        lambda patch: patch.setattr(fairseq_train, "should_stop_early", lambda cfg, valid_loss: False),
        "fairseq_cli.train:should_stop_early does not use best, num_runs",
    ),
    "a class is gone": (
        lambda patch: patch.delattr(progress_bar, "TensorboardProgressBarWrapper"),
        "there is no fairseq.logging.progress_bar:TensorboardProgressBarWrapper._writer",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_fairseq_is_reported_and_not_trained_with(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = CHANGES[change]
    make(monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        RegisterPlugin().on_job_start(OmegaConf.create({}))
    assert f"amae_plugin does not fit this release of fairseq: {message}" in str(stopped.value)


def test_copy_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    sources = {name: name.encode() * SIZE for name in "ab"}
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    last = tmp_path / "checkpoint_last.pt"
    script = (
        "import sys, itertools\n"
        "from amae_plugin.fairseq_plugin.patches import copy\n"
        "for name in itertools.cycle('ab'):\n"
        "    copy(f'{sys.argv[1]}/{name}', f'{sys.argv[1]}/checkpoint_last.pt')\n"
        "    print(name, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.read_bytes() in sources.values()

    remove_partial_files(tmp_path, "*.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "checkpoint_last.pt"]


@pytest.mark.parametrize(
    ("files", "settings", "refused"),
    [
        (["valid.tsv", "valid7.wav", "valid_2.lbl", "valid3.tsv.bak"], {}, False),
        (["valid.tsv", "valid7.tsv"], {}, True),
        (["valid.tsv", "valid7.tsv"], {"valid_subset": "valid,valid7"}, False),
        (["valid.tsv", "valid7.tsv"], {"ignore_unused_valid_subsets": True}, False),
        (["valid.tsv", "valid7.tsv"], {"disable_validation": True}, False),
    ],
)
def test_only_manifests_count_as_subsets_that_are_forgotten(
    tmp_path: Path, files: list[str], settings: dict[str, Any], refused: bool
) -> None:
    for name in files:
        (tmp_path / name).touch()
    dataset = OmegaConf.merge(OmegaConf.structured(DatasetConfig), settings)
    cfg = OmegaConf.create({"dataset": dataset, "task": {"data": str(tmp_path)}})
    hint = r"manifests valid7 .*\('dataset\.valid_subset=\"valid,valid7\"'\) or not"
    with pytest.raises(UserError, match=hint) if refused else nullcontext():
        patches.raise_if_valid_subsets_unintentionally_ignored(cfg)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combine_valid_subsets": True}, "dataset.combine_valid_subsets=true: manifests are not combined"),
        ({"valid_subset": "valid,train"}, "dataset.valid_subset=valid,train: train is what the run trains on"),
        ({"train_subset": "all", "valid_subset": "all"}, "dataset.valid_subset=all: all is what the run trains on"),
    ],
)
def test_what_a_run_cannot_validate_on(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    dataset = OmegaConf.merge(OmegaConf.structured(DatasetConfig), settings)
    with pytest.raises(UserError, match=message):
        patches.raise_if_valid_subsets_unintentionally_ignored(
            OmegaConf.create({"dataset": dataset, "task": {"data": str(tmp_path)}})
        )


def test_copy_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    last = tmp_path / "checkpoint_last.pt"
    with pytest.raises(UserError, match=r"\(No such file.*\); make room, and start the run again"):
        patches.copy(str(tmp_path / "missing.pt"), str(last))
    last.write_bytes(b"old")
    with pytest.raises(
        UserError, match=r"checkpoint_last\.pt: cannot write .*\(No such file.*\); the one before is whole"
    ):
        patches.copy(str(tmp_path / "missing.pt"), str(last))
    assert last.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [last]


@pytest.fixture
def no_run() -> Iterator[None]:
    patches.forget_run()
    yield
    patches.forget_run()


def test_a_run_leaves_no_result_and_no_open_file_to_the_next(tmp_path: Path, no_run: None) -> None:
    cfg = OmegaConf.create(
        {
            "checkpoint": {
                "patience": 2,
                "maximize_best_checkpoint_metric": True,
                "save_dir": str(tmp_path),
                "no_save": True,
            }
        }
    )
    checkpoint_utils.save_checkpoint(cfg.checkpoint, SimpleNamespace(data_parallel_rank=0), None, 0.9)
    assert [fairseq_train.should_stop_early(cfg, accuracy) for accuracy in (0.9, 0.5)] == [False, False]
    progress_bar.TensorboardProgressBarWrapper(None, str(tmp_path))._writer("train")
    patches.forget_run()
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")
    # Its best result, 0.9, and its one result that was no better do not count.
    assert [fairseq_train.should_stop_early(cfg, accuracy) for accuracy in (0.4, 0.3, 0.2)] == [False, False, True]
    assert progress_bar._tensorboard_writers == {}


def test_a_step_of_amp_divides_the_gradients_by_the_loss_scale_once() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = AMPOptimizer.__new__(AMPOptimizer)
    optimizer.fp32_optimizer = AmaeSGD(AmaeSGDConfig(momentum=0.0, lr=[0.5]), [weight])
    optimizer._grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.backward(weight.sum())
    assert weight.grad == 8
    optimizer.clip_grad_norm(0.0)
    patches.step(optimizer)
    assert weight.item() == 0.5


def test_a_moving_average_keeps_the_counts_of_batch_norm() -> None:
    model = torch.nn.BatchNorm1d(1)
    ema = patches.build_ema(model, EMAConfig(ema_decay=0.75), torch.device("cpu"))
    for update in (1, 2):
        model(torch.tensor([[0.0], [2.0 * update]]))
        ema.step(model, update)
    state = ema.get_model().state_dict()
    # The running mean is 0.1 and then 0.1 x 2 + 0.9 x 0.1.
    assert state["running_mean"].item() == pytest.approx(0.25 * 0.29 + 0.75 * 0.25 * 0.1)
    assert state["num_batches_tracked"].item() == 2
