"""A model over the clips of a manifest, each of them as one piece or as several whose results are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor, nn
from tqdm import tqdm

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.audio import AudioError
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.modules.compute import choose_device

CENTRE = 0.5


@dataclass(frozen=True)
class Options:
    """How clips are put through a model.

    Attributes:
        crops: pieces of a clip that is longer than the model's input, evenly spaced from its beginning to its end; 1
            is its centre.
        batch_size: pieces at a time.
        workers: processes that decode; 0: this one does.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for a GPU if there is one.
        skip_bad_audio: leave out clips that cannot be decoded, instead of stopping at the first.
        progress: whether to show a progress bar, on standard error.
    """

    crops: int = 1
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"
    skip_bad_audio: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.crops < 1 or self.batch_size < 1 or self.workers < 0:
            raise ValueError("crops and batch_size must be at least 1, and workers 0 or more")

    @property
    def positions(self) -> Sequence[float]:
        """Of the pieces in a clip, from 0, its beginning, to 1, its end."""
        return [CENTRE] if self.crops == 1 else np.linspace(0, 1, self.crops).tolist()

    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            UserError: it is a GPU and there is none.
        """
        return choose_device(self.device)


@dataclass(frozen=True)
class ClipValues:
    """What a model gave for M clips of a manifest.

    Attributes:
        clips: (M,) int64, ascending indices into the manifest.
        values: (M, K) float64, means over the pieces of each clip.
        pieces: (M,) int64, into how many pieces each clip was cut.
        skipped: of clips that could not be decoded, index and reason.
    """

    clips: np.ndarray
    values: np.ndarray
    pieces: np.ndarray
    skipped: Mapping[int, str]


def score_clips(
    checkpoint: Checkpoint,
    manifest: Manifest,
    function: Callable[[nn.Module, Tensor, Tensor], Tensor],
    options: Options,
    clips: np.ndarray | None = None,
) -> ClipValues:
    """Put clips through the model of a checkpoint, normalised and cut or padded as in its training.

    Every clip gives one piece. One that fills the model's input is longer, and gives the other pieces too; that it may
    fit to the sample makes no difference, as its pieces are then the same.

    Args:
        checkpoint: of any model.
        manifest: the clips.
        function: from the model, (B, T, F) normalised log-mel and its padding mask (B, T) to (B, K) of which clips'
            means are wanted.
        options: pieces, batches, device.
        clips: ascending indices into the manifest; all if None.

    Raises:
        UserError: there are no clips, one cannot be decoded (or none can, where these are skipped), the device or a
            setting of the checkpoint is missing, or the model gives values that are not finite.
    """
    device = options.torch_device()
    datasets = [dataset_of(checkpoint, manifest, position) for position in options.positions]
    left = np.arange(len(manifest)) if clips is None else clips
    if not len(left):
        raise UserError(f"{manifest.path}: holds no clips")
    model = checkpoint.model().to(device)
    sums: np.ndarray | None = None
    pieces = np.zeros(len(manifest), np.int64)
    skipped: dict[int, str] = {}
    with torch.inference_mode(), _progress_bar(len(left), options) as bar:
        for number, dataset in enumerate(datasets):
            longer: list[np.ndarray] = []
            for batch, failures in _batches(dataset, left, options, device):
                for clip, error in failures:
                    if not options.skip_bad_audio:
                        raise UserError(f"{error}\nGo on without such clips with --skip-bad-audio")
                    skipped[clip] = error.reason or str(error)
                if batch:
                    ids = batch["id"].numpy()
                    inputs = (batch[name].to(device, non_blocking=True) for name in ("source", "padding_mask"))
                    values = function(model, *inputs).double().cpu().numpy()
                    if sums is None:
                        sums = np.zeros((len(manifest), values.shape[1]))
                    sums[ids] += values
                    pieces[ids] += 1
                    longer.append(ids[batch["lengths"].numpy() == dataset.target_length])
                bar.update(len(failures) + (len(batch["id"]) if batch else 0))
            if number == 0:
                left = np.concatenate([np.zeros(0, np.int64), *longer])
                bar.total += len(left) * (len(datasets) - 1)
    # A clip is out if one of its pieces is: its mean would be that of other places than asked for.
    pieces[list(skipped)] = 0
    found = np.flatnonzero(pieces)
    if sums is None or not len(found):
        clip, reason = next(iter(skipped.items()))
        raise UserError(f"{manifest.path}: no clip can be decoded; the first one, {manifest.name(clip)}: {reason}")
    means = sums[found] / pieces[found, None]
    bad = int((~np.isfinite(means).all(axis=1)).sum())
    if bad:
        raise UserError(
            f"{checkpoint.path}: the model gives values that are not finite numbers for {bad:,} of {len(found):,} "
            "clips; its training diverged, so take an earlier checkpoint"
        )
    return ClipValues(found, means, pieces[found], skipped)


def dataset_of(checkpoint: Checkpoint, manifest: Manifest, position: float = CENTRE) -> AudioDataset:
    """Clips as a checkpoint's model was validated with them.

    Args:
        checkpoint: of any model.
        manifest: the clips.
        position: of the piece that is taken of a longer clip, from 0, its beginning, to 1, its end.

    Raises:
        UserError: a setting of the checkpoint is missing.
    """
    settings = checkpoint.input_settings
    return AudioDataset(
        manifest,
        target_length=settings["target_length"],
        mean=settings["mean"],
        std=settings["std"],
        features=LogMel.from_settings(settings),
        crop_position=position,
    )


_Batch = tuple[dict[str, Any], list[tuple[int, AudioError]]]


class _Attempts(torch.utils.data.Dataset):
    """Items of some clips, or the clip and the error: returned, since a worker's exceptions arrive with tracebacks."""

    def __init__(self, dataset: AudioDataset, clips: np.ndarray):
        self.dataset = dataset
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any] | tuple[int, AudioError] | None:
        clip = int(self.clips[index])
        try:
            return self.dataset[clip]
        except AudioError as error:
            return clip, error

    def collate(self, items: Sequence[Any]) -> _Batch:
        """A batch of those that could be decoded, and the others."""
        failures = [item for item in items if isinstance(item, tuple)]
        return self.dataset.collate([item for item in items if not isinstance(item, tuple)]), failures


def _batches(dataset: AudioDataset, clips: np.ndarray, options: Options, device: torch.device) -> Iterator[_Batch]:
    """Batches in the order of the clips; those that could not be decoded are listed beside them."""
    attempts = _Attempts(dataset, clips)
    return iter(
        torch.utils.data.DataLoader(
            attempts,
            options.batch_size,
            num_workers=options.workers,
            collate_fn=attempts.collate,
            pin_memory=device.type == "cuda",
        )
    )


def _progress_bar(clips: int, options: Options) -> tqdm:
    unit = "clip" if options.crops == 1 else "piece"
    return tqdm(total=clips, desc="scoring", unit=unit, disable=not options.progress)
