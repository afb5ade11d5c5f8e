"""Sweeps as job arrays: a number a run, and folds with their mean."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import FINE_TUNING, ROOT, Slurm, on_cpus

from amae_plugin.evaluation.sweep import read_results

RECIPES = ["--config-dir", str(ROOT / "config"), "--config-name"]


def test_sweep_returns_a_number_a_run_to_hydra(slurm: Slurm, labelled: Path) -> None:
    """Hydra's own optimisers are packages of their own: this one, as they do, reads the results of a batch of runs."""
    plugins = slurm.folder / "plugins"
    (plugins / "hydra_plugins").mkdir(parents=True)
    (plugins / "hydra_plugins" / "printing_sweeper.py").write_text(
        "from hydra._internal.core_plugins.basic_sweeper import BasicSweeper\n"
        "class PrintingSweeper(BasicSweeper):\n"
        "    def sweep(self, arguments):\n"
        "        for batch in super().sweep(arguments):\n"
        "            for run in batch:\n"
        "                print('RETURNED', run.overrides[-1], repr(run.return_value), flush=True)\n"
    )
    slurm.environment["PYTHONPATH"] += f":{plugins}"
    done = slurm.command(
        *("fairseq-hydra-train", "-m", *RECIPES, "finetune_audio_mae_tiny", *FINE_TUNING, *on_cpus(1, 1)),
        *(f"task.data={labelled}", "hydra.sweep.dir=sweep", "optimization.max_update=5"),
        *("hydra.sweeper._target_=hydra_plugins.printing_sweeper.PrintingSweeper", "optimization.lr=[1e-3],[2e-3]"),
        "common.seed=1,2",
    )
    assert done.returncode == 0, done.stdout
    returned = re.findall(r"RETURNED common.seed=\d ([\d.]+)$", done.stdout, re.MULTILINE)
    assert len(returned) == 4, done.stdout
    results = read_results(slurm.folder / "sweep")
    assert [float(number) for number in returned] == pytest.approx([result.best for result in results])
    assert {path.name for path in (slurm.folder / "sweep").iterdir() if path.is_dir()} == {"0", "1", "2", "3", "slurm"}


def test_five_folds_are_one_array_and_their_mean_one_command(slurm: Slurm, labelled: Path) -> None:
    for fold in range(1, 6):
        shutil.copytree(labelled, slurm.folder / "folds" / f"fold{fold}")
    model = ["compile=false", "bf16=false", "pretrained=null", "layer_decay=1.0"]
    done = slurm.command(
        *("fairseq-hydra-train", "-m", *RECIPES, "finetune_audio_mae_esc50", *on_cpus(1, 1)),
        *(*(f"model.{setting}" for setting in model), "+model.encoder={_name:amae_audio_mae,embed_dim:48,depth:1}"),
        *("+model.encoder.num_heads=3", "task.target_length=128", "dataset.num_workers=0", "task.clips_per_update=8"),
        *("optimization.max_update=5", "lr_scheduler.warmup_updates=2", "task.data=folds", "hydra.sweep.dir=esc50"),
    )
    assert done.returncode == 0, done.stdout
    jobs = {path.name.split("_")[0] for path in (slurm.folder / "esc50" / "slurm").glob("*/*_submitted.pkl")}
    assert len(jobs) == 1
    results = read_results(slurm.folder / "esc50")
    assert [result.name for result in results] == [f"fold{fold}" for fold in range(1, 6)]
    mean = sum(result.last for result in results) / 5
    done = slurm.command("amae", "results", "esc50")
    assert re.search(rf"^mean +{mean:.4f}", done.stdout, re.MULTILINE), done.stdout
