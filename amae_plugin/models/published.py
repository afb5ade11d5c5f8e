"""Published checkpoints: files, and the formats that turn them into weights of this package."""

from __future__ import annotations

import argparse
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.models.settings import Settings
from amae_plugin.modules.embedding import Size2d
from amae_plugin.weight_files import read_weights, unwrapped

_STATE_KEYS = ("model", "state_dict")
_NESTED = "_ema"  # entry of a state dict that is a state dict itself, the teacher's (data2vec 2.0)
_OWN = "amae_"  # prefix of the registered names of this plugin's models


@dataclass(frozen=True)
class ConversionOptions:
    """Facts that the user states about a checkpoint; None: read from the file, or as published."""

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
    """Published checkpoint.

    Attributes:
        path: checkpoint file.
        state: state dict, without what wrappers put before its names, see :func:`unwrapped`; the names of a state dict
            inside it begin with its own name, as ``_ema.``.
        settings: settings of the run by section, if the file holds them: fairseq's ``cfg``, or the arguments of a
            script as section ``args``.
    """

    path: Path
    state: Mapping[str, Tensor]
    settings: Mapping[str, Settings] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, trust: bool = False) -> PublishedFile:
        """Read a file.

        Args:
            path: checkpoint file.
            trust: see :func:`read_weights`.

        Raises:
            UserError: the file cannot be read, holds no state dict, or is a checkpoint of this plugin; see also
                :func:`read_weights`.
        """
        path = Path(path)
        content = read_weights(path, trust=trust)
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
        settings = _find_settings(content)
        name = settings.get("model", {}).get("_name")
        if str(name).startswith(_OWN):
            raise UserError(f"{path}: is a checkpoint of this plugin already ({name})")
        if (state := find_state(content)) is None:
            found = ", ".join(str(key) for key in list(content)[:10]) or "nothing"
            raise UserError(
                f"{path}: no state dict, neither as the whole file nor as its entry {' or '.join(_STATE_KEYS)}; it "
                f"holds: {found}"
            )
        return cls(path, state, settings)


@dataclass(frozen=True)
class ConvertedWeights:
    """Published weights under this package's names.

    Attributes:
        model: model section of a checkpoint, with its ``_name``.
        state: weights under this package's names, in the model's own shapes.
        target_length: frames of the input.
        without_effect: published names of tensors that no output depends on, and the reasons.
        initialised: prefixes of this package's parameters that no file of this format holds.
        notes: assumptions that the user should know.
        statistics: mean and standard deviation of the input, if the file holds them; else the system's.
    """

    model: Settings
    state: Mapping[str, Tensor]
    target_length: int
    without_effect: Mapping[str, str] = field(default_factory=dict)
    initialised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: tuple[float, float] | None = None


class PublishedFormat(ABC):
    """Kind of published checkpoint. At most one format recognises a file.

    Attributes:
        name: value of ``--kind``.
        title: description for people.
        takes: fields of :class:`ConversionOptions` that the format uses.
        renames: patterns of published names and the names here; the first pattern that matches counts.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("num_heads", "num_mel_bins", "target_length")
    renames: ClassVar[Sequence[tuple[str, str]]] = ()

    @abstractmethod
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the names and shapes of a state dict are those of this format."""

    @abstractmethod
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        """Convert the weights and derive the sizes.

        Raises:
            KeyError: a tensor that shows a size is missing.
            ValueError: sizes or options do not fit the weights.
            RuntimeError: a part of the weights is missing.
        """

    def rename(self, name: str) -> str:
        """Return this package's name of a published parameter, or the same name if it has no counterpart."""
        for pattern, ours in self.renames:
            if re.search(pattern, name):
                return re.sub(pattern, ours, name)
        return name

    def names(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Return this package's names of the parameters of a state dict, which may tell more than a name alone."""
        return {name: self.rename(name) for name in state}

    def rename_all(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a state dict."""
        return {ours: state[name] for name, ours in self.names(state).items()}


def kernel_channels(state: Mapping[str, Tensor], name: str = "patch_embed.proj.weight") -> int:
    """Count the input channels of a patch kernel: 3 for images, 1 for spectrograms, 0 if the kernel is missing."""
    kernel = state.get(name)
    return kernel.shape[1] if kernel is not None and kernel.dim() == 4 else 0


def classifier_section(encoder: str, sizes: Mapping[str, object], num_classes: int, pooling: str) -> dict[str, object]:
    """Return the model section of a classifier on the encoder of a system with these sizes."""
    return {
        "_name": "amae_classifier",
        "encoder": {"_name": encoder, **sizes},
        "num_classes": num_classes,
        "pooling": pooling,
    }


def find_state(content: object) -> dict[str, Tensor] | None:
    """Find the state dict in the content of a file, under the names of the model itself; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    for candidate in (content, *(content.get(key) for key in _STATE_KEYS)):
        if isinstance(candidate, Mapping) and candidate:
            state = {str(name): value for name, value in candidate.items()}
            if isinstance(inner := state.get(_NESTED), Mapping):
                del state[_NESTED]
                state.update({f"{_NESTED}.{name}": value for name, value in inner.items()})
            if all(isinstance(value, Tensor) for value in state.values()):
                return unwrapped(state)
    return None


def _find_settings(content: Settings) -> dict[str, Settings]:
    """Return fairseq's sections and a script's arguments, as far as the file holds them."""
    config = content.get("cfg")
    sections = {**(config if isinstance(config, Mapping) else {}), "args": content.get("args")}
    plain = {name: vars(part) if isinstance(part, argparse.Namespace) else part for name, part in sections.items()}
    return {str(name): part for name, part in plain.items() if isinstance(part, Mapping)}
