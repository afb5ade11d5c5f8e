"""The interface of a format that other tools load, by which one command writes and checks all formats."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.models.base import Model
from amae_plugin.modules.embedding import Size2d


class Format(ABC):
    """A model in a format of another tool.

    Attributes:
        name: value of ``--format``.
        library: name of the other tool's library.
        takes_log_mel: whether the other tool takes the model's input, log-mel; otherwise it takes waveforms.
        packages: packages of the extra ``export`` that writing and checking needs.
        files: names of the files that it may write.
        checkpoint: checkpoint of the model.
        model: model in evaluation mode, in float32.
        input_size: frames and bands of the model's input.

    Raises:
        UserError: this format cannot hold the model.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    takes_log_mel: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, checkpoint: Checkpoint, model: Model):
        self.checkpoint = checkpoint
        self.model = model
        self.input_size: Size2d = (checkpoint.input.target_length, checkpoint.input.num_mel_bins)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the files to a folder that exists."""

    def expected(self, source: Tensor) -> Tensor:
        """Compute what :meth:`outputs` must give: the model's ``outputs``, unless the format has others."""
        return self.model.outputs(source)

    @abstractmethod
    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        """Compute with the other tool what the checkpoint computes.

        Args:
            folder: folder of the written files.
            source: (B, T, F) log-mel, the model's input.

        Returns:
            Logits (B, C) of a classifier; of a pretraining model features, (B, prefix + L, D) unless the format has
            others.
        """

    @abstractmethod
    def loading(self, folder: str) -> str:
        """Explain in Markdown how to load the files from a folder; ``log_mel`` is the input (B, T, F)."""

    def largest_difference(self, folder: Path) -> float:
        """Compare the other tool's outputs with the model's on noise with the spread of normalised input.

        Returns:
            The largest difference over batches of several sizes, relative to the largest output of the batch.
        """
        generator, differences = torch.Generator().manual_seed(0), []
        for batch in (1, 3):
            source = torch.randn(batch, *self.input_size, generator=generator) / 2
            with torch.inference_mode():
                expected, actual = self.expected(source), self.outputs(folder, source)
            differences.append(float((actual - expected).abs().max() / expected.abs().max()))
        return max(differences)
