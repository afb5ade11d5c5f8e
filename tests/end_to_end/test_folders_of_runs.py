"""What a run does to a folder that it cannot have: nothing."""

from __future__ import annotations

from pathlib import Path

from conftest import command, run_in_turn, train_in_turn

from amae_plugin.cluster.lock import RunLock
from amae_plugin.recipes import override


def test_folder_that_is_in_use_and_one_that_cannot_be_written(labelled: Path, tmp_path: Path) -> None:
    settings = tmp_path / "0" / ".hydra" / "config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("those of the first run")
    (tmp_path / "1").write_text("a file")
    with RunLock(tmp_path / "0" / "checkpoints", None, 0).held():
        in_use, unwritable = train_in_turn(tmp_path, [[f"task.data={labelled}"]] * 2, "pretrain_audio_mae_tiny")
    assert in_use.returncode != 0
    assert f"{tmp_path / '0' / 'checkpoints'} is in use by a run outside SLURM, process " in in_use.output
    assert settings.read_text() == "those of the first run"
    assert sorted(path.name for path in settings.parent.iterdir()) == ["config.yaml"]
    assert unwritable.returncode == 2
    assert f"fairseq-hydra-train: {tmp_path / '1'}: cannot write in this folder" in unwritable.output
    assert "Traceback" not in unwritable.output


def test_a_second_sweep_does_not_take_the_runs_of_the_first_for_its_own(labelled: Path, tmp_path: Path) -> None:
    overrides = [f"task.data={labelled}", override("hydra.sweep.dir", tmp_path), "optimization.max_update=2", "-m"]
    sweeps = {tmp_path / seeds: ["common.seed=" + seeds, *overrides] for seeds in ("1,2", "1,2,3", "4,5")}
    recipe = "pretrain_audio_mae_tiny"
    first, longer, other = run_in_turn({folder: command(recipe, folder, sweeps[folder]) for folder in sweeps})
    assert (first.returncode, longer.returncode) == (0, 0), longer.output
    rows = [line.split() for line in first.output.splitlines()[-5:]]
    assert [row[0] for row in rows] == ["loss", "0", "1", "mean", "std"]
    assert longer.output.count("this run is finished after 2 updates") == 2
    assert [line.split() for line in longer.output.splitlines()[-6:-3]] == rows[:3]
    assert other.returncode == 2
    last = tmp_path / "0" / "checkpoints" / "checkpoint_last.pt"
    assert f"{last} is of another sweep: common.seed is 1 there and 4 here; choose another folder" in other.output
    assert "Traceback" not in other.output.split("is of another sweep")[-1]
