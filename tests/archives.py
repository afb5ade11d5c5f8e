"""Golden archives, and published weights read as `amae convert` reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.interop.convert import convert
from amae_plugin.models.base import Model
from amae_plugin.models.published import ConversionOptions, PublishedFile

GOLDEN = Path(__file__).parent / "golden"


class Archive:
    """The numbers that a published system computed on a tiny model with random weights."""

    def __init__(self, name: str):
        self.values = dict(np.load(GOLDEN / f"{name}.npz"))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.values[name]))

    def number(self, name: str) -> int:
        return int(self.values[name])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin so, without the prefix, floating-point ones as float32."""
        found = {name.removeprefix(prefix): self[name] for name in self.values if name.startswith(prefix)}
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights under the published names."""
        return self.part("state/")


def read_published(content: Mapping[str, Any], **options: Any) -> Checkpoint:
    """A checkpoint converted from a file that holds this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.pt"
        torch.save(dict(content), path)
        return convert(PublishedFile.read(path), Path("converted.pt"), ConversionOptions(**options)).checkpoint


def load_published(content: Mapping[str, Any], changes: Mapping[str, Any] | None = None, **options: Any) -> Model:
    """The model of a published file, in evaluation mode.

    Args:
        content: of the file: a state dict, or a dictionary with ``model`` and settings.
        changes: settings of the model in place of its own.
        options: fields of ConversionOptions.
    """
    checkpoint = read_published(content, **options)
    settings = {**checkpoint.model_settings, **(changes or {})}
    return replace(checkpoint, config={**checkpoint.config, "model": settings}).model()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4, the agreement that the archives promise."""
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-4, atol=1e-4)


def assert_same_gradient(actual: Tensor | None, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal relative to the largest entry: an absolute 1e-4 says little about gradients that small."""
    assert actual is not None and actual.shape == expected.shape
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()
