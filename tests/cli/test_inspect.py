"""``amae inspect`` tells what is in the file."""

from __future__ import annotations

import json

import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.models.registry import SYSTEMS

SIZES = {"input_length": 64, "num_mel_bins": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}


def inspect(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(path)]) == 0
    lines = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    return facts, {name: text.strip() for name, text in lines}


def test_a_pretraining_checkpoint(tmp_path, capsys, write_checkpoint):
    path = write_checkpoint(tmp_path / "x.pt", None)
    facts, lines = inspect(path, capsys)
    model = Checkpoint.read(path).model()
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    assert facts["parameters"] == {"encoder": encoder, "decoder": decoder, "total": encoder + decoder}
    assert facts["model"] == facts["encoder"] == "amae_audio_mae"
    assert facts["settings"]["decoder_embed_dim"] == 16
    assert facts["positions"] == {"kind": "fixed 2-D sine-cosine", "grid": [4, 4]}
    heard = facts["input"]
    assert (heard["frames"], heard["num_mel_bins"], heard["mean"], heard["std"]) == (64, 64, -6.0, 4.0)
    assert heard["seconds"] == pytest.approx(0.655)
    unknown = ("updates", "epoch", "metric", "last", "best", "train_loss", "data", "classes", "lr")
    assert all(facts[name] is None for name in unknown)
    assert lines["model"] == "amae_audio_mae"
    assert lines["to cite"] == facts["paper"] == SYSTEMS["amae_audio_mae"].paper
    assert lines["parameters"] == f"encoder {encoder:,}, decoder {decoder:,}, total {encoder + decoder:,}"
    assert lines["normalised"] == "(x - mean) / (2 std), mean -6, std 4, task.mean and task.std"
    assert not {"training", "measures", "data", "classes"} & set(lines)  # nothing is known of them


def test_a_classifier(tmp_path, capsys, write_checkpoint):
    names = [f"class{index}" for index in range(12)]
    facts, lines = inspect(write_checkpoint(tmp_path / "x.pt", names, multi_label=True), capsys)
    assert (facts["model"], facts["encoder"]) == ("amae_classifier", "amae_audio_mae")
    assert set(facts["parameters"]) == {"encoder", "fc_norm", "head", "total"}
    assert facts["parameters"]["head"] == 12 * 33
    assert (facts["classes"], facts["multi_label"], facts["loss"]) == (names, True, "bce")
    assert lines["model"] == "amae_classifier on amae_audio_mae"
    assert lines["classes"] == f"12, several a clip: {', '.join(names[:10])} and 2 more"


def test_what_the_trainer_stored(tmp_path, capsys, write_checkpoint):
    path = write_checkpoint(tmp_path / "x.pt", ["a", "b"])
    content = torch.load(path)
    content["optimizer_history"] = [{"num_updates": 7}, {"num_updates": 1234}]
    meter = {"val": torch.tensor(9.0), "sum": torch.tensor(6.0), "count": 4, "round": 6}
    content["extra_state"] = {
        "train_iterator": {"epoch": 3},
        "val_loss": 0.5,
        "best": 0.75,
        "metrics": [("train", [(10, "loss", "AverageMeter", meter), (90, "ups", "TimeMeter", {})])],
    }
    content["cfg"] |= {
        "checkpoint": {"best_checkpoint_metric": "accuracy", "save_dir": "/runs/1"},
        "optimization": {"max_update": 2000, "lr": [0.001]},
        "optimizer": {"_name": "amae_adamw"},
    }
    content["cfg"]["task"] |= {"data": "/data", "clips_per_update": 32}
    torch.save(content, path)
    facts, lines = inspect(path, capsys)
    assert (facts["updates"], facts["epoch"], facts["max_update"], facts["clips_per_update"]) == (1234, 3, 2000, 32)
    assert (facts["metric"], facts["last"], facts["best"]) == ("accuracy", 0.5, 0.75)
    assert facts["train_loss"] == 1.5
    assert lines["training"] == "1,234 updates of 2,000, epoch 3, 32 clips an update, amae_adamw, lr 0.001, bce"
    assert lines["measures"] == "accuracy 0.5000, best accuracy 0.7500, training loss 1.5000"
    assert (lines["data"], lines["written to"]) == ("/data", "/runs/1")
    content["cfg"]["optimization"]["stop_time_hours"] = 0.5
    torch.save(content, path)
    _, lines = inspect(path, capsys)
    assert lines["training"].startswith("1,234 updates of 2,000 or as many as fit 0.5 hours, epoch 3")


@pytest.mark.parametrize(
    ("encoder", "positions", "tokens"),
    [
        (
            {"_name": "amae_ssast", "patch_size": [16, 32]},
            "learned, table for 4 x 2 (time x frequency)",
            "patches of 16 frames x 32 bands, 4 x 2 (time x frequency)",
        ),
        (
            {"_name": "amae_ssast", "patch_stride": [10, 12]},
            "learned, table for 5 x 5 (time x frequency)",
            "patches of 16 frames x 16 bands every 10 frames and 12 bands, 5 x 5 (time x frequency)",
        ),
        (
            {"_name": "amae_mae_ast", "patch_size": [2, 64]},
            "fixed 1-D sine-cosine along the tokens",
            "patches of 2 frames x 64 bands, 32 x 1 (time x frequency)",
        ),
    ],
)
def test_tokens_and_positions(tmp_path, capsys, write_checkpoint, encoder, positions, tokens):
    path = write_checkpoint(tmp_path / "x.pt", ["a"], encoder={**SIZES, **encoder})
    _, lines = inspect(path, capsys)
    assert lines["positions"] == positions
    assert lines["tokens"] == tokens


def test_statistics_that_the_encoder_holds(tmp_path, capsys, write_checkpoint):
    path = write_checkpoint(tmp_path / "x.pt", None, encoder={**SIZES, "_name": "amae_mae_ast"})
    content = torch.load(path)
    content["model"]["encoder.input_norm.running_mean"].fill_(-5.5)
    content["model"]["encoder.input_norm.running_var"].fill_(9.0 - 1e-5)
    torch.save(content, path)
    facts, lines = inspect(path, capsys)
    assert (facts["input"]["window_type"], facts["input"]["normalization"]) == (
        "povey",
        "model",
    )  # the system's front end
    assert lines["normalised"] == "in the encoder, mean -5.5, std 3, learned by the encoder's input norm"


def test_positions_of_a_published_checkpoint_are_not_taken_for_our_own(tmp_path, capsys, write_checkpoint):
    path = write_checkpoint(tmp_path / "x.pt", None)
    content = torch.load(path)
    content["model"]["encoder.positions.pos_embed"] = content["model"]["encoder.positions.pos_embed"].roll(1, dims=1)
    torch.save(content, path)
    facts, lines = inspect(path, capsys)
    assert facts["positions"]["kind"] == "fixed, a table that is not the 2-D sine-cosine one"
    assert lines["positions"].endswith("table for 4 x 4 (time x frequency)")


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    (tmp_path / "x.pt").write_text("hello")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 2
    assert "x.pt: not a checkpoint" in capsys.readouterr().err
