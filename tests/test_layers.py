"""The rooms of the package: no import leads upwards, the method needs no fairseq, registration changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amae_plugin"
# In the order in which a clip meets them: from its manifest to the model, to what is made of it, to how it is trained,
# to the commands around it. A room imports rooms before it, and itself.
ROOMS = (
    "errors",
    "files",
    "processes",
    "progress",
    "recipe_files",
    "weight_files",
    "data",
    "corpora",
    "modules",
    "models",
    "checkpoints",
    "averaging",
    "inspection",
    "metrics",
    "inference",
    "visual",
    "evaluation",
    "interop",
    "cluster",
    "recipes",
    "fairseq_plugin",
    "benchmark",
    "runs",
    "demo",
    "cli",
    "__main__",
)
FAIRSEQ_SIDE = "fairseq_plugin"


def room(module: str) -> str | None:
    """The room of a module of the package; None of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def modules() -> dict[str, Path]:
    names = {path: (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def imports(path: Path) -> list[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE.name else []
            found += names or [node.module]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == PACKAGE.name and name in (*modules(), PACKAGE.name)]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} - {None} == set(ROOMS)


@pytest.mark.parametrize("module", [name for name in modules() if room(name)])
def test_no_import_leads_upwards(module: str) -> None:
    own = ROOMS.index(str(room(module)))
    above = [name for name in imports(modules()[module]) if room(name) and ROOMS.index(str(room(name))) > own]
    assert not above


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_method_imports_neither_fairseq_nor_hydra() -> None:
    method = sorted(name for name in modules() if room(name) != FAIRSEQ_SIDE and not name.endswith("__main__"))
    script = f"""
import importlib, sys
for name in {method!r}:
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
now = attributes()
assert all(now[key] == value for key, value in functions.items())
print(new)
"""
    assert run(script) == str(
        [
            "arch:amae_audio_mae",
            "arch:amae_cav_mae",
            "arch:amae_classifier",
            "arch:amae_ctc",
            "arch:amae_eat",
            "arch:amae_m2d",
            "arch:amae_mae_ast",
            "arch:amae_ssast",
            "criterion:amae_classification",
            "criterion:amae_ctc",
            "criterion:amae_masked_prediction",
            "criterion:amae_reconstruction",
            "lr_scheduler:amae_cosine",
            "lr_scheduler:amae_cosine_by_time",
            "lr_scheduler:amae_plateau",
            "model:amae_audio_mae",
            "model:amae_cav_mae",
            "model:amae_classifier",
            "model:amae_ctc",
            "model:amae_eat",
            "model:amae_m2d",
            "model:amae_mae_ast",
            "model:amae_ssast",
            "optimizer:amae_adamw",
            "optimizer:amae_sgd",
            "task:amae_classification",
            "task:amae_ctc",
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
