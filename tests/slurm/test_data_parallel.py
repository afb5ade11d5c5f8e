"""Two nodes, four processes: both layouts, by both ways to submit, give the losses of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import FINE_TUNING, PRETRAINING, ROOT, Run, Slurm, end_to_end, losses, on_cpus, read

RECIPES = ["--config-dir", str(ROOT / "config"), "--config-name"]


def test_a_task_a_process(slurm: Slurm, labelled: Path, reference: dict[int, float]) -> None:
    done = slurm.command(
        *("fairseq-hydra-train", "-m", *RECIPES, "pretrain_audio_mae_tiny", *PRETRAINING, *on_cpus(2, 2)),
        *(f"task.data={labelled}", "hydra.sweep.dir=sweep"),
    )
    assert done.returncode == 0, done.stdout
    (job,) = (path.name for path in (slurm.folder / "sweep" / "slurm").iterdir() if path.name.isdigit())
    log = read(slurm.folder / "sweep" / "slurm" / job / f"{job}_0_log.out")
    assert "Layout(world_size=4, processes=1, rank=0, device=0, node='n1'," in log
    trained = {update: values[0] for update, values in losses(log).items()}
    assert trained == pytest.approx(reference, rel=1e-5)


def test_a_task_a_node(slurm: Slurm, labelled: Path) -> None:
    overrides = [*FINE_TUNING, f"task.data={labelled}"]
    alone = end_to_end.train(slurm.folder / "alone", *overrides, recipe="finetune_audio_mae_tiny")
    assert alone.returncode == 0, alone.output

    recipe = ["--config-dir", str(ROOT / "config"), "--config-name", "finetune_audio_mae_tiny"]
    layout = [*on_cpus(2, 2), "hydra.launcher.tasks_per_node=1"]
    done = slurm.command("amae", "slurm", "submit", *recipe, *overrides, *layout, "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout
    done = slurm.command("amae", "slurm", "logs", "--follow", "run")
    assert done.returncode == 0, done.stdout
    together = Run(slurm.folder / "run", done.stdout, 0)
    assert "Layout(world_size=4, processes=2, rank=0," in together.output
    # What was submitted is what ran.
    (snapshot,) = (slurm.folder / "run" / "slurm").glob("*/code")
    assert f"--user-dir={snapshot}/amae_plugin" in together.output

    def numbers(run: Run, tag: str, names: list[str]) -> list[list[float]]:
        return [[float(entry[name]) for name in names] for entry in run.logged(tag)]

    assert len(together.losses()) == 20
    for tag, names in (
        ("train_inner", ["num_updates", "loss", "gnorm"]),
        ("valid", ["valid_num_updates", "valid_loss", "valid_accuracy", "valid_macro_f1"]),
    ):
        assert numbers(together, tag, names) == [pytest.approx(row, rel=1e-5) for row in numbers(alone, tag, names)]

    done = slurm.command("amae", "slurm", "status", "run")
    assert done.returncode == 0 and "COMPLETED" in done.stdout, done.stdout
    assert json.dumps(sorted(path.name for path in (slurm.folder / "run" / "checkpoints").glob("*.tmp"))) == "[]"
