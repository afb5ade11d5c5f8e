"""What a run does to a folder that it cannot have: nothing."""

from __future__ import annotations

from pathlib import Path

from conftest import train_in_turn

from amae_plugin.cluster.lock import RunLock


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
