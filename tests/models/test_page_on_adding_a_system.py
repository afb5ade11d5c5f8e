"""The page on adding a system shows the code as it is, and names files and objects that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).parents[2] / "amae_plugin"
PAGE = (PACKAGE / "models" / "README.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S))
SOURCES = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))


def test_every_block_is_an_excerpt() -> None:
    assert len(BLOCKS) == len(re.findall(r"^```\w+$", PAGE, re.M))


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_an_excerpt_has_the_lines_of_its_file_in_their_order(name: str, block: str) -> None:
    source = (PACKAGE.parent / name).read_text()
    parsed = yaml.safe_load(block) if name.endswith(".yaml") else ast.parse(block).body
    assert parsed
    position = 0
    for part in re.split(r"^ *\.\.\.,?\n", block, flags=re.M):
        found = source.find(part.strip("\n"), position)
        assert found >= 0, f"{name} does not hold, in this order:\n{part}"
        position = found + len(part.strip("\n"))


@pytest.mark.parametrize("name", [code for code in CODE if re.fullmatch(r"[\w/.<>]+(/|\.py|\.yaml)", code)])
def test_a_file_that_the_page_names_exists(name: str) -> None:
    system = "mae_ast" if name.endswith("decoder.py") else "ssast"  # SSAST has no decoder
    name = name.replace("<system>", system).replace("<kind>", "classifier")
    assert any((root / name).exists() for root in (PACKAGE, PACKAGE.parent))


@pytest.mark.parametrize("name", sorted({code for code in CODE if re.fullmatch(r"[A-Za-z_]\w+", code)}))
def test_an_object_that_the_page_names_exists(name: str) -> None:
    assert re.search(rf"\b(class|def) {name}\b|^ *{name}\b *[:=]|\b{name}=|[\"']{name}[\"']", SOURCES, re.M)
