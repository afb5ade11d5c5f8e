"""MAE-AST, SSAST and AST: pretrained, fine-tuned and evaluated as Audio-MAE is, by a change of one word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from conftest import ENCODER, SHORT, amae, train

from amae_plugin.checkpoints import Checkpoint


@pytest.mark.parametrize("recipe", ["pretrain_mae_ast_tiny", "pretrain_ssast_tiny"])
def test_pretraining_learns_draws_and_logs_both_objectives(recipe: str, corpus: Path, tmp_path: Path) -> None:
    overrides = [f"task.data={corpus}", "optimization.max_update=30", "task.picture_interval=30"]
    run = train(tmp_path, *overrides, recipe=recipe)
    assert run.returncode == 0, run.output
    names = ("loss", "loss_reconstruction", "loss_info_nce")
    logged = [{name: float(entry[name]) for name in names} for entry in run.logged("train_inner")]
    assert len(logged) == 30
    for entry in logged:
        assert entry["loss"] == pytest.approx(10 * entry["loss_reconstruction"] + entry["loss_info_nce"], rel=1e-4)
    drawn = [entry["loss_reconstruction"] for entry in logged]
    assert sum(drawn[-3:]) < 0.9 * sum(drawn[:3])  # of three batches, whose clips differ
    (valid,) = run.logged("valid")
    assert {f"valid_{name}" for name in names} <= valid.keys()
    assert list((tmp_path / "tensorboard" / "pictures").glob("events.*"))


@pytest.mark.parametrize(
    ("recipe", "model", "system"),
    [
        ("pretrain_audio_mae_tiny", "amae_ssast_mini", "amae_ssast"),
        ("pretrain_mae_ast_tiny", "amae_audio_mae_tiny", "amae_audio_mae"),
        ("pretrain_ssast_tiny", "amae_m2d_tiny", "amae_m2d"),
    ],
)
def test_another_system_is_a_change_of_one_word(
    recipe: str, model: str, system: str, corpus: Path, tmp_path: Path
) -> None:
    overrides = [f"model={model}", f"task.data={corpus}", "optimization.max_update=3"]
    run = train(tmp_path, *overrides, recipe=recipe, smaller=SHORT)
    assert run.returncode == 0, run.output
    assert Checkpoint.read(tmp_path / "checkpoints" / "checkpoint_last.pt").model_settings["_name"] == system


def test_batches_of_so_many_frames(corpus: Path, tmp_path: Path) -> None:
    run = train(
        tmp_path,
        f"task.data={corpus}",
        "task.batch_length=shortest",
        "dataset.batch_size=null",
        "dataset.max_tokens=400",
        "optimization.update_freq=[1]",
        "optimization.max_epoch=1",
        recipe="pretrain_mae_ast_tiny",
    )
    assert run.returncode == 0, run.output
    updates = run.logged("train_inner")
    assert sum(float(entry["bsz"]) for entry in updates) == 32  # every clip once
    assert len({entry["bsz"] for entry in updates}) > 1
    assert all(float(entry["wpb"]) <= 400 for entry in updates)


def test_fine_tuning_a_mae_ast_uses_its_own_front_end(labelled: Path, mae_ast_checkpoint: Path, tmp_path: Path) -> None:
    run = train(
        tmp_path,
        f"task.data={labelled}",
        f"model.pretrained={mae_ast_checkpoint}",
        "optimization.max_update=30",
        recipe="finetune_audio_mae_tiny",
    )
    assert run.returncode == 0, run.output
    path = tmp_path / "checkpoints" / "checkpoint_last.pt"
    done = amae("evaluate", str(path), "--data", str(labelled), "--split", "valid")
    assert done.returncode == 0, done.stderr
    # As logged in training, whose statistics of the corpus have no part in it.
    (valid,) = run.logged("valid")
    assert float(re.search(r"^accuracy +(\S+)", done.stdout, re.M)[1]) == pytest.approx(
        float(valid["valid_accuracy"]), abs=5e-5
    )


def test_ssast_becomes_an_ast_with_overlapping_patches(labelled: Path, ssast_checkpoint: Path, tmp_path: Path) -> None:
    run = train(
        tmp_path,
        f"task.data={labelled}",
        f"model.pretrained={ssast_checkpoint}",
        "+model.encoder.patch_stride=[10,10]",
        "model.pooling=avgtok",
        "task.target_length=64",
        "optimization.max_update=3",
        recipe="finetune_audio_mae_tiny",
    )
    assert run.returncode == 0, run.output
    checkpoint = Checkpoint.read(tmp_path / "checkpoints" / "checkpoint_last.pt")
    # (64 - 16) // 10 + 1 columns by (128 - 16) // 10 + 1 rows, and two class tokens.
    assert checkpoint.state["encoder.positions.pos_embed"].shape == (1, 2 + 5 * 12, 48)


def test_ast_starts_from_imagenet_weights(labelled: Path, tmp_path: Path) -> None:
    image_model = timm.create_model("deit_tiny_distilled_patch16_224", depth=2, embed_dim=48, num_heads=3)
    torch.save({"model": image_model.state_dict()}, tmp_path / "deit.pth")
    run = train(
        tmp_path,
        f"task.data={labelled}",
        f"model.imagenet={tmp_path / 'deit.pth'}",
        *(setting.replace("amae_audio_mae", "amae_ssast") for setting in ENCODER),
        "optimization.lr=[0.0]",
        "lr_scheduler.min_lr=0.0",
        "optimization.max_update=3",
        recipe="finetune_audio_mae_tiny",
    )
    assert run.returncode == 0, run.output
    state = Checkpoint.read(tmp_path / "checkpoints" / "checkpoint_last.pt").state
    given = image_model.state_dict()
    torch.testing.assert_close(state["encoder.blocks.1.mlp.fc1.weight"], given["blocks.1.mlp.fc1.weight"])
    kernel = given["patch_embed.proj.weight"].sum(dim=1, keepdim=True).mT  # frames first
    torch.testing.assert_close(state["encoder.patch_embed.proj.weight"], kernel)
