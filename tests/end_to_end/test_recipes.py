"""Every recipe as it stands, on any data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, CONFIG_DIR, environment


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
def test_every_recipe_builds_with_only_the_data_path_filled_in(
    recipe: str, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "outputs" / "pretrain_audio_mae_base" / "checkpoints").mkdir(parents=True)
    (tmp_path / "outputs" / "pretrain_audio_mae_tiny").symlink_to(tmp_path / "outputs" / "pretrain_audio_mae_base")
    shutil.copy(checkpoint, tmp_path / "outputs" / "pretrain_audio_mae_base" / "checkpoints" / "checkpoint_last.pt")
    shutil.copytree(labelled, tmp_path / "data")
    shutil.copytree(labelled, tmp_path / "data" / "fold1")
    script = (
        "import sys\n"
        "from fairseq.dataclass.initialize import hydra_init\n"
        "import fairseq_cli.hydra_train as cli\n"
        "def build(cfg, **kwargs):\n"
        "    from fairseq import tasks, utils\n"
        "    from fairseq.dataclass.initialize import add_defaults\n"
        "    utils.import_user_module(cfg.common)\n"
        "    add_defaults(cfg)\n"
        "    task = tasks.setup_task(cfg.task)\n"
        "    model = task.build_model(cfg.model)\n"
        "    task.build_criterion(cfg.criterion)\n"
        "    print('parameters', sum(p.numel() for p in model.parameters()), 'lr', cfg.optimization.lr)\n"
        "cli.pre_main = build\n"
        "cli.cli_main()\n"
    )
    arguments = ["--config-dir", str(CONFIG_DIR), "--config-name", recipe, "task.data=data"]
    done = subprocess.run(
        [str(BIN / "python"), "-c", script, *arguments, f"hydra.run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert "parameters" in done.stdout, done.stdout + done.stderr
