"""Reconstructions of clips of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.inference.reconstruction import Reconstruction
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

    The masks depend on the clips only, so two models of the same grid are shown the same patches. The model computes
    as it does in validation and is left in the mode it was in.

    Args:
        model: model of any system that draws, also inside fairseq's subclass, on any device.
        dataset: validation clips, neither augmented nor cropped at random.
        clips: indices of the clips; those that cannot be decoded are left out.
        names: names of the clips; their file names if None.
        title: title of the figure; if None, a note on the prediction of a model with normalised targets.

    Raises:
        ValueError: none of the clips can be decoded.
    """
    if names is None:
        names = [Path(dataset.manifest[index].path).name for index in clips]
    decoded = [(name, item) for name, item in zip(names, (dataset[index] for index in clips)) if item is not None]
    if not decoded:
        raise ValueError(f"{dataset.manifest.path}: none of the clips {list(clips)} can be decoded")
    names, items = zip(*decoded)
    if title is None and model.normalizes_targets:
        title = NORMALIZED_TARGETS
    batch = dataset.collate(items)
    device = next(model.parameters()).device
    source, seed, padding_mask = (batch[key].to(device) for key in ("source", "seed", "padding_mask"))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(source, seed=seed, padding_mask=padding_mask)
            reconstructed = model.reconstruct(source, output["prediction"], output["mask"], padding_mask)
    finally:
        model.train(was_training)
    hidden = model.encoder.expand_mask(output["mask"], source.shape[1])
    original, reconstructed = (dataset.input.denormalize(values.double().cpu()) for values in (source, reconstructed))
    drawn = [
        Reconstruction(original[clip, :length], hidden[clip, :length].cpu(), reconstructed[clip, :length], windows=1)
        for clip, length in enumerate(batch["lengths"].tolist())
    ]
    return plot_reconstructions(drawn, dataset.input.front_end, names=names, title=title)
