"""Files of weights, read as tensors and plain values without running code from them."""

import argparse
import contextlib
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load_file

from amae_plugin.errors import UserError
from amae_plugin.files import reading

_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not|whose)")


class UnsafeFileError(UserError):
    """A file holds objects that only code of its choice could make."""


def read_weights(path: str | os.PathLike[str], *, trust: bool = False) -> object:
    """Read a file that ``torch.save`` or safetensors wrote, on the CPU.

    Args:
        path: file; the suffix ``.safetensors`` marks a safetensors file.
        trust: unpickle any object in the file, which runs whatever code it asks for.

    Raises:
        UnsafeFileError: the file holds more than tensors and plain values; the message names the objects.
        UserError: the file is missing, damaged or something else.
    """
    path = Path(path)
    # Published checkpoints also hold the arguments of their run as a Namespace, which is harmless: making one runs no
    # code, and PyTorch's reader fills it without inspecting its content. omegaconf's containers are not: they are
    # unpickled by code of their own and compute values on access.
    harmless = torch.serialization.safe_globals([argparse.Namespace])
    with harmless, warnings.catch_warnings(), reading(path, "the checkpoint"):
        warnings.simplefilter("ignore")  # about formats and protocols; the messages below say what matters
        try:
            path.open("rb").close()
            if path.suffix == ".safetensors":
                return load_file(path)
            if is_zip := zipfile.is_zipfile(path):
                _refuse_escapes(path)
            # Mapped, because most of a file may be an optimizer's state, which nothing reads.
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=is_zip)
        except (UserError, OSError):
            raise
        except ImportError as error:
            raise UserError(f"{path}: holds objects of a package that is not installed here ({error})") from None
        except Exception as error:  # a damaged or foreign file can make a reader raise anything
            if isinstance(error, pickle.UnpicklingError) and (what := _unsafe(path, error)):
                raise UnsafeFileError(f"{path}: {what}; nothing was loaded, since that could run its code") from None
            raise UserError(f"{path}: not a checkpoint, or a damaged one ({_reason(error)})") from None


def _refuse_escapes(path: Path) -> None:
    """Refuse an archive with a member whose name leads out of it; PyTorch writes no such names."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: not a checkpoint: its member '{name}' leads out of the archive")


def _unsafe(path: Path, error: Exception) -> str | None:
    """Say which content of a file is unsafe; None if the error has another reason."""
    names = _GLOBAL.findall(str(error))
    with contextlib.suppress(Exception):  # the file has an older format, or one that PyTorch does not know
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if names:
        return f"holds more than tensors and plain values: {', '.join(names)}"
    if zipfile.is_zipfile(path):
        return f"is pickled in a way that PyTorch's safe reader does not know ({_reason(error)})"
    return None


def _reason(error: Exception) -> str:
    """Return an error's first sentence about the file; PyTorch puts a paragraph about its own history before it."""
    paragraphs = [part.strip() for part in str(error).split("\n\n") if part.strip()]
    if len(paragraphs) > 1 and isinstance(error, pickle.UnpicklingError):
        del paragraphs[0]
    sentence = re.split(r"\.\s", paragraphs[0])[0] if paragraphs else ""
    name = "" if isinstance(error, (RuntimeError, pickle.UnpicklingError)) else type(error).__name__
    return ": ".join(filter(None, (name, sentence)))
