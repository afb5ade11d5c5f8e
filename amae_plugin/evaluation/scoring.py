"""Scoring: values of a model for the clips of a manifest, averaged over pieces of longer clips and frames of videos."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.audio import AudioError
from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.inference.windows import CENTRE, frame_positions, piece_positions
from amae_plugin.models.base import Model
from amae_plugin.modules.compute import choose_device, enough_memory
from amae_plugin.processes import killed_with_parent
from amae_plugin.progress import tqdm

Inputs = dict[str, Tensor]
"""Arguments of a model by name: normalised log-mel values ``source`` (B, T, F) with their ``padding_mask`` (B, T), and
pictures ``image`` (B, 3, S, S)."""


@dataclass(frozen=True)
class Options:
    """Options of scoring.

    Attributes:
        crops: number of pieces of a clip that is longer than the model's input, evenly spaced from its beginning to its
            end; a single piece is the centre.
        batch_size: pieces at a time.
        workers: number of processes that decode; with 0, this one does.
        device: device or its name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which prefers a GPU.
        skip_bad_audio: leave out clips that cannot be decoded instead of stopping at the first.
        progress: show a progress bar on standard error.
        resamples: number of resamples of the clips for confidence intervals; with 0, there are none.
        frames: number of frames of a clip's video, evenly spaced from its beginning on; a single one is the middle one.
        modalities: what a model of several modalities is given; all that it takes if None.
    """

    crops: int = 1
    batch_size: int = 64
    workers: int = 0
    device: str | torch.device = "auto"
    skip_bad_audio: bool = False
    progress: bool = True
    resamples: int = 0
    frames: int = 1
    modalities: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if min(self.crops, self.frames, self.batch_size) < 1 or self.workers < 0:
            raise ValueError("crops, frames and batch_size must be at least 1, and workers 0 or more")

    def seeds_of_resamples(self) -> Iterable[int]:
        """Return a seed for each resample, with a progress bar if they are many."""
        return tqdm(range(self.resamples), desc="resampling", disable=not self.progress, delay=1, leave=False)


@dataclass(frozen=True)
class ClipValues:
    """Values of a model for M clips of a manifest.

    Attributes:
        clips: ascending indices into the manifest, (M,) int64.
        values: means over the pieces of each clip, each with each frame, (M, K) float64.
        longer: whether each clip fills the model's input, so that it has other pieces, (M,) bool.
        skipped: indices of clips that could not be decoded, and the reasons.
    """

    clips: np.ndarray
    values: np.ndarray
    longer: np.ndarray
    skipped: Mapping[int, str]


def score_clips(
    checkpoint: Checkpoint,
    manifest: Manifest,
    function: Callable[[Model, Inputs], Tensor],
    options: Options,
    clips: np.ndarray | None = None,
) -> ClipValues:
    """Pass clips through the model of a checkpoint, normalised and cut or padded as in its training.

    The first pass takes one piece and one frame of every clip, the next ones its other frames. Clips that fill the
    model's input count as longer, and further passes take their other pieces. The pieces of a clip that fits exactly
    are equal.

    Args:
        checkpoint: checkpoint of any model.
        manifest: clips.
        function: function from the model and its inputs to the values (B, K) to average.
        options: pieces, frames, modalities, batches and device.
        clips: ascending indices into the manifest; all if None.

    Raises:
        UserError: the manifest holds no clips, a clip cannot be decoded (with ``skip_bad_audio``: none can), the device
            or a setting of the checkpoint is missing, the model does not take such a modality, the manifest lacks
            pictures that it takes, or a value of the model is not finite.
    """
    device = choose_device(options.device)
    modalities = given_modalities(checkpoint, options.modalities)
    if options.frames > 1 and "image" not in modalities:
        raise UserError(f"--frames {options.frames}: the model of {checkpoint.path} is given no pictures; leave it out")
    if "image" in modalities:
        optional = checkpoint.downstream is not None and "audio" in modalities
        manifest.require_pictures("--modalities audio" if optional else "")
    frames = frame_positions(options.frames)
    pieces_of_clip = piece_positions(options.crops)
    left = longer = np.arange(len(manifest.require_clips())) if clips is None else clips
    model = checkpoint.model()
    with enough_memory(device, "the model: use another device"):
        model = model.to(device)
    sums: np.ndarray | None = None
    pieces = np.zeros(len(manifest), np.int64)
    skipped: dict[int, str] = {}
    with torch.inference_mode(), _progress_bar(len(left) * len(frames), options) as bar:
        for number, (piece, frame) in enumerate(itertools.product(range(options.crops), frames)):
            dataset = validation_dataset(checkpoint, manifest, pieces_of_clip[piece], modalities, frame)
            full: list[np.ndarray] = []
            for batch, failures in _batches(dataset, longer if piece else left, options, device):
                for clip, error in failures:
                    if not options.skip_bad_audio:
                        raise UserError(f"{error}\nGo on without such clips with --skip-bad-audio")
                    skipped[clip] = error.reason or str(error)
                if batch:
                    ids = batch["id"].numpy()
                    with enough_memory(device, f"{options.batch_size} pieces at a time: lower --batch-size"):
                        inputs = model_inputs(batch, modalities, device)
                        values = function(model, inputs).double().cpu().numpy()
                    if sums is None:
                        sums = np.zeros((len(manifest), values.shape[1]))
                    sums[ids] += values
                    pieces[ids] += 1
                    if "audio" in modalities:  # of a picture alone, all pieces are the same
                        full.append(ids[batch["lengths"].numpy() == dataset.input.target_length])
                bar.update(len(failures) + (len(batch["id"]) if batch else 0))
            if number == 0:
                left, longer = np.setdiff1d(left, list(skipped)), np.concatenate([np.zeros(0, np.int64), *full])
                bar.total += len(longer) * (options.crops - 1) * len(frames) - len(skipped) * (len(frames) - 1)
    # A clip is left out if one of its pieces is bad, since the others would not be the requested mean.
    pieces[list(skipped)] = 0
    found = np.flatnonzero(pieces)
    if sums is None or not len(found):
        clip, reason = next(iter(skipped.items()))
        raise UserError(f"{manifest.path}: no clip can be decoded; the first one, {manifest.name(clip)}: {reason}")
    means = sums[found] / pieces[found, None]
    checkpoint.require_finite(torch.from_numpy(means))
    return ClipValues(found, means, np.isin(found, longer), skipped)


def given_modalities(checkpoint: Checkpoint, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Return what the model of a checkpoint is given of a clip.

    Args:
        checkpoint: checkpoint of any model.
        modalities: some of what it takes; all of it if None.

    Raises:
        UserError: it does not take them all.
    """
    taken = checkpoint.modalities
    if modalities is None:
        return taken
    if not set(modalities) <= set(taken):
        raise UserError(f"{checkpoint.path}: takes {' and '.join(taken)} of a clip, not {' and '.join(modalities)}")
    return tuple(name for name in taken if name in modalities)


def model_inputs(batch: Mapping[str, Tensor], modalities: Sequence[str], device: torch.device) -> Inputs:
    """Move what of a batch is given to a model to its device."""
    names = {"audio": ("source", "padding_mask"), "image": ("image",)}
    given = itertools.chain.from_iterable(names[modality] for modality in modalities)
    return {name: batch[name].to(device, non_blocking=True) for name in given}


def require_directions(
    checkpoint: Checkpoint, manifest: Manifest, clips: np.ndarray, values: np.ndarray, what: str = "the features of"
) -> None:
    """Refuse features (M, D) of clips of a manifest that are all 0.

    Raises:
        UserError: those of a clip are.
    """
    directionless = ~values.any(axis=1)
    if directionless.any():
        clip = manifest.name(int(clips[directionless.argmax()]))
        raise UserError(f"{checkpoint.path}: {what} {clip} are all 0, so they have no direction to compare")


def validation_dataset(
    checkpoint: Checkpoint,
    manifest: Manifest,
    position: float = CENTRE,
    modalities: Sequence[str] | None = None,
    frame: float = CENTRE,
) -> AudioDataset:
    """Prepare clips as in the validation of a checkpoint's model.

    Args:
        checkpoint: checkpoint of any model.
        manifest: clips.
        position: position of the piece of a longer clip, between 0, its beginning, and 1, its end.
        modalities: what is taken of a clip; all that the model takes if None.
        frame: position of the frame of a video, likewise.

    Raises:
        UserError: a setting of the checkpoint is missing, or the manifest lacks pictures that are to be taken.
    """
    model_input = checkpoint.input
    if "image" not in given_modalities(checkpoint, modalities):
        model_input = replace(model_input, image=None)
    return AudioDataset(manifest, model_input, crop_position=position, image_position=frame)


_Batch = tuple[dict[str, Tensor], list[tuple[int, AudioError]]]


class _Attempts(torch.utils.data.Dataset):
    """Items of clips, or clips with errors, which are returned because exceptions of workers arrive with tracebacks."""

    def __init__(self, dataset: AudioDataset, clips: np.ndarray):
        self.dataset = dataset
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Item | tuple[int, AudioError] | None:
        clip = int(self.clips[index])
        try:
            return self.dataset[clip]
        except AudioError as error:
            return clip, error

    def collate(self, items: Sequence[Item | tuple[int, AudioError] | None]) -> _Batch:
        """Separate the decoded clips, as a batch, from the failures."""
        failures = [item for item in items if isinstance(item, tuple)]
        return self.dataset.collate([item for item in items if not isinstance(item, tuple)]), failures


def _batches(dataset: AudioDataset, clips: np.ndarray, options: Options, device: torch.device) -> Iterator[_Batch]:
    """Yield batches in the order of the clips, each with its failures."""
    attempts = _Attempts(dataset, clips)
    return iter(
        torch.utils.data.DataLoader(
            attempts,
            options.batch_size,
            num_workers=min(options.workers, len(attempts)),
            collate_fn=attempts.collate,
            worker_init_fn=killed_with_parent,
            pin_memory=device.type == "cuda",
        )
    )


def _progress_bar(clips: int, options: Options) -> tqdm:
    unit = "clip" if options.crops == options.frames == 1 else "piece"
    return tqdm(total=clips, desc="scoring", unit=unit, disable=not options.progress)
