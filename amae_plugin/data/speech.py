"""Clips with their transcripts: each comes whole, since a transcript cannot be cropped with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.data.transcripts import SPECIAL, Transcripts

_PAD = SPECIAL.index("<pad>")


class SpeechItem(Item):
    """A clip with its transcript.

    Attributes:
        units: (S,) int64, the transcript.
    """

    units: Tensor


@dataclass(eq=False, kw_only=True)
class SpeechDataset(AudioDataset):
    """Whole clips of a manifest as log-mel spectrograms, with their transcripts.

    A clip whose file is longer than the model's input, or too short for its transcript, counts as one that cannot be
    decoded. :attr:`too_long` and :attr:`too_short` tell beforehand, by what the manifest says.

    Attributes:
        transcripts: transcripts of the manifest's clips.
        steps: function from numbers of frames to the numbers of the model's steps.

    Raises:
        ValueError: see :class:`AudioDataset`; or batches are cropped, an augmentation changes what a clip says, or the
            transcripts are not those of the manifest.
    """

    transcripts: Transcripts
    steps: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_length == "shortest":
            raise ValueError("batch_length is 'shortest', which crops clips and not their transcripts; choose longest")
        if len(self.transcripts) != len(self.manifest):
            raise ValueError(f"{len(self.transcripts)} transcripts do not fit {len(self.manifest)} clips")
        moving = [type(each).__name__.lower() for each in self.augmentations if not each.keeps_order]
        if moving:
            remedy = "leave it out, and set frames=0 of noise" if "noise" in moving else "leave it out"
            raise ValueError(f"augmentations: {', '.join(moving)} would change what a clip says, and when; {remedy}")

    @property
    def too_long(self) -> np.ndarray:
        """Clips of the manifest that are longer than the model's input, (N,) bool."""
        return self.clip_frames > self.input.target_length

    @property
    def too_short(self) -> np.ndarray:
        """Clips of the manifest that have fewer steps than CTC needs for their transcripts, (N,) bool."""
        return self.steps(self.clip_frames) < self.transcripts.steps_needed

    @override
    def __getitem__(self, index: int) -> SpeechItem | None:
        item = super().__getitem__(index)
        units = torch.from_numpy(self.transcripts[self.clip(index)].astype(np.int64))
        return None if item is None else SpeechItem(**item, units=units)

    @override
    def collate(self, items: Sequence[Item | None]) -> dict[str, Any]:
        """Make a batch; to the result of :meth:`AudioDataset.collate` come the transcripts.

        They are ``target`` (B, S) int64, padded with fairseq's ``<pad>``, and ``target_lengths`` (B,) int64.
        """
        batch = super().collate(items)
        if batch:
            units = [item["units"] for item in items if item is not None]  # type: ignore[typeddict-item]
            batch["target"] = pad_sequence(units, batch_first=True, padding_value=_PAD)
            batch["target_lengths"] = torch.tensor([len(each) for each in units])
        return batch

    @override
    def _decode(self, clip: int, position: float) -> Tensor:
        waveform = load_clip(self.manifest[clip], self.input.sample_rate)
        frames = self.input.front_end.frames_in(np.array(len(waveform)))
        needed = self.transcripts.steps_needed[clip]
        if frames > self.input.target_length:
            problem = f"has {frames} frames, more than the model's input of {self.input.target_length}"
        elif self.steps(frames) < needed:
            problem = f"has {self.steps(frames)} steps, fewer than the {needed} that its transcript needs"
        else:
            return waveform
        raise AudioError(str(self.manifest[clip]), f"{problem}, and its manifest says otherwise")
