"""Sweeps as job arrays: a number a run, folds with their mean, and a run that fails."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import PRETRAINING, ROOT, Slurm, on_cpus

from amae_plugin.evaluation.sweep import read_results
from amae_plugin.recipes import override

RECIPES = ["--config-dir", str(ROOT / "config"), "--config-name"]


def test_run_of_a_sweep_that_fails_reaches_the_user(slurm: Slurm, labelled: Path) -> None:
    lines = (labelled / "train.tsv").read_text().splitlines()
    broken = slurm.folder / "broken.wav"
    broken.write_bytes(b"RIFF" + b"\0" * 100)
    clips = [f"{lines[0]}/{line}" for line in lines[1:]]
    (slurm.folder / "train.tsv").write_text("\n".join(["/", *clips, f"{broken}\t16000"]) + "\n")
    shutil.copy(labelled / "valid.tsv", slurm.folder)
    done = slurm.command(
        *("fairseq-hydra-train", "-m", *RECIPES, "pretrain_audio_mae_tiny", *PRETRAINING, *on_cpus(2, 1)),
        *(override("task.data", labelled, slurm.folder), "hydra.sweep.dir=sweep"),
    )
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stdout
    assert str(broken) in done.stdout, done.stdout
    sweep = slurm.folder / "sweep"
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {"0", "1", "slurm"}
    whole, failed = sorted(path.name for path in (sweep / "slurm").iterdir() if re.fullmatch(r"\d+_\d", path.name))
    assert slurm.job(whole)["JobState"] == "COMPLETED"
    state = slurm.job(failed)
    assert state["JobState"] == "FAILED" and state["ExitCode"] != "0:0"
    done = slurm.command("amae", "slurm", "status", "sweep")
    assert done.returncode == 1 and str(broken) in done.stdout
    assert re.search(rf"^{whole}  COMPLETED  .*  result [\d.]+$", done.stdout, re.MULTILINE), done.stdout


def test_five_folds_are_one_array_that_returns_a_number_a_fold_and_their_mean(slurm: Slurm, labelled: Path) -> None:
    """Hydra's own optimisers are packages of their own: this one, as they do, reads the results of a batch of runs."""
    plugins = slurm.folder / "plugins"
    (plugins / "hydra_plugins").mkdir(parents=True)
    (plugins / "hydra_plugins" / "printing_sweeper.py").write_text(
        "from hydra._internal.core_plugins.basic_sweeper import BasicSweeper\n"
        "class PrintingSweeper(BasicSweeper):\n"
        "    def sweep(self, arguments):\n"
        "        for batch in super().sweep(arguments):\n"
        "            for run in batch:\n"
        "                print('RETURNED', *run.overrides, repr(run.return_value), flush=True)\n"
    )
    slurm.environment["PYTHONPATH"] += f":{plugins}"
    for fold in range(1, 6):
        shutil.copytree(labelled, slurm.folder / "folds" / f"fold{fold}")
    model = ["compile=false", "bf16=false", "pretrained=null", "layer_decay=1.0"]
    done = slurm.command(
        *("fairseq-hydra-train", "-m", *RECIPES, "finetune_audio_mae_esc50", *on_cpus(1, 1)),
        *(*(f"model.{setting}" for setting in model), "+model.encoder={_name:amae_audio_mae,embed_dim:48,depth:1}"),
        *("+model.encoder.num_heads=3", "task.target_length=128", "dataset.num_workers=0", "task.clips_per_update=8"),
        *("optimization.max_update=5", "optimization.lr=[1e-3]", "lr_scheduler.warmup_updates=2", "task.data=folds"),
        *("hydra.sweep.dir=esc50", "hydra.sweeper._target_=hydra_plugins.printing_sweeper.PrintingSweeper"),
    )
    assert done.returncode == 0, done.stdout
    jobs = {path.name.split("_")[0] for path in (slurm.folder / "esc50" / "slurm").glob("*/*_submitted.pkl")}
    assert len(jobs) == 1
    results = read_results(slurm.folder / "esc50")
    assert [result.name for result in results] == [f"fold{fold}" for fold in range(1, 6)]
    returned = re.findall(r"^RETURNED .*\btask\.fold=(\d) .*?([\d.]+)$", done.stdout, re.MULTILINE)
    assert [fold for fold, _ in returned] == list("12345"), done.stdout
    assert [float(number) for _, number in returned] == pytest.approx([result.best for result in results])
    mean = sum(result.last for result in results) / 5
    done = slurm.command("amae", "results", "esc50")
    assert re.search(rf"^mean +{mean:.4f}", done.stdout, re.MULTILINE), done.stdout
