"""Every recipe as it stands, on any data."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, CONFIG_DIR, environment

RECIPES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
# As fairseq-hydra-train, except that the model is built, with weights as the memory holds them, and not trained; one
# process for all, as imports take longest. Hydra would copy all that is registered, twice for each recipe.
SCRIPT = """
import re, sys, traceback
import fairseq_cli.hydra_train as cli
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
def build(cfg, **kwargs):
    from fairseq import optim, tasks, utils
    from fairseq.dataclass.initialize import add_defaults
    utils.import_user_module(cfg.common)
    add_defaults(cfg)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)
    optimizer = optim.build_optimizer(cfg.optimizer, list(model.parameters()))
    optim.lr_scheduler.build_lr_scheduler(cfg.lr_scheduler, optimizer)
    print("BUILT", recipe, sum(p.numel() for p in model.parameters()), flush=True)
cli.pre_main = build
ConfigStore.__deepcopy__ = lambda store, memo: store
for name in filter(re.compile("[a-z].*_$").match, dir(torch.nn.init)):
    setattr(torch.nn.init, name, lambda tensor, *args, **options: tensor)
for recipe in sys.argv[1:]:
    overrides = ["task.data=data", f"hydra.run.dir=runs/{recipe}"]
    sys.argv = ["", "--config-dir", CONFIG_DIR, "--config-name", recipe, *overrides]
    try:
        cli.cli_main()
    except SystemExit:
        traceback.print_exc()
    GlobalHydra.instance().clear()
"""


@pytest.fixture(scope="session")
def built(
    labelled: Path,
    checkpoint: Path,
    ssast_checkpoint: Path,
    cav_mae_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, int], str]:
    """Parameters of the model of every recipe that could be built, and everything that was printed."""
    folder = tmp_path_factory.mktemp("recipes")
    others = {"ssast": ssast_checkpoint, "cav_mae": cav_mae_checkpoint}
    # What the recipes of fine-tuning start from unless they are told otherwise.
    for path in CONFIG_DIR.rglob("*.yaml"):
        named = re.search(r"pretrained: (outputs/[^\s}]+)", path.read_text())
        if named:
            target = folder / named[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(next((path for name, path in others.items() if name in named[1]), checkpoint), target)
    shutil.copytree(labelled, folder / "data")
    shutil.copytree(labelled, folder / "data" / "fold1")
    for labels in ("ltr", "spm"):  # the units of recognition
        (folder / "data" / f"dict.{labels}.txt").write_text("a 1\nb 1\n")
    done = subprocess.run(
        [str(BIN / "python"), "-c", f"CONFIG_DIR = {str(CONFIG_DIR)!r}\n{SCRIPT}", *RECIPES],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=folder,
        check=False,
    )
    return {name: int(count) for name, count in re.findall(r"^BUILT (\S+) (\d+)$", done.stdout, re.M)}, done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_builds_with_only_the_data_path_filled_in(recipe: str, built: tuple[dict[str, int], str]) -> None:
    parameters, output = built
    assert recipe in parameters, output
