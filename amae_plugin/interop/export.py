"""Checkpoints of this plugin as files that other tools load, each checked against the checkpoint when it is written."""

import importlib.util
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME, write_names
from amae_plugin.errors import UserError
from amae_plugin.files import try_place, writing
from amae_plugin.interop import model_card
from amae_plugin.interop.formats import Format
from amae_plugin.interop.hf_folder import HuggingFace
from amae_plugin.interop.onnx_file import Onnx
from amae_plugin.interop.timm_vit import Timm
from amae_plugin.models.classifier import Classifier
from amae_plugin.progress import tqdm

FORMATS: dict[str, type[Format]] = {form.name: form for form in (Timm, Onnx, HuggingFace)}
"""Formats of other tools, by name."""
TOGETHER = (Timm.name, Onnx.name)
"""Formats that share a folder unless others are asked for."""
TOLERANCE = 1e-4
"""Largest difference from what the checkpoint computes, relative to its largest output."""


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        files: paths of the written files.
        differences: largest difference from what the checkpoint computes, by format.
        refused: reasons against the formats that cannot hold the model.
    """

    files: Sequence[Path]
    differences: Mapping[str, float]
    refused: Mapping[str, str]


def export(checkpoint: Checkpoint, folder: Path, formats: Sequence[str]) -> Export:
    """Write a model in the formats of other tools, check them, and write a page about them.

    Args:
        checkpoint: checkpoint of a classifier, or of a pretraining model, whose encoder is exported.
        folder: folder of the files; made if it does not exist.
        formats: names in :data:`FORMATS`.

    Raises:
        UserError: the model is of another kind or takes no sound, its input is impossible, two formats have a file of
            the same name, none of them can hold the model, a package is missing, the folder holds other things, a file
            cannot be written, or it does not compute what the checkpoint does.
    """
    if checkpoint.downstream not in (None, Classifier):
        raise checkpoint.no(Classifier)
    if "audio" not in checkpoint.modalities:
        raise UserError(f"{checkpoint.path}: takes pictures alone and no sound, which no format here holds")
    _ = checkpoint.input  # an error in it is that of no format
    for one, other in itertools.combinations(formats, 2):
        if common := set(FORMATS[one].files) & set(FORMATS[other].files):
            raise UserError(f"{one} and {other} both write {min(common)}: export each to a folder of its own")
    model = checkpoint.model()
    model.config.bf16 = False
    forms: dict[str, Format] = {}
    refused: dict[str, str] = {}
    for name in formats:
        try:
            forms[name] = FORMATS[name](checkpoint, model)
        except UserError as error:
            refused[name] = str(error)
    if not forms:
        raise UserError(f"{checkpoint.path}: {' '.join(refused.values())}")
    if missing := [name for form in forms.values() for name in form.packages if not importlib.util.find_spec(name)]:
        raise UserError(f"the export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    page = folder / model_card.FILE
    with writing(folder):
        if folder.exists() and any(folder.iterdir()) and not (page.is_file() and model_card.is_own(page)):
            raise UserError(f"{folder}: holds files, and not those of an earlier export; choose a folder of its own")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            try_place(page)
        # Files are written elsewhere first: a folder holds either a whole and checked export or what it held before.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as path:
            partial = Path(path)
            if model.output_name == "logits":
                write_names(partial / LABELS_NAME, checkpoint.classes)
            differences = {}
            for name, form in tqdm(forms.items(), desc="exporting", unit="format"):
                form.write(partial)
                differences[name] = form.largest_difference(partial)
                if not differences[name] <= TOLERANCE:
                    problem = f"its outputs as {name} differ from its own by {differences[name]:.1e}"
                    raise UserError(f"{checkpoint.path}: not exported, since {problem}, more than {TOLERANCE:.0e}")
            model_card.write(checkpoint, model, partial, folder.name, tuple(forms.values()))
            folder.mkdir(exist_ok=True)
            files = [path.replace(folder / path.name) for path in sorted(partial.iterdir())]
            for name in (LABELS_NAME, model_card.FILE, *(name for form in FORMATS.values() for name in form.files)):
                if folder / name not in files:
                    (folder / name).unlink(missing_ok=True)  # of an earlier export
    return Export(files, differences, refused)
