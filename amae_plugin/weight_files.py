"""Files of weights, read as tensors and plain values without running code from them."""

import argparse
import contextlib
import os
import pickle
import re
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load_file
from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.files import reading

_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not|whose)")
_OPTIMIZER = ("last_optimizer_state", "optimizer", "optimizer_states")
"""Entries of optimizers: of fairseq, of most scripts, of Lightning."""
_ARCHIVE = b"PK\3\4"  # first bytes of a zip archive
_START = 512  # bytes by which a text is told
_TEXT = re.compile(rb"[\t\n\r -~][\t\n\r -~\x80-\xff]*")
_WRAPPERS = ("module.", "model.")  # of DataParallel and of Lightning, before every name
_COMPILED = "_orig_mod."  # of torch.compile, before every name or within
_DAMAGED = "its content differs from its own checksums, so the file is damaged; copy or download it again"


class UnsafeFileError(UserError):
    """A file holds objects that only code of its choice could make."""


def read_weights(path: str | os.PathLike[str], *, trust: bool = False, optimizer: bool = False) -> object:
    """Read a file that ``torch.save`` or safetensors wrote, on the CPU.

    The archive that ``torch.save`` writes has a checksum of each tensor, and all that is returned is compared with
    them. Three kinds of file have none, so changed values in them go unnoticed: those of PyTorch before 1.6, those of
    safetensors, and archives written after ``torch.serialization.set_crc32_options(False)``. A file of any kind that
    lacks a part is refused.

    Args:
        path: file; the suffix ``.safetensors`` marks a safetensors file.
        trust: unpickle any object in the file, which runs whatever code it asks for.
        optimizer: return the optimizer's state as well, and all tensors in memory; otherwise they are mapped from the
            file, most of which may be that state.

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
            with path.open("rb") as file:
                start = file.read(_START)
            is_archive = zipfile.is_zipfile(path)
            is_text = not is_archive and _TEXT.fullmatch(start)  # a web page, or what Git LFS keeps in place of a file
            if not start or is_text or (start.startswith(_ARCHIVE) and not is_archive):
                found = "its end is missing" if start else "it is empty"
                if is_text:
                    line = start.decode(errors="replace").strip().split("\n")[0]
                    found = f"it is text: {textwrap.shorten(line, 60)}"
                raise UserError(f"{path}: not a checkpoint, or a damaged one ({found}); copy it again or take another")
            if path.suffix == ".safetensors":
                return load_file(path)
            checksums = _read_checksums(path) if is_archive else None
            mapped = is_archive and not optimizer
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=mapped)
            if isinstance(content, dict) and not optimizer:
                content = {name: value for name, value in content.items() if name not in _OPTIMIZER}
            if checksums:
                _check(path, content, checksums)
            return content
        except (UserError, OSError):
            raise
        except ImportError as error:
            raise UserError(f"{path}: holds objects of a package that is not installed here ({error})") from None
        except Exception as error:  # a damaged or foreign file can make a reader raise anything
            if isinstance(error, pickle.UnpicklingError) and (what := _unsafe(path, error)):
                raise UnsafeFileError(f"{path}: {what}; nothing was loaded, since that could run its code") from None
            raise UserError(f"{path}: not a checkpoint, or a damaged one ({_reason(error)})") from None


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the names of the model itself, without those that wrappers put before them.

    The wrappers are DataParallel, torch.compile and Lightning's modules, in any order. A name that another tensor has
    is left as it is.
    """
    names = {name: name.replace(_COMPILED, "") for name in state}
    for prefix in _WRAPPERS * 2:
        if names and all(name.startswith(prefix) for name in names.values()):
            names = {name: short.removeprefix(prefix) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[name]: tensor for name, tensor in state.items()}


_Checksums = set[tuple[int, int]]
"""Sizes in bytes and CRC-32 of the members of an archive."""


def _read_checksums(path: Path) -> _Checksums:
    """Read the checksums of an archive that PyTorch wrote, and check all of it but the tensors.

    Returns:
        The checksums of its members; empty if it was written without.

    Raises:
        UserError: a member's content is not that of its checksum, or its name leads out of the archive.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not any(member.filename.endswith("data.pkl") for member in members):
            raise UserError(f"{path}: not a checkpoint, but an archive of other files; take the checkpoint out of it")
        for member in members:
            parts = PurePosixPath(member.filename).parts
            if PurePosixPath(member.filename).is_absolute() or ".." in parts:
                raise UserError(f"{path}: not a checkpoint: its member '{member.filename}' leads out of the archive")
        if not any(member.CRC for member in members):
            return set()
        for member in members:
            if PurePosixPath(member.filename).parent.name != "data":
                try:
                    archive.read(member)
                except (zipfile.BadZipFile, zlib.error):
                    raise UserError(f"{path}: {_DAMAGED} (its member '{member.filename}')") from None
        return {(member.file_size, member.CRC) for member in members}


def _check(path: Path, content: object, checksums: _Checksums) -> None:
    """Compare the tensors of an archive's content with its checksums.

    Raises:
        UserError: the values of a tensor have no checksum in the archive.
    """
    checked: set[int] = set()
    for name, tensor in _tensors(content):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in checked and storage.nbytes():
            checked.add(storage.data_ptr())
            values = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
            if (storage.nbytes(), zlib.crc32(values)) not in checksums:
                raise UserError(f"{path}: {_DAMAGED} (its tensor {name})")


def _tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside plain containers, with their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, argparse.Namespace):
        yield from _tensors(vars(content), name)
    elif isinstance(content, (Mapping, list, tuple, set)):
        parts = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in parts:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


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
