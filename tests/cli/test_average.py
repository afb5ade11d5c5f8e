"""``amae average``: the mean of several checkpoints, or the moving average of one, is a checkpoint for all commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.models.downstream import build_model

CLASSES = ["a", "b"]


def change(path: Path, seed: int, content: dict[str, Any], *, updates: int | None = None, **more: Any) -> Path:
    """Write a checkpoint with other weights of the same model, and counts of batches that differ as well."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + seed
        for name, value in build_model(content["cfg"]["model"]).state_dict().items()
    }
    history = [{"num_updates": updates if updates is not None else seed}]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "model": state, "optimizer_history": history, **more}, path)
    return path


@pytest.fixture(scope="module", params=["classifier", "recogniser", "pretraining"])
def content(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_checkpoint: Callable[..., Path],
    write_recogniser: Callable[..., Path],
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("checkpoints") / "x.pt"
    if request.param == "recogniser":
        return torch.load(write_recogniser(path))
    content = torch.load(write_checkpoint(path, CLASSES if request.param == "classifier" else None))
    if request.param == "classifier":
        content["cfg"]["model"]["batch_norm"] = True
    return content


def test_the_mean_of_checkpoints_of_every_kind(content: dict[str, Any], tmp_path: Path) -> None:
    trained = {"train_iterator": {"epoch": 2}, "best": 0.9, "val_loss": 0.8}
    paths = [change(tmp_path / f"{seed}.pt", seed, content, extra_state=trained) for seed in (1, 2, 4)]
    out = tmp_path / "new" / "average.pt"
    assert main(["average", *map(str, paths), "--out", str(out)]) == 0
    states = [Checkpoint.read(path).state for path in paths]
    result = Checkpoint.read(out)
    for name, value in result.state.items():
        mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-6)
        else:
            assert abs(value - mean) < 1
    assert result.state.keys() == states[0].keys()
    has_batch_norm = content["cfg"]["model"].get("batch_norm", False)
    assert any(name.endswith("running_var") for name in result.state) == has_batch_norm
    assert (result.updates, result.task_state) == (4, Checkpoint.read(paths[-1]).task_state)
    names = ["1.pt", "2.pt", "4.pt"]
    assert result.extra_state == {"train_iterator": {"epoch": 2}, "average": {"of": names, "moving": False}}
    result.model()


def test_the_latest_of_a_folder(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(write_checkpoint(tmp_path / "x.pt", CLASSES))
    folder = tmp_path / "checkpoints"
    # In this order; those without a number are copies of others.
    for seed, name in enumerate(("8", "_9_95", "_9_100", "9", "_10_110", "_last", "_best", ".best_loss_0.10"), 1):
        change(folder / f"checkpoint{name}.pt", seed, content)
    for options, first in (([], 0), (["--last", "3"], 2)):
        assert main(["average", str(folder), *options, "--out", str(tmp_path / "out.pt")]) == 0
        names = [
            "checkpoint8.pt",
            "checkpoint_9_95.pt",
            "checkpoint_9_100.pt",
            "checkpoint9.pt",
            "checkpoint_10_110.pt",
        ]
        assert Checkpoint.read(tmp_path / "out.pt").extra_state["average"]["of"] == names[first:]
        listed = capsys.readouterr().out.splitlines()
        assert listed == [
            "average of",
            *(f"  {folder / name}" for name in names[first:]),
            f"written: {tmp_path}/out.pt",
        ]


def test_the_moving_average_of_a_checkpoint(
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    write_split: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(write_checkpoint(tmp_path / "x.pt", CLASSES))
    moving = torch.load(change(tmp_path / "other.pt", 7, content))["model"]
    content["cfg"]["ema"] = {"store_ema": True, "ema_decay": 0.99}
    path, out = change(tmp_path / "1.pt", 1, content, extra_state={"ema": moving}), tmp_path / "out.pt"
    assert main(["average", str(path), "--ema", "--out", str(out)]) == 0
    assert all(torch.equal(value, moving[name]) for name, value in Checkpoint.read(out).state.items())
    capsys.readouterr()
    for file, line in ((path, "a moving average of its weights, decay 0.99"), (out, "moving average of 1.pt")):
        assert main(["inspect", str(file)]) == 0
        assert line in capsys.readouterr().out
    clips = write_split(tmp_path / "clips", [([label], 0.5, 16_000) for label in CLASSES], CLASSES)
    evaluate = ["evaluate", str(out), "--data", str(clips), "--json", str(tmp_path / "m.json"), "--workers", "0"]
    assert main([*evaluate, "--device", "cpu"]) == 0
    assert "accuracy" in json.loads((tmp_path / "m.json").read_text())


def test_what_has_no_average(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(write_checkpoint(tmp_path / "x.pt", CLASSES))
    for seed in (1, 2):
        change(tmp_path / f"{seed}.pt", seed, content)
        change(tmp_path / "run" / f"checkpoint_1_{seed}.pt", seed, content)
    change(tmp_path / "copy.pt", 1, content)
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "pretrained.pt", None)
    write_checkpoint(tmp_path / "three.pt", ["a", "b", "c"])
    write_checkpoint(tmp_path / "names.pt", ["a", "c"])
    write_checkpoint(tmp_path / "pooling.pt", CLASSES, pooling="token_mean")
    write_checkpoint(tmp_path / "loss.pt", CLASSES, loss="cross_entropy")
    write_checkpoint(tmp_path / "heads.pt", CLASSES, encoder={**content["cfg"]["model"]["encoder"], "num_heads": 4})
    other = torch.load(tmp_path / "x.pt")
    other["cfg"]["task"]["mean"] = -5.0
    torch.save(other, tmp_path / "input.pt")
    different = "are of different models, which have no average: "
    cases = {
        "1.pt": "1.pt: one checkpoint alone has no average; name several, or .* or take its moving average (--ema)",
        "1.pt --ema": "1.pt: keeps no moving average of its weights; train with ema.store_ema=true, or",
        "1.pt 2.pt 1.pt": "1.pt and .*1.pt hold the same weights; leave out one of them",
        "1.pt copy.pt": "1.pt and .*copy.pt hold the same weights; leave out one of them",
        "1.pt missing.pt": "missing.pt: cannot read the checkpoint (No such file or directory)",
        "missing --last 2": "--last 2 chooses from a folder, and .*missing is none; leave out one of them",
        "empty": "empty: holds no numbered checkpoints .*; keep them by checkpoint.keep_interval_updates=5, or",
        "run --last 3": "run: holds 2 numbered checkpoints, not 3; train with checkpoint.keep_interval_updates=3, or",
        "1.pt pretrained.pt": f"{different}model._name is amae_classifier in the first and amae_audio_mae in the",
        "1.pt three.pt": f"{different}model.num_classes is 2 in the first and 3 in the second",
        "1.pt names.pt": f"{different}task_state.classes is ",
        "1.pt pooling.pt": f"{different}model.pooling is mean in the first and token_mean in the second",
        "1.pt loss.pt": f"{different}criterion.loss is bce in the first and cross_entropy in the second",
        "1.pt heads.pt": f"{different}model.encoder.num_heads is 2 in the first and 4 in the second",
        "1.pt input.pt": f"{different}task.mean is -6.0 in the first and -5.0 in the second",
    }
    for arguments, message in cases.items():
        words = [
            word if word.startswith("--") or word.isdigit() else str(tmp_path / word) for word in arguments.split()
        ]
        assert main(["average", *words, "--out", str(tmp_path / "out.pt")]) == 2, arguments
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        for part in message.split(".*"):
            assert part in error, arguments
    before = (tmp_path / "2.pt").read_bytes()
    assert main(["average", str(tmp_path / "1.pt"), str(tmp_path / "2.pt"), "--out", str(tmp_path / "2.pt")]) == 2
    assert "is one of the checkpoints itself" in capsys.readouterr().err
    assert (tmp_path / "2.pt").read_bytes() == before
    assert not (tmp_path / "out.pt").exists()
