"""Pictures of clips as models take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageInput:
    """Image of a model: how a picture becomes the pixels that it takes.

    Attributes:
        size: pixels of either side, S.
        mean: mean of the red, green and blue values, with full scale 1; the default is ImageNet's.
        std: their standard deviations.
        training_crop: part that training takes, ``"center"`` as published, or ``"random"``.
        training_flip: whether training mirrors every other image.
        training_frames: training takes one of this many equidistant frames of a video, at random.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    training_crop: str = "center"
    training_flip: bool = False
    training_frames: int = 10
