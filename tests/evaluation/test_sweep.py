from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.evaluation.sweep import read_results, summarize


def write_run(
    folder: Path, extra_state: dict[str, float], metric: str = "accuracy", task: dict[str, object] | None = None
) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "cfg": {
            "model": {"_name": "amae_classifier"},
            "checkpoint": {"best_checkpoint_metric": metric},
            "task": task or {},
        },
        "model": {},
        "extra_state": extra_state,
    }
    torch.save(content, folder / "checkpoints" / "checkpoint_last.pt")


def test_mean_and_sample_deviation_of_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold, (last, best) in enumerate([(0.9, 0.91), (0.8, 0.85), (0.94, 0.94)]):
        (tmp_path / "data" / f"fold{fold}").mkdir(parents=True)
        lines = "".join(f"{clip}.wav\t16000\n" for clip in range(1000 * fold + 1000))
        (tmp_path / "data" / f"fold{fold}" / "valid.tsv").write_text(f".\n{lines}")
        task = {"data": str(tmp_path / "data"), "fold": fold}
        write_run(tmp_path / f"fold{fold}", {"val_loss": last, "best": best}, task=task)
    (tmp_path / "data" / "fold2" / "valid.tsv").unlink()
    (tmp_path / "multirun.yaml").write_text("not a run")
    assert [result.name for result in read_results(tmp_path)] == ["fold0", "fold1", "fold2"]
    assert main(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["accuracy", "last", "best", "clips"],
        ["fold0", "0.9000", "0.9100", "1,000"],
        ["fold1", "0.8000", "0.8500", "2,000"],
        ["fold2", "0.9400", "0.9400"],
        ["mean", "0.8800", "0.9000"],
        ["std", "0.0721", "0.0458"],
    ]


def test_runs_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "fold0", "0"):
        write_run(tmp_path / name, {"val_loss": 0.5, "best": 0.5})
    assert [result.name for result in read_results(tmp_path)] == ["fold0", "0", "9", "10"]


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"val_loss": 0.5, "best": 0.75})
    assert "std" not in summarize(tmp_path).text()


def test_folders_that_cannot_be_summarized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs there"):
        read_results(tmp_path)
    write_run(tmp_path / "a", {"val_loss": 0.5, "best": 0.5})
    write_run(tmp_path / "b", {"val_loss": 0.5, "best": 0.5}, metric="mAP")
    with pytest.raises(UserError, match="different measures: accuracy, mAP"):
        read_results(tmp_path)
    write_run(tmp_path / "c", {})
    with pytest.raises(UserError, match="was not validated"):
        read_results(tmp_path)
    (tmp_path / "d" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoint_last\.pt: cannot read|was not validated"):
        read_results(tmp_path)
