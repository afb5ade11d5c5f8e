"""Checkpoints of this plugin to files that other tools load, each checked against the checkpoint as it is written."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME, write_names
from amae_plugin.errors import UserError
from amae_plugin.files import writing
from amae_plugin.interop import model_card
from amae_plugin.interop.formats import Format
from amae_plugin.interop.onnx_file import Onnx
from amae_plugin.interop.timm_vit import Timm
from amae_plugin.models.base import Model

FORMATS: dict[str, type[Format]] = {form.name: form for form in (Timm, Onnx)}
"""The forms in which others load a model, by name."""
TOLERANCE = 1e-4
"""Largest difference from what the checkpoint computes, relative to its largest output."""
_BATCHES = (1, 3)


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        files: that were written.
        differences: of each format, the largest from what the checkpoint computes.
        refused: of each format that has no such model, why.
    """

    files: Sequence[Path]
    differences: Mapping[str, float]
    refused: Mapping[str, str]


def export(checkpoint: Checkpoint, folder: Path, formats: Sequence[str]) -> Export:
    """Write a model in other forms, check them, and write a page about them.

    Args:
        checkpoint: of a classifier, or of a pretraining model, whose encoder is exported.
        folder: where to; made if it does not exist.
        formats: of :data:`FORMATS`.

    Raises:
        UserError: none of the formats has such a model, a package is missing, the folder holds other things, a file
            cannot be written, or what it computes is not what the checkpoint does.
    """
    model = checkpoint.model()
    model.config.bf16 = False
    forms: dict[str, Format] = {}
    refused = {}
    for name in formats:
        try:
            forms[name] = FORMATS[name](checkpoint, model)
        except UserError as error:
            refused[name] = str(error)
    if not forms:
        raise UserError(f"{checkpoint.path}: {' '.join(refused.values())}")
    _require([package for form in forms.values() for package in form.packages])
    with writing(folder):
        _refuse_other_files(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere first: a folder holds a whole and checked export, or what it held before.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            partial = Path(name)
            differences = _write(checkpoint, model, forms, partial)
            loading = {name: form.loading(folder.name) for name, form in forms.items()}
            model_card.write(checkpoint, model, partial, folder.name, loading)
            files = _move(partial, folder)
    return Export(files, differences, refused)


def _write(checkpoint: Checkpoint, model: Model, forms: Mapping[str, Format], folder: Path) -> dict[str, float]:
    """Write and check all files but the page; returns the largest difference of each format."""
    if checkpoint.downstream is not None:
        write_names(folder / LABELS_NAME, checkpoint.classes)
    differences = {}
    for name, form in tqdm(forms.items(), desc="exporting", unit="format"):
        form.write(folder)
        differences[name] = form.largest_difference(folder, _sources(form))
        if not differences[name] <= TOLERANCE:
            raise UserError(
                f"{checkpoint.path}: not exported, since its outputs as {name} differ from its own by "
                f"{differences[name]:.1e}, more than {TOLERANCE:.0e}"
            )
    return differences


def _move(source: Path, folder: Path) -> list[Path]:
    """Move all files of an export to a folder, in place of those of an earlier one."""
    folder.mkdir(exist_ok=True)
    for name in (LABELS_NAME, model_card.FILE, *(name for form in FORMATS.values() for name in form.files)):
        (folder / name).unlink(missing_ok=True)
    return [path.replace(folder / path.name) for path in sorted(source.iterdir())]


def _require(packages: Sequence[str]) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"the export needs {', '.join(missing)}: pip install 'amae-plugin[export]'")


def _refuse_other_files(folder: Path) -> None:
    """Only what an earlier export wrote is written over."""
    page = folder / model_card.FILE
    if folder.exists() and any(folder.iterdir()) and not (page.is_file() and model_card.is_own(page)):
        raise UserError(f"{folder}: holds files, and not those of an earlier export; choose a folder of its own")


def _sources(form: Format) -> list[torch.Tensor]:
    """Batches of several sizes of noise with the spread of normalised input."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *form.input_size, generator=generator) / 2 for batch in _BATCHES]
