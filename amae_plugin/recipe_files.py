"""Folders of recipes: a ``config`` of one's own, or the one that is installed with the package."""

import shutil
import tempfile
from pathlib import Path

from amae_plugin.errors import UserError
from amae_plugin.files import reading, writing

_PACKAGE = Path(__file__).parent
_USUAL = Path("config")


def recipe_folder() -> Path:
    """Find the folder of recipes: ``config`` in the working directory if it has any, or else that of the package."""
    if any(_USUAL.glob("*.yaml")):
        return _USUAL
    installed = _PACKAGE / _USUAL
    return installed if installed.is_dir() else _PACKAGE.parent / _USUAL  # in a checkout


def recipe_titles(folder: Path) -> dict[str, str]:
    """Read what the recipes of a folder train: the first comment of each, by its name.

    Raises:
        UserError: the folder holds no recipes, or one cannot be read.
    """
    titles = {}
    for path in sorted(folder.glob("*.yaml")):
        with reading(path, "the recipe"), path.open(encoding="utf-8") as file:
            first = file.readline()
        titles[path.stem] = first.removeprefix("#").strip() if first.startswith("#") else ""
    if not titles:
        raise UserError(f"{folder}: holds no recipes (--config-dir says where they are)")
    return titles


def copy_recipes(folder: Path, out: Path) -> None:
    """Copy a folder of recipes and their parts, whole or not at all.

    Raises:
        UserError: the new folder holds files already, or cannot be written.
    """
    with writing(out, "the recipes there"):
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out}: holds files already; give the name of a new folder")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as staged:
            copied = Path(staged) / "recipes"
            shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
            copied.replace(out)
