"""What a published checkpoint is to this package: a file, and a kind that knows how to read it."""

from __future__ import annotations

import argparse
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.modules.patching import Size2d
from amae_plugin.weight_files import read_weights

_STATE_KEYS = ("model", "state_dict")
_DATA_PARALLEL = "module."
_OWN = "amae_"  # how the registered names of this plugin's models begin


@dataclass(frozen=True)
class Options:
    """What the user says of a checkpoint that it may not tell itself; None: it tells, or is as published."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    patch_size: Size2d | None = None
    patch_stride: Size2d | None = None
    num_mel_bins: int | None = None
    target_length: int | None = None
    pooling: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PublishedFile:
    """A published checkpoint.

    Attributes:
        path: of the file.
        state: its state dict, without the ``module.`` that DataParallel puts before every name.
        settings: of the run, section by section, where the file holds them: fairseq's ``cfg``, or the arguments of a
            script as section ``args``.
    """

    path: Path
    state: Mapping[str, Tensor]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, trust: bool = False) -> PublishedFile:
        """Read a file; ``trust`` is that of :func:`read_weights`.

        Raises:
            UserError: the file cannot be read, holds no state dict, or is a checkpoint of this plugin; see also
                :func:`read_weights`.
        """
        path = Path(path)
        content = read_weights(path, trust=trust)
        state = _state_of(path, content)
        if all(name.startswith(_DATA_PARALLEL) for name in state):
            state = {name[len(_DATA_PARALLEL) :]: tensor for name, tensor in state.items()}
        settings = _settings_of(content)
        name = settings.get("model", {}).get("_name")
        if str(name).startswith(_OWN):
            raise UserError(f"{path}: is a checkpoint of this plugin already ({name})")
        return cls(path, state, settings)


@dataclass(frozen=True)
class Reading:
    """A published checkpoint as this package has it.

    Attributes:
        model: the model section of a checkpoint, with its ``_name``.
        state: weights under this package's names, in the model's own shapes.
        target_length: frames of the input.
        without_effect: official names of tensors that no output depends on, and why.
        fresh: how the names of this package's parameters begin that no file of this kind holds, so that they stay as
            they are initialised.
        notes: what was taken to be so, for the user to read.
    """

    model: Mapping[str, Any]
    state: Mapping[str, Tensor]
    target_length: int
    without_effect: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Kind(ABC):
    """A kind of published checkpoint.

    Attributes:
        name: for ``--kind``.
        title: in words.
        takes: fields of :class:`Options` that can matter to it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("num_heads", "num_mel_bins", "target_length")

    @abstractmethod
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is of this kind, by its names and shapes."""

    @abstractmethod
    def read(self, file: PublishedFile, options: Options) -> Reading:
        """Name the weights as this package does, and tell the sizes.

        Raises:
            KeyError: a tensor that tells a size is missing.
            ValueError: sizes or options do not fit the weights; says which.
            RuntimeError: a tensor lacks others that belong to it.
        """

    @abstractmethod
    def rename(self, name: str) -> str:
        """This package's name of an official parameter; a name that has none is returned as it is."""


def channels(state: Mapping[str, Tensor], name: str = "patch_embed.proj.weight") -> int:
    """Input channels of a patch kernel: 3 of an image model, 1 of one for spectrograms; 0 if there is none."""
    kernel = state.get(name)
    return kernel.shape[1] if kernel is not None and kernel.dim() == 4 else 0


def _state_of(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for candidate in (content, *(content.get(key) for key in _STATE_KEYS)):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): tensor for name, tensor in candidate.items()}
    found = ", ".join(str(key) for key in list(content)[:10]) or "nothing"
    raise UserError(
        f"{path}: no state dict, neither as the whole file nor as its entry {' or '.join(_STATE_KEYS)}; it holds: "
        f"{found}"
    )


def _settings_of(content: Any) -> dict[str, dict[str, Any]]:
    """fairseq's sections and a script's arguments, those that the file holds."""
    config = content.get("cfg")
    sections = dict(config) if isinstance(config, Mapping) else {}
    sections["args"] = content.get("args")
    return {str(name): _as_dict(section) for name, section in sections.items() if _as_dict(section)}


def _as_dict(section: Any) -> dict[str, Any]:
    if isinstance(section, argparse.Namespace):
        return vars(section)
    return dict(section) if isinstance(section, Mapping) else {}
