"""What a form of a model that other tools load offers, so that one command writes and checks them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint, Model
from amae_plugin.models.classifier import Classifier
from amae_plugin.modules.patching import Size2d


class Format(ABC):
    """A model in another form.

    Attributes:
        name: for ``--format``.
        packages: that writing and checking it needs, all of the extra ``export``.
        files: names of those that it may write.
        checkpoint: what the model was read from.
        model: in evaluation mode, in float32.
        input_size: frames and bands of its input.

    Raises:
        UserError: there is no such form of this model.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, checkpoint: Checkpoint, model: Model):
        self.checkpoint = checkpoint
        self.model = model
        self.input_size: Size2d = (checkpoint.input.target_length, checkpoint.input.num_mel_bins)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the files to a folder that exists."""

    @abstractmethod
    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        """What the other tool computes with the written files.

        Args:
            folder: of the files.
            source: (B, T, F) log-mel, as the model takes it.

        Returns:
            Of a classifier its logits (B, C), else the features (B, prefix + L, D).
        """

    @abstractmethod
    def loading(self, folder: str) -> str:
        """How the files are loaded from a folder, in Markdown; ``log_mel`` is the input (B, T, F)."""

    def largest_difference(self, folder: Path, sources: Sequence[Tensor]) -> float:
        """How far what the other tool computes is from what the model computes, relative to the largest output.

        Args:
            folder: of the written files.
            sources: batches (B, T, F).
        """
        largest = 0.0
        for source in sources:
            with torch.inference_mode():
                expected = outputs_of(self.model, source)
                actual = self.outputs(folder, source)
            largest = max(largest, float((actual - expected).abs().max() / expected.abs().max()))
        return largest


def outputs_of(model: Model, source: Tensor) -> Tensor:
    """What a form of a model must compute: see :meth:`Format.outputs`."""
    if isinstance(model, Classifier):
        return model(source)["logits"]
    return model.extract_features(source)[0]
