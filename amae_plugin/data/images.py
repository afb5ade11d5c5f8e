"""The image that a model takes of a picture, made by torchvision; sounds alone need none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amae_plugin.errors import UserError

CROPS = ("center", "random")
_SMALLEST_SHARE = 0.2  # of the area that a random crop keeps, as MAE's pretraining on images does


@dataclass(frozen=True)
class ImageInput:
    """Image of a model: how a picture becomes the pixels that it takes.

    The short side is resized to *size* (bicubic, with antialiasing) and the middle cut out, as CAV-MAE's code does.

    Attributes:
        size: pixels of either side, S.
        mean: mean of the red, green and blue values, with full scale 1; the default is ImageNet's.
        std: their standard deviations.
        training_crop: part that training takes, ``"center"`` as published, or ``"random"``: a part of 20% to 100% of
            the area and of any aspect of 3:4 to 4:3, as in MAE's pretraining on images.
        training_flip: whether training mirrors every other image.
        training_frames: training takes one of this many equidistant frames of a video, at random.

    Raises:
        ValueError: there is no such crop, or a number is none that an image can have.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    training_crop: str = "center"
    training_flip: bool = False
    training_frames: int = 10

    def __post_init__(self) -> None:
        for name in ("size", "training_frames"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} of the image is {value}, must be 1 or more")
        if self.training_crop not in CROPS:
            raise ValueError(f"training_crop of the image is '{self.training_crop}', must be one of {', '.join(CROPS)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} of the image must be three numbers each, std above 0"
            )

    def __call__(self, picture: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Map a picture (3, H, W) uint8 to the image (3, S, S) float32, normalised.

        Args:
            picture: decoded picture, in red, green and blue.
            rng: source of what is random in training; None for the middle, not mirrored.
        """
        if rng is None:
            return _transform(self, False)(picture)
        # torchvision draws from PyTorch's own generator.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return _transform(self, True)(picture)

    def denormalize(self, image: Tensor) -> Tensor:
        """Undo the normalisation of images (..., 3, S, S): red, green and blue from 0 to 1."""
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (self.mean, self.std))
        return image * std + mean

    def draw_position(self, rng: np.random.Generator) -> float:
        """Draw the position of a frame for training, in [0, 1)."""
        return int(rng.integers(self.training_frames)) / self.training_frames


@functools.cache
def _transform(wanted: ImageInput, train: bool) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import InterpolationMode, v2

    size, bicubic = wanted.size, InterpolationMode.BICUBIC
    steps = [v2.Resize(size, bicubic, antialias=True), v2.CenterCrop(size)]
    if train and wanted.training_crop == "random":
        steps = [v2.RandomResizedCrop(size, (_SMALLEST_SHARE, 1.0), interpolation=bicubic, antialias=True)]
    if train and wanted.training_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(wanted.mean, wanted.std)])


def require_torchvision() -> None:
    """Raise a UserError if torchvision is not installed."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        remedy = "pip install av pillow torchvision"
        raise UserError(f"torchvision, which makes images of pictures, is not installed: {remedy}") from None
