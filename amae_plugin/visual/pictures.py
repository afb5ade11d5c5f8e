"""Clips of a data set, reconstructed by a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.models.base import PretrainingModel
from amae_plugin.visual.spectrograms import NORMALIZED_TARGETS, plot_reconstructions


def draw_clips(
    model: PretrainingModel,
    dataset: AudioDataset,
    clips: Sequence[int],
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Hide patches of some clips, reconstruct them and draw both.

    The masks depend on the clips alone, so two models of the same grid are shown the same patches. The model computes
    as it does in validation and is left in the mode it was in.

    Args:
        model: of any system, also inside fairseq's subclass, on any device.
        dataset: whose clips are meant to be those of validation: not augmented, not cropped at random.
        clips: their indices.
        names: what is written above them; their file names if None.
        title: of the figure; if None, of a model with normalised targets, what it predicts.

    Raises:
        ValueError: none of the clips could be decoded.
    """
    decoded = [(index, item) for index, item in zip(clips, (dataset[index] for index in clips)) if item is not None]
    if not decoded:
        raise ValueError(f"{dataset.manifest.path}: none of the clips {list(clips)} can be decoded")
    by_clip = dict(zip(clips, names if names is not None else (_file_name(dataset, index) for index in clips)))
    batch = dataset.collate([item for _, item in decoded])
    if title is None and model.normalizes_targets:
        title = NORMALIZED_TARGETS
    device = next(model.parameters()).device
    source = batch["source"].to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            padding_mask = batch["padding_mask"].to(device)
            output = model(source, seed=batch["seed"].to(device), padding_mask=padding_mask)
            reconstructed = model.reconstruct(source, output["prediction"], output["mask"], padding_mask)
    finally:
        model.train(was_training)
    encoder = model.encoder
    shift, scale = dataset.input.shift_and_scale
    return plot_reconstructions(
        source,
        output["mask"],
        reconstructed,
        patch_size=encoder.patch_size,
        mean=shift,
        std=scale / 2,
        lengths=batch["lengths"],
        names=[by_clip[index] for index, _ in decoded],
        title=title,
        features=dataset.input.front_end,
    )


def _file_name(dataset: AudioDataset, index: int) -> str:
    return Path(dataset.manifest[index].path).name
