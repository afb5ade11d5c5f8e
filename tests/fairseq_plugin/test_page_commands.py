"""Commands on the pages, in the recipes and in the batch scripts are understood as they stand."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import composed
from fairseq.dataclass.initialize import add_defaults
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from amae_plugin.cli.main import COMMANDS
from amae_plugin.data.manifest import write_manifest
from amae_plugin.fairseq_plugin.checks import check_keys, check_settings

ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "config/**/*.md", "config/**/*.yaml", "manifests/**/*.md", "slurm/**/*", "amae_plugin/**/*.md")
TRAINS = {"fairseq-hydra-train", "slurm/task_per_gpu.sbatch", "slurm/task_per_node.sbatch", "submit"}
ENDS = re.compile(r"[|;&<>]+|2>&1|\.\.\.")


def written(path: Path) -> Iterator[list[str]]:
    """Words of each command of a file: in a page its blocks of shell, elsewhere its indented comments."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    else:
        text = "\n".join(re.findall(r"^#   +(.*)", text, re.M))
    for line in text.replace("\\\n", " ").splitlines():
        if re.search(r"\b(amae|fairseq-hydra-train|sbatch)\b", line):
            words = shlex.split(line, comments=True)
            ends = [number for number, word in enumerate(words) if ENDS.fullmatch(word)]
            yield words[: min(ends, default=None)]


FILES = sorted(path for place in PLACES for path in ROOT.glob(place) if path.is_file() and path.suffix != ".pyc")
WORDS = [(path, words) for path in FILES for words in written(path)]


def trainings() -> dict[tuple[str, tuple[str, ...]], Path]:
    """File of each training, by its recipe and its overrides but for the folder of manifests."""
    found: dict[tuple[str, tuple[str, ...]], Path] = {}
    for path, words in WORDS:
        begin = next((number for number, word in enumerate(words) if word in TRAINS), None)
        if begin is None:
            continue
        words = words[begin + 1 :]
        recipe = words[words.index("--config-name") + 1] if "--config-name" in words else ""
        ours = "--config-dir" not in words or words[words.index("--config-dir") + 1] == "config"
        if ours and recipe.islower():  # else a placeholder
            overrides = tuple(word for word in words if re.search("=|^~", word) and not word.startswith("task.data="))
            found.setdefault((recipe, overrides), path)
    return found


def test_commands_are_found() -> None:
    places = {str(path.relative_to(ROOT)) for path in trainings().values()}
    assert {"README.md", "config/README.md", "slurm/README.md", "config/pretrain_eat.yaml"} <= places


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("manifests")
    (root / "fold1").mkdir()
    for folder in (root, root / "fold1"):
        for split in ("train", "valid", "test"):
            write_manifest(folder / f"{split}.tsv", root, [(f"{clip}.wav", 16000) for clip in range(4000)])
    return root


def first_of_sweep(override: str) -> str:
    """An override as the first run of a sweep has it."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [pytest.param(*words, id=f"{path.relative_to(ROOT)}: {words[0]}") for words, path in trainings().items()],
)
def test_trainings_compose(manifests: Path, recipe: str, overrides: tuple[str, ...]) -> None:
    given = [first_of_sweep(override) for override in overrides]
    with composed(*given, f"task.data={manifests}", recipe=recipe) as config:
        OmegaConf.to_container(config.hydra.launcher, resolve=True)
        settings = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        check_keys(settings)
        add_defaults(settings)
        check_settings(OmegaConf.create(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words[words.index("amae") + 1 :], id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
        for path, words in WORDS
        if "amae" in words and "..." not in words
    ],
)
def test_commands_parse(words: list[str]) -> None:
    name, *arguments = words
    assert name in COMMANDS
    parser = argparse.ArgumentParser(prog=f"amae {name}")
    importlib.import_module(f"amae_plugin.cli.{name}").add_arguments(parser)
    parser.parse_args(arguments)
