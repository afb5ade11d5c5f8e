"""Evaluation of recognisers on a whole split."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.transcripts import read_transcripts
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Options, given_modalities
from amae_plugin.inference.clips import load_each
from amae_plugin.inference.model import AudioRecognizer
from amae_plugin.metrics.bootstrap import Interval, rate_interval
from amae_plugin.metrics.recognition import TextErrors
from amae_plugin.modules.compute import choose_device, enough_memory
from amae_plugin.progress import tqdm


@dataclass(frozen=True)
class Recognition:
    """Results of a recogniser on M clips of a split.

    Attributes:
        checkpoint: checkpoint file.
        data: folder of manifests.
        split: name of the split.
        clips: manifest paths of the M clips.
        references: their texts.
        hypotheses: what the most probable units of all steps spell.
        errors: errors of each clip.
        skipped: paths of clips that could not be decoded, which no other attribute counts, and the reasons.
        intervals: confidence intervals of the error rates of ``total``, by its names; empty if none were asked for.
    """

    checkpoint: Path
    data: Path
    split: str
    clips: tuple[str, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    errors: tuple[TextErrors, ...]
    skipped: Mapping[str, str]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def total(self) -> TextErrors:
        """Errors of the whole split."""
        return sum(self.errors, TextErrors())


def recognize(
    checkpoint: Checkpoint | str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    options: Options | None = None,
) -> Recognition:
    """Transcribe all clips of a split and count the errors. Clips longer than the model's input go through in windows.

    Args:
        checkpoint: checkpoint of a recogniser, or its file.
        data: folder of ``<split>.tsv`` and ``<split>.<labels>``, with the labels of the training.
        split: name of the split.
        options: batches, device, and treatment of clips that cannot be decoded; no pieces.

    Raises:
        UserError: the model is not a recogniser, a file is missing or malformed, a clip cannot be decoded (with
            ``skip_bad_audio``: none can), the device is missing, or a value of the model is not finite.
    """
    options = options or Options()
    for name in ("crops", "frames"):
        if (number := getattr(options, name)) > 1:
            reason = "a recogniser takes whole clips, longer ones in windows, and no pictures"
            raise UserError(f"--{name} {number}: {reason}; leave it out")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    given_modalities(checkpoint, options.modalities)
    data, units = Path(data), checkpoint.units
    manifest = Manifest.read(data / f"{split}.tsv").require_clips()
    lines = read_transcripts(data / f"{split}.{units.labels}", len(manifest))
    device = choose_device(options.device)
    model = AudioRecognizer(checkpoint, options.batch_size)
    with enough_memory(device, "the model: use another device"):
        model = model.to(device)
    found: list[int] = []
    hypotheses: list[str] = []
    skipped: dict[int, AudioError] = {}

    def waveforms() -> Iterator[Tensor]:
        load = partial(load_clip, sample_rate=model.sample_rate)
        for clip, waveform in enumerate(load_each(manifest, load, min(options.workers, len(manifest)))):
            if not isinstance(waveform, AudioError):
                found.append(clip)
                yield waveform
            elif options.skip_bad_audio:
                skipped[clip] = waveform
            else:
                raise UserError(f"{waveform}\nGo on without such clips with --skip-bad-audio")

    progress = tqdm(total=len(manifest), desc="transcribing", unit="clip", disable=not options.progress)
    with progress as bar:
        for transcription in model.transcriptions(waveforms()):
            hypotheses.append(transcription.text)
            bar.update(len(hypotheses) + len(skipped) - bar.n)
    if not found:
        clip, first = next(iter(skipped.items()))
        raise UserError(
            f"{manifest.path}: no clip can be decoded; the first one, {manifest.name(clip)}: {first.reason}"
        )
    references = [units.spell(lines[clip].split()) for clip in found]
    errors = tuple(map(TextErrors.between, references, hypotheses))
    return Recognition(
        checkpoint=checkpoint.path,
        data=data,
        split=split,
        clips=tuple(map(manifest.name, found)),
        references=tuple(references),
        hypotheses=tuple(hypotheses),
        errors=errors,
        skipped={manifest.name(clip): error.reason or str(error) for clip, error in skipped.items()},
        intervals=_intervals(errors, options) if options.resamples else {},
    )


def _intervals(errors: Sequence[TextErrors], options: Options) -> dict[str, Interval]:
    """Resample the clips, and return the interval of each error rate."""
    kinds = {kind: [vars(each)[kind] for each in errors] for kind in vars(TextErrors())}
    return {
        kind: rate_interval([one.total for one in each], [one.length for one in each], options.seeds_of_resamples())
        for kind, each in kinds.items()
    }
