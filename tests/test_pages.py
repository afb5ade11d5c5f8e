"""The pages lead to each other, name every recipe and every setting, and print code that parses."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from amae_plugin import __version__
from amae_plugin.models.registry import SYSTEMS

ROOT = Path(__file__).parents[1]
FOLDERS = ("amae_plugin", "config", "manifests", "slurm")
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
RECIPES = (ROOT / "config" / "README.md").read_text()


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(file), f"{target} has no heading {anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_parses(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_may_compile_fairseq_unsets_cuda_home(page: Path) -> None:
    for unset, command in re.findall(r"(env -u CUDA_HOME )?pip install ([^`\n#&]*)", page.read_text()):
        compiles = "--no-deps" not in command and re.search(r"(^|[\s'\"])(\.|fairseq)|amae[\w.-]*\.whl", command)
        assert unset or not compiles, f"pip install {command}"


def test_the_main_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_main_page_leads_to_every_page() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert {ROOT / link for link in links} >= set(PAGES) - {ROOT / "README.md"}


def test_the_paper_of_every_system_can_be_cited() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__
    papers = {paper["notes"]: paper for paper in cited["references"]}
    assert {"AST"} <= papers.keys()
    for system in SYSTEMS.values():
        first, paper = papers[system.title]["authors"][0]["family-names"], papers[system.title]
        assert system.paper.startswith(f'{first} et al., "{paper["title"]}", ')
        assert system.paper.endswith(f" {paper['year']}, arXiv:{paper['url'].rpartition('/')[2]}")


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == __version__


def test_every_recipe_is_on_its_page() -> None:
    assert {path.stem for path in (ROOT / "config").glob("*.yaml")} == set(
        re.findall(r"`((?:pretrain|finetune|linear_probe)_\w+)`", RECIPES)
    )


def test_every_setting_is_on_its_page() -> None:
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    registries = [MODEL_DATACLASS_REGISTRY, TASK_DATACLASS_REGISTRY]
    registries += [registry["dataclass_registry"] for registry in REGISTRIES.values()]
    configs = [config for registry in registries for name, config in registry.items() if name.startswith("amae_")]
    # Not set by users: values of other sections, what the task finds out, and fairseq's options.
    not_set = {"_name", "recipe", "encoder", "num_classes", "num_units"}
    not_set |= {option.name for config in configs for option in fields(config) if str(option.default).startswith("${")}
    bases = [base for config in configs for base in config.__mro__ if base.__module__.startswith("fairseq.")]
    not_set |= {option.name for base in bases for option in fields(base)}
    settings = {option.name for config in configs for option in fields(config)} - not_set
    assert not [name for name in sorted(settings) if not re.search(rf"\b{name}\b", RECIPES)]
