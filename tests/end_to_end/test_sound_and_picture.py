"""CAV-MAE on pairs of sound and picture: pretrained, resumed, searched, drawn, fine-tuned on both or one, averaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Run, command, run_in_turn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main

CPU = ["--device", "cpu", "--workers", "0"]


def test_pretraining_learns_from_both_and_draws_both(cav_mae_runs: list[Run]) -> None:
    run = cav_mae_runs[0]
    assert run.returncode == 0, run.output
    logged = run.logged("train_inner")
    names = ("loss_reconstruction", "loss_image_reconstruction", "loss_contrastive")
    for entry in logged:
        assert float(entry["loss"]) == pytest.approx(sum(float(entry[name]) for name in names), rel=1e-4)
    for name in names[:2]:
        assert float(logged[-1][name]) < float(logged[0][name])
    assert list((run.folder / "tensorboard" / "pictures").glob("events.*")) and "no picture" not in run.output


def test_a_resumed_run_sees_the_same_pictures_and_masks(cav_mae_runs: list[Run]) -> None:
    whole, first, second = cav_mae_runs
    assert second.returncode == 0, second.output
    assert {**first.losses(), **second.losses()} == whole.losses()


def test_a_checkpoint_keeps_the_image_input(cav_mae_checkpoint: Path) -> None:
    checkpoint = Checkpoint.read(cav_mae_checkpoint)
    assert checkpoint.modalities == ("audio", "image")
    image = checkpoint.input.image
    assert image is not None and (image.size, image.training_crop, image.training_flip) == (32, "random", False)


def test_search_writes_recall_and_a_page(cav_mae_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    arguments = ["retrieve", str(cav_mae_checkpoint), "--data", str(pairs), "--split", "valid", "--queries", "3", *CPU]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["pairs"] == metrics["sounds"] == metrics["pictures"] == 12
    assert {"recall_at_1", "recall_at_5", "recall_at_10", "chance_at_10"} <= metrics["picture_to_sound"].keys()
    page = (tmp_path / "index.html").read_text()
    assert page.count("<audio") == page.count("<img") == 3 + 3 * 5


def test_reconstruction_shows_the_picture_beside_a_sound(
    cav_mae_checkpoint: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (pairs / "test.tsv").read_text().splitlines()
    (tmp_path / "two.tsv").write_text("\n".join(lines[:3]) + "\n")
    sound = Path(lines[0]) / lines[1].split("\t")[0]
    for given, pictures in (([sound], 3), ([tmp_path / "two.tsv"], 6), ([sound, "--sound-alone"], 0)):
        out = tmp_path / str(pictures)
        assert main(["reconstruct", str(cav_mae_checkpoint), *map(str, given), "--out", str(out), *CPU]) == 0
        assert (out / "index.html").read_text().count(" picture</figcaption>") == pictures
        assert len(list(out.rglob("picture.png"))) == max(1, pictures // 3)


@pytest.fixture(scope="module")
def fine_tuned(cav_mae_checkpoint: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Of sound and picture, and of the picture alone."""
    runs = {
        "both": [f"model.pretrained={cav_mae_checkpoint}", "checkpoint.no_epoch_checkpoints=false"],
        "image": [f"model.pretrained={cav_mae_checkpoint}", "task.modalities=[image]"],
    }
    settings = ["optimization.max_epoch=3", "checkpoint.save_interval=1", f"task.data={pairs}"]
    folders = {name: tmp_path_factory.mktemp(name) for name in runs}
    done = run_in_turn(
        {
            folders[name]: command("finetune_cav_mae_tiny", folders[name], [*settings, *overrides])
            for name, overrides in runs.items()
        }
    )
    return dict(zip(runs, done))


def accuracy(output: str) -> float:
    return float(re.search(r"^accuracy +(\S+)", output, re.M)[1])


def test_fine_tuning_on_both_or_the_picture_alone(
    fine_tuned: dict[str, Run], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in (("both", "3 classes, audio and image"), ("image", "3 classes, image")):
        run = fine_tuned[name]
        assert run.returncode == 0, run.output
        path = str(run.folder / "checkpoints" / "checkpoint_last.pt")
        evaluate = ["evaluate", path, "--data", str(pairs), "--split", "valid", "--out", str(tmp_path), *CPU]
        assert main(evaluate) == 0
        printed = capsys.readouterr().out
        assert told in printed
        assert accuracy(printed) == pytest.approx(float(run.logged("valid")[-1]["valid_accuracy"]), abs=5e-5)
        assert main([*evaluate, "--frames", "2"]) == 0
        assert accuracy(capsys.readouterr().out) == accuracy(printed)  # stills
        others = {"both": 0, "image": 2}
        assert main([*evaluate, "--modalities", "audio"]) == others[name]
        capsys.readouterr()


def test_predictions_are_by_the_sound_alone(
    fine_tuned: dict[str, Run], pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (pairs / "test.tsv").read_text().splitlines()
    sound = str(Path(lines[0]) / lines[1].split("\t")[0])
    both, image = (str(fine_tuned[name].folder / "checkpoints" / "checkpoint_last.pt") for name in ("both", "image"))
    assert main(["predict", both, sound, *CPU]) == 0
    assert "is given the sound alone" in capsys.readouterr().err
    assert main(["predict", image, sound, *CPU]) == 2
    assert "takes pictures alone and no sound" in capsys.readouterr().err


def test_weights_of_epochs_are_kept_for_their_mean(fine_tuned: dict[str, Run]) -> None:
    folder = fine_tuned["both"].folder / "checkpoints"
    assert {f"checkpoint{epoch}.pt" for epoch in (1, 2, 3)} <= {path.name for path in folder.iterdir()}
