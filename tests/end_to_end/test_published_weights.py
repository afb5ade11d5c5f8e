"""Published weights in, a fine-tuned classifier out, as files and commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import amae, train

from amae_plugin.checkpoints import Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


def test_from_published_weights_to_a_model_for_others(labelled: Path, tmp_path: Path) -> None:
    archive = np.load(GOLDEN / "ssast_patch.npz")
    state = {name[len("state/") :]: torch.from_numpy(archive[name]) for name in archive if name.startswith("state/")}
    torch.save(state, tmp_path / "SSAST.pth")
    done = amae("convert", str(tmp_path / "SSAST.pth"), str(tmp_path / "ssast.pt"))
    assert done.returncode == 0, done.stderr
    run = train(
        tmp_path / "run",
        f"task.data={labelled}",
        f"model.pretrained={tmp_path / 'ssast.pt'}",
        "model.pooling=avgtok",
        "optimization.max_update=3",
        recipe="finetune_audio_mae_tiny",
    )
    assert run.returncode == 0, run.output
    assert f"encoder: {tmp_path / 'ssast.pt'}, amae_ssast" in run.output
    path = run.folder / "checkpoints" / "checkpoint_last.pt"
    done = amae("export", str(path), str(tmp_path / "out"), "--format", "timm")
    assert done.returncode == 0, done.stderr
    assert "timm: computes what the checkpoint does" in done.stdout
    page = (tmp_path / "out" / "README.md").read_text()
    assert "3 updates of 3" in page and ", ".join(Checkpoint.read(path).classes) in page
    assert str(tmp_path) not in page
