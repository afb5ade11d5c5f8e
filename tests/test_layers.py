"""The two layers of the package: the method knows nothing of fairseq, and the shell changes nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amae_plugin"
SHELL = {"fairseq_plugin"}
METHOD = sorted(
    ".".join(("amae_plugin", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in SHELL and path.name != "__main__.py"
)


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_method_imports_neither_fairseq_nor_hydra() -> None:
    script = f"""
import importlib, sys
for name in {METHOD!r}:
    importlib.import_module(name)
print(sorted({{"fairseq", "hydra"}} & set(sys.modules)))
"""
    assert run(script) == "[]"


SNAPSHOT = """
import fairseq
from fairseq import criterions, models, optim, tasks
from fairseq.file_io import PathManager
from fairseq.registry import REGISTRIES
registries = {
    "task": tasks.TASK_REGISTRY,
    "model": models.MODEL_REGISTRY,
    "arch": models.ARCH_MODEL_REGISTRY,
    **{name: entry["registry"] for name, entry in REGISTRIES.items()},
}
def names():
    return {kind: {name: registry[name] for name in registry} for kind, registry in registries.items()}
def attributes():
    return {
        (module.__name__, name): id(value)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("fairseq.")
        for name, value in vars(module).items()
        if callable(value)
    } | {("PathManager", name): id(value) for name, value in vars(PathManager).items()}
"""


def test_registration_adds_names_with_the_prefix_and_changes_nothing() -> None:
    script = f"""
import sys
{SNAPSHOT}
before, functions = names(), attributes()
import amae_plugin
after = names()
new = sorted(f"{{kind}}:{{name}}" for kind in after for name in after[kind] if name not in before[kind])
assert all(before[kind][name] is after[kind][name] for kind in before for name in before[kind])
assert all(attributes()[key] == value for key, value in functions.items())
print(new)
"""
    assert run(script) == str(
        [
            "arch:amae_audio_mae",
            "arch:amae_classifier",
            "arch:amae_mae_ast",
            "arch:amae_ssast",
            "criterion:amae_classification",
            "criterion:amae_masked_prediction",
            "criterion:amae_reconstruction",
            "lr_scheduler:amae_cosine_by_time",
            "model:amae_audio_mae",
            "model:amae_classifier",
            "model:amae_mae_ast",
            "model:amae_ssast",
            "optimizer:amae_adamw",
            "task:amae_classification",
            "task:amae_pretraining",
        ]
    )


@pytest.mark.parametrize(
    "script",
    [
        "import amae_plugin\nimport fairseq",
        "import fairseq\nimport amae_plugin",
        f"from argparse import Namespace\nfrom fairseq.utils import import_user_module\n"
        f"import_user_module(Namespace(user_dir={str(PACKAGE)!r}))",
    ],
    ids=["before fairseq", "after fairseq", "as user_dir"],
)
def test_the_plugin_is_registered_whichever_comes_first(script: str) -> None:
    check = "from fairseq.tasks import TASK_REGISTRY\nprint('amae_pretraining' in TASK_REGISTRY)"
    assert run(f"{script}\n{check}") == "True"
