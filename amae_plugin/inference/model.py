"""Trained encoders on audio: three lines of Python for clips of any length and number."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import fit_length
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import Audio, Waveform, open_waveform
from amae_plugin.inference.transcription import Transcription, join_paths
from amae_plugin.inference.windows import Windows
from amae_plugin.models.base import DownstreamModel, Encoder, Model, PretrainingModel
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.ctc import CTC
from amae_plugin.modules.compute import choose_device, enough_memory
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import gather_ids

EMBEDDINGS = ("mean", "token_mean", "time_concat", "cls")
"""Poolings of a clip's tokens to its embedding, see :class:`AudioModel`."""

Batch = Sequence[Audio]
"""Several clips, all as paths or all as samples at one rate."""


class Embedding(NamedTuple):
    """Embeddings of a clip.

    Attributes:
        clip: embedding (D,) float32 of the whole clip.
        steps: embeddings (T, D) float32 of the time steps.
        timestamps: centres (T,) float64 of the time steps, in seconds from the clip's beginning.
    """

    clip: Tensor
    steps: Tensor
    timestamps: Tensor


class Prediction(NamedTuple):
    """Class of a clip with its probability."""

    label: str
    probability: float


class Spectrogram(NamedTuple):
    """Clip whose front end has been computed elsewhere.

    Attributes:
        log_mel: (frames, num_mel_bins) float32 on any device, what the input's front end gives, not normalised.
    """

    log_mel: Tensor


Sound = Waveform | Spectrogram
"""Clip as the encoder's own functions take it."""


class AudioModel(nn.Module):
    """Pretrained encoder for audio of any length.

    **Windows.** A clip becomes a log-mel spectrogram with the checkpoint's front end and normalisation. If it is longer
    than the model's input, it is cut into windows of that length. Each window starts half a window after the previous
    one, and the last one ends with the clip. All of them start on one grid of *time steps*, columns of tokens (160 ms
    for patches of 16 x 16, 20 ms for frame tokens), and a step in several windows is averaged over them. Windows of all
    clips go through the encoder in batches of ``batch_size``.

    **Padding.** Padding follows a clip shorter than the model's input, as in training. Tokens wholly in the padding are
    removed before the first block, as a masked autoencoder removes hidden ones. Nothing attends to them, and no mean
    includes them. So the values of a clip do not depend on the rest of the batch. (A classifier sees padding as in its
    training, see :class:`AudioClassifier`.)

    **Embeddings.** The embedding of a time step is the mean of the tokens of its frequency bands after the encoder's
    final norm, without class tokens; M2D's has these tokens side by side. The embedding of a clip is the mean of its
    time steps, so every second counts alike. ``pooling="token_mean"`` averages the bands of any system, and
    ``"time_concat"`` keeps them side by side. With ``"cls"`` the embedding of a clip is the encoder's class token,
    averaged over the windows; EAT, whose class token learns to describe the clip, is published with both.

    The model is always in evaluation mode, even after ``train()``, and nothing about it is random.
    Letters in shapes: N clips, T time steps of a clip, D width.

    Args:
        checkpoint: checkpoint of a pretraining model.
        batch_size: windows at a time.
        pooling: ``"mean"`` (the system's own), ``"token_mean"``, ``"time_concat"`` or ``"cls"``.
        model: the checkpoint's model; built and loaded if None.

    Attributes:
        input: input of the model.
        sample_rate: rate in Hz to which audio is converted.
        embed_dim: D.
        clip_dim: values of a clip's embedding, D unless the class token is narrower than a time step.
        num_layers: number of hidden states of :meth:`extract_features`: the transformer blocks and one.
        step_samples: samples from one time step to the next, at ``sample_rate``.
        batch_size: windows at a time; may be changed at any time.
        checkpoint: checkpoint without its weights.

    Raises:
        UserError: the checkpoint's weights do not fit its settings, a setting that describes the input is missing, the
            model takes no sound, or it has no such pooling.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 16, pooling: str = "mean", model: Model | None = None):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.checkpoint = replace(checkpoint, state={})
        self.batch_size = batch_size
        self.input = checkpoint.input
        self.model = checkpoint.model() if model is None else model
        self.sample_rate = self.input.sample_rate
        if "audio" not in checkpoint.modalities:
            raise UserError(f"{checkpoint.path}: takes pictures alone and no sound; `amae evaluate` measures it")
        if pooling not in self._poolings:
            raise UserError(f"{checkpoint.path}: no pooling {pooling}; there is {', '.join(self._poolings)}")
        self.pooling = pooling
        self.embed_dim = self.encoder.step_dim(self._joins_bands)
        self.clip_dim = self.encoder.embed_dim if pooling == "cls" else self.embed_dim
        self.num_layers = len(self.encoder.blocks) + 1
        self.step_samples = self.encoder.patch_stride[0] * self.input.front_end.shift_samples
        self._grid: Size2d = self.encoder.grid(self.input.target_length, self.encoder.num_mel_bins)
        self.eval()

    def embed(self, audio: Audio | Batch, sample_rate: float | None = None) -> Tensor:
        """Embed clips.

        Args:
            audio: path of a file, or samples (samples,) or (channels, samples), see
                :func:`~amae_plugin.inference.clips.load_waveform`; or a batch: a list of these, or samples
                (N, channels, samples).
            sample_rate: sample rate of samples, in Hz; files state their own.

        Returns:
            (D,) float32 on the CPU; (N, D) for a batch.

        Raises:
            UserError: a clip cannot be used (missing, no audio, empty, silent, not finite, or shorter than 25 ms), or
                samples come without a rate.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        clips = [embedding.clip for embedding in self.embeddings(waveforms, timestamps=False)]
        return clips[0] if single else torch.stack(clips) if clips else torch.zeros(0, self.clip_dim)

    def embed_timestamps(
        self, audio: Audio | Batch, sample_rate: float | None = None
    ) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        """Embed the time steps of clips.

        Args:
            audio: see :meth:`embed`.
            sample_rate: see :meth:`embed`.

        Returns:
            Embeddings (T, D) float32 on the CPU and timestamps (T,) float64, the centre of each step in seconds from
            the clip's beginning; for a batch, a list of such pairs. The last step may reach beyond the clip's end.

        Raises:
            UserError: see :meth:`embed`.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        pairs = [(embedding.steps, embedding.timestamps) for embedding in self.embeddings(waveforms)]
        return pairs[0] if single else pairs

    def extract_features(
        self, audio: Audio | Batch, sample_rate: float | None = None, layer: int | None = None
    ) -> Tensor | list[Tensor]:
        """Compute the hidden states of clips at their time steps.

        Layer 0 is the input of the first transformer block, layer i the output of block i. The last layer, also layer
        -1, is the encoder's output after its final norm, as in :meth:`embed_timestamps`.

        Args:
            audio: see :meth:`embed`.
            sample_rate: see :meth:`embed`.
            layer: number of the layer; all layers if None.

        Returns:
            (T, D) float32 on the CPU, or (num_layers, T, D) for all layers; for a batch, a list of these.

        Raises:
            UserError: see :meth:`embed`; or the layer does not exist.
        """
        if layer is not None:
            self.require_layer(layer)
        waveforms, single = self._waveforms(audio, sample_rate)
        with torch.inference_mode():
            found = [states if layer is None else states[layer] for states, _ in self.encode(waveforms)]
        found = [states.cpu() for states in found]
        return found[0] if single else found

    def predict(
        self, audio: Audio | Batch, sample_rate: float | None = None, top_k: int | None = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Predict the most probable classes of clips; only for classifiers.

        Args:
            audio: see :meth:`embed`.
            sample_rate: see :meth:`embed`.
            top_k: number of classes; all if None.

        Returns:
            Classes with their probabilities, the most probable first; for a batch, a list of such lists.

        Raises:
            UserError: see :meth:`embed`; or the model is a pretraining model, which has no classes.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        found = [self.top(probabilities, top_k) for probabilities in self.probabilities(waveforms)]
        return found[0] if single else found

    def transcribe(self, audio: Audio | Batch, sample_rate: float | None = None) -> Transcription | list[Transcription]:
        """Transcribe clips; only for recognisers.

        Args:
            audio: see :meth:`embed`.
            sample_rate: see :meth:`embed`.

        Returns:
            Text and words with their start and end in seconds; for a batch, a list of these.

        Raises:
            UserError: see :meth:`embed`; or the model is not a recogniser.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        found = list(self.transcriptions(waveforms))
        return found[0] if single else found

    @torch.inference_mode()
    def embeddings(self, waveforms: Iterable[Waveform], timestamps: bool = True) -> Iterator[Embedding]:
        """Embed clips one after the other; windows of neighbouring clips share batches.

        Args:
            waveforms: clips at ``sample_rate``, from ``open_waveform`` or ``load_waveform``.
            timestamps: keep the time steps; without them, the memory does not depend on the lengths of the clips.

        Raises:
            UserError: a value of the model is not finite.
        """
        for windows, outputs in self._outputs(waveforms, self._last_state):
            features: list[Tensor] = []

            def states(outputs: Iterator[dict[str, Tensor]], features: list[Tensor]) -> Iterator[Tensor]:
                for values in outputs:
                    if "features" in values:
                        features.append(values["features"])
                    yield values["states"][0]

            total = torch.zeros(self.embed_dim, dtype=torch.float64)
            kept = [torch.zeros(0, self.embed_dim)]
            for steps in windows.merge_in_pieces(states(outputs, features)):
                total += steps.sum(dim=0, dtype=torch.float64).cpu()
                if timestamps:
                    kept.append(steps.cpu())
            clip = windows.mean(torch.stack(features)).cpu() if features else (total / windows.steps).float()
            merged = torch.cat(kept)
            yield Embedding(clip, merged, self.timestamps(len(merged)))

    def probabilities(self, waveforms: Iterable[Waveform]) -> Iterator[Tensor]:
        """Compute the probabilities of the classes of clips, one clip after the other.

        Args:
            waveforms: see :meth:`embeddings`.

        Returns:
            For each clip (classes,) float64, in the order of ``checkpoint.classes``.

        Raises:
            UserError: the model is not a classifier, or its checkpoint lacks its loss; see also :meth:`embeddings`.
        """
        raise self.checkpoint.no(Classifier)

    def transcriptions(self, waveforms: Iterable[Waveform]) -> Iterator[Transcription]:
        """Transcribe clips one after the other.

        Args:
            waveforms: see :meth:`embeddings`.

        Raises:
            UserError: the model is not a recogniser; see also :meth:`embeddings`.
        """
        raise self.checkpoint.no(CTC)

    def top(self, probabilities: Tensor, top_k: int | None = None) -> list[Prediction]:
        """Sort classes by the probabilities (classes,) of a clip, the most probable first; all if ``top_k`` is None."""
        names = self.checkpoint.classes
        order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
        return [Prediction(names[index], float(probabilities[index])) for index in order]

    def encode(self, clips: Iterable[Sound], all_layers: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Encode clips one after the other, on the model's device and with gradients if enabled.

        Args:
            clips: waveforms, see :meth:`embeddings`, or spectrograms.
            all_layers: compute all hidden states, see :meth:`extract_features`, or the last one alone.

        Returns:
            For each clip its hidden states (num_layers or 1, T, D) and its embedding, see :meth:`embed`.
        """
        for windows, outputs in self._outputs(clips, self._all_states if all_layers else self._last_state):
            values = list(outputs)
            states = windows.merge(each["states"] for each in values)
            features = [each["features"] for each in values if "features" in each]
            yield states, windows.mean(torch.stack(features)) if features else states[-1].mean(dim=0)

    def steps_in(self, samples: int) -> int:
        """Count the time steps of a waveform with this number of samples."""
        return self._layout(self._frames(samples)).steps

    def require_layer(self, layer: int) -> None:
        """Refuse the number of a layer that does not exist.

        Raises:
            UserError: it does not.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise UserError(f"layer {layer}: this encoder has the layers 0 to {self.num_layers - 1}")

    def timestamps(self, steps: int) -> Tensor:
        """Return the centres (T,) float64 of the first time steps, in seconds.

        A step reaches from the beginning of its first analysis window to the end of its last one.
        """
        length = self.input.front_end.samples_for(self.encoder.patch_size[0])
        return (torch.arange(steps, dtype=torch.float64) * self.step_samples + length / 2) / self.sample_rate

    @override
    def train(self, mode: bool = True) -> AudioModel:
        super().train(False)
        return self

    def _waveforms(self, audio: Audio | Batch, sample_rate: float | None) -> tuple[Iterator[Waveform], bool]:
        """Load the clips, and tell whether the caller gave a single clip rather than a batch."""
        several = isinstance(audio, (list, tuple)) or (isinstance(audio, (np.ndarray, Tensor)) and audio.ndim == 3)
        if not several:
            return iter([open_waveform(audio, sample_rate, self.input.front_end)]), True  # type: ignore[arg-type]
        clips = enumerate(cast(Batch, audio))
        return (open_waveform(c, sample_rate, self.input.front_end, f"audio[{i}]") for i, c in clips), False

    def _outputs(
        self, clips: Iterable[Sound], function: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Iterator[tuple[Windows, Iterator[dict[str, Tensor]]]]:
        """Yield the windows of each clip, and a function's values for one window after the other, all to be taken.

        The function takes spectrograms (B, T, F) and their padding mask (B, T).
        """
        layouts: deque[Windows] = deque()
        outputs = self._in_batches(self._cut(clips, layouts), function)
        for first in outputs:
            windows = layouts.popleft()
            yield windows, itertools.chain([first], itertools.islice(outputs, len(windows.starts) - 1))

    def _cut(self, clips: Iterable[Sound], layouts: deque[Windows]) -> Iterator[tuple[Tensor, int]]:
        """Yield the windows of all clips, (T, F) normalised and padded, and their numbers of frames before the padding.

        The layout of each clip is appended to ``layouts`` before its first window is yielded.
        """
        length = self.input.target_length
        for clip in clips:
            frames = len(clip.log_mel) if isinstance(clip, Spectrogram) else self._frames(len(clip))
            layouts.append(self._layout(frames))
            chunks = iter([clip.log_mel]) if isinstance(clip, Spectrogram) else self._log_mel(clip)
            log_mel, first = next(chunks), 0  # the frames that are at hand, and the number of the first of them
            for start in layouts[-1].starts:
                begin = start * self.encoder.patch_stride[0]
                log_mel, first = log_mel[begin - first :], begin
                while len(log_mel) < length and (chunk := next(chunks, None)) is not None:
                    log_mel = torch.cat([log_mel, chunk])
                yield self.input.normalize(fit_length(log_mel[:length], length)), min(len(log_mel), length)

    def _in_batches(
        self, windows: Iterator[tuple[Tensor, int]], function: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the function's values for each window, in order."""
        while batch := list(itertools.islice(windows, self.batch_size)):
            places = torch.arange(self.input.target_length, device=self._device)
            with enough_memory(self._device, f"{self.batch_size} windows at a time: lower --batch-size"):
                source = torch.stack([window for window, _ in batch]).to(self._device)
                lengths = torch.tensor([frames for _, frames in batch], device=self._device)
                outputs = function(source, places >= lengths[:, None])
            for values in outputs.values():
                self.checkpoint.require_finite(values)
            for index in range(len(batch)):
                yield {name: values[index] for name, values in outputs.items()}

    def _log_mel(self, waveform: Waveform) -> Iterator[Tensor]:
        """Yield the log-mel spectrogram (frames, bands) of a waveform, or of a long clip in pieces."""
        features = self.input.front_end
        if isinstance(waveform, Tensor):
            yield features(waveform.detach().cpu())
            return
        rest = torch.zeros(0)
        for piece in waveform:
            rest = torch.cat([rest, piece])
            frames = self._frames(len(rest)) - 1  # the last one goes with the rest
            if frames > 0:
                yield features(rest[: features.samples_for(frames)])
                rest = rest[frames * features.shift_samples :]
        yield features(rest)

    def _frames(self, samples: int) -> int:
        return int(self.input.front_end.frames_in(np.array(samples)))

    def _layout(self, frames: int) -> Windows:
        beyond_first = max(0, frames - self.encoder.patch_size[0])
        steps = 1 - (-beyond_first // self.encoder.patch_stride[0])
        if frames <= self.input.target_length:  # overlapping patches may leave a few of the last frames aside
            steps = min(steps, self._grid[0])
        return Windows.cover(steps, self._grid[0], hop=max(1, self._grid[0] // 2))

    def _last_state(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return ``states`` (B, 1, W, D), time steps of the encoder's output, and the other values of :meth:`_run`."""
        with _recorded(self.encoder, ()) as states:
            visible, others = self._run(source, padding_mask)
        if self.pooling == "cls":
            others["features"] = states[0][:, 0].float()
        return {"states": self._final_norm(self._by_step(states[0], visible))[:, None], **others}

    def _all_states(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return ``states`` (B, num_layers, W, D), the time steps of all hidden states, and others of :meth:`_run`."""
        with _recorded(self.encoder, self.encoder.blocks) as states:
            visible, others = self._run(source, padding_mask)
        *by_step, last = (self._by_step(tokens, visible) for tokens in states)
        return {"states": torch.stack([*by_step, self._final_norm(last)], dim=1), **others}

    def _run(self, source: Tensor, padding_mask: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Run the encoder once.

        Returns:
            Positions (B, K) of the visible patch tokens, None if all are visible, and other values of whole windows.
        """
        padded = bool(padding_mask.any())
        patches, grid = self.encoder.patches(source, padding_mask if padded else None)
        visible = unused = None
        if padded:
            padding = self.encoder.patch_padding(padding_mask)
            visible, unused = gather_ids(torch.zeros_like(padding), padding)
        with self.model.matrix_precision(source.device):
            self.encoder(patches, grid, visible, unused)
        return visible, {}

    def _by_step(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Join or average the tokens of each time step: (B, W, D), 0 for steps without tokens."""
        tokens = tokens[:, self.encoder.num_prefix_tokens :].float()
        if visible is not None:
            on_grid = tokens.new_zeros(len(tokens), self._grid[0] * self._grid[1], tokens.shape[2])
            tokens = on_grid.scatter(1, visible[..., None].expand_as(tokens), tokens)
        return self.encoder.time_steps(tokens, self._joins_bands)

    def _final_norm(self, steps: Tensor) -> Tensor:
        """Apply the norm that follows the mean over tokens; a pretraining model has none there."""
        return steps

    @property
    def _joins_bands(self) -> bool:
        return {"token_mean": False, "time_concat": True}.get(self.pooling, self.encoder.joins_bands)

    @property
    def _poolings(self) -> tuple[str, ...]:
        return EMBEDDINGS if self.encoder.num_prefix_tokens else EMBEDDINGS[:-1]

    @property
    def encoder(self) -> Encoder:
        """Encoder of the model."""
        return self.model.encoder

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


class AudioClassifier(AudioModel):
    """Fine-tuned classifier for audio of any length; see :class:`AudioModel`.

    It sees each window as in validation, so it agrees with ``amae evaluate`` on clips no longer than its input. It
    attends to padding unless the system masks padding, and probabilities are a softmax after training with
    cross-entropy, else sigmoids. The probabilities of a longer clip are averaged over its windows with weights, so
    every second counts alike.

    The embedding of a clip is the input of the classifier's head (``features``). The embedding of a time step is the
    mean of the encoder's output over its frequency bands. With mean pooling, ``fc_norm`` normalises it in place of the
    encoder's final norm, as it normalises the mean over all tokens before the head.
    """

    model: Classifier

    @override
    @torch.inference_mode()
    def probabilities(self, waveforms: Iterable[Waveform]) -> Iterator[Tensor]:
        as_probabilities = self.checkpoint.probabilities
        for windows, logits in self.logits(waveforms):
            # In float64, confident scores stay apart for longer before they are rounded to 1.
            yield windows.mean(as_probabilities(logits.double())).cpu()

    def logits(self, clips: Iterable[Sound]) -> Iterator[tuple[Windows, Tensor]]:
        """Classify the windows of clips, on the model's device and with gradients if enabled.

        Args:
            clips: see :meth:`encode`.

        Returns:
            For each clip its windows, and their logits (windows, classes).
        """

        def function(source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.model(source, padding_mask=padding_mask)["logits"]}

        for windows, outputs in self._outputs(clips, function):
            yield windows, torch.stack([values["logits"] for values in outputs])

    def _run(self, source: Tensor, padding_mask: Tensor) -> tuple[None, dict[str, Tensor]]:
        return None, {"features": self.model(source, padding_mask=padding_mask)["features"]}

    @property
    def _joins_bands(self) -> bool:
        return self.model.joins_bands

    @property
    def _poolings(self) -> tuple[str, ...]:
        return ("mean",)

    def _final_norm(self, steps: Tensor) -> Tensor:
        return self.model.fc_norm(steps) if self.model.config.pooling == "mean" else steps


class AudioRecognizer(AudioModel):
    """Fine-tuned recogniser for audio of any length; see :class:`AudioModel`.

    It sees a clip no longer than its input as in validation. A longer clip goes through in windows, whose most probable
    units are joined where neighbours agree, see :func:`~amae_plugin.inference.transcription.join_paths`. So the memory
    does not depend on the length of the clip.
    """

    model: CTC

    @override
    @torch.inference_mode()
    def transcriptions(self, waveforms: Iterable[Waveform]) -> Iterator[Transcription]:
        units, sub_steps = self.checkpoint.units, self.model.config.sub_steps
        step_seconds = self.step_samples / sub_steps / self.sample_rate
        samples: deque[int] = deque()

        def counted() -> Iterator[Waveform]:
            for waveform in waveforms:
                samples.append(len(waveform))
                yield waveform

        for windows, outputs in self._outputs(counted(), self._path):
            path = join_paths((values["path"].numpy() for values in outputs), windows, sub_steps)
            yield Transcription.of_path(path, units, step_seconds, samples.popleft() / self.sample_rate)

    def _path(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return ``path`` (B, T') int64, the most probable unit of each step; T' is that of the longest window."""
        log_probs = self.model(source, padding_mask=padding_mask)["log_probs"]
        self.checkpoint.require_finite(log_probs)
        return {"path": log_probs.argmax(dim=2).cpu()}

    @override
    def _layout(self, frames: int) -> Windows:
        columns = int(self.model.steps.columns(torch.tensor(frames)))
        return Windows.cover(columns, self._grid[0], hop=max(1, self._grid[0] // 2))


@contextmanager
def _recorded(encoder: Encoder, blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the inputs of some of an encoder's blocks and the encoder's output while it runs."""
    states: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: states.append(args[0])) for block in blocks]
    hooks.append(encoder.register_forward_hook(lambda _, args, output: states.append(output)))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


AUDIO_MODELS: dict[type[DownstreamModel], type[AudioModel]] = {Classifier: AudioClassifier, CTC: AudioRecognizer}
"""Audio models of the downstream models; :class:`AudioModel` is that of pretraining models."""


def audio_model(
    checkpoint: Checkpoint, batch_size: int = 16, pooling: str = "mean", model: Model | None = None
) -> AudioModel:
    """Wrap a checkpoint's model for use on audio, on the CPU; see :class:`AudioModel` for the arguments and errors."""
    kind = AudioModel if checkpoint.downstream is None else AUDIO_MODELS[checkpoint.downstream]
    return kind(checkpoint, batch_size, pooling, model)


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    batch_size: int = 16,
    *,
    teacher: bool = False,
    pooling: str = "mean",
) -> AudioModel:
    """Load a checkpoint of this plugin for use on audio.

    Args:
        path: checkpoint file of a pretraining model, a classifier or a recogniser.
        device: device, or its name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which prefers a GPU.
        batch_size: windows at a time.
        teacher: whether the teacher that followed the encoder in pretraining takes its place.
        pooling: what the embedding of a clip is, see :class:`AudioModel`; a classifier has its own.

    Returns:
        An :class:`AudioClassifier` for the checkpoint of a classifier, an :class:`AudioRecognizer` for that of a
        recogniser.

    Raises:
        UserError: the file is not a checkpoint of this plugin, it has no teacher or no such pooling, or the device does
            not exist.
    """
    model, device = audio_model(Checkpoint.read(path), batch_size, pooling), choose_device(device)
    if teacher:
        network = model.model
        if not isinstance(network, PretrainingModel) or network.teacher is None:
            raise UserError(
                f"{path}: has no teacher; only pretraining checkpoints of models that learn from features do"
            )
        if any(name.startswith("teacher.") for name in model.checkpoint.untrained):
            raise UserError(f"{path}: the published file lacks the teacher, which is untrained here")
        network.teacher.copy_to(network.encoder)
    with enough_memory(device, "the model: use another device"):
        return model.to(device)
