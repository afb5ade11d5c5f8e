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

from amae_plugin.checkpoints import NO_CLASSES, Checkpoint
from amae_plugin.data.log_mel import fit_length
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import Audio, Waveform, open_waveform
from amae_plugin.inference.windows import Windows
from amae_plugin.models.base import DownstreamModel, Encoder, PretrainingModel
from amae_plugin.models.classifier import Classifier
from amae_plugin.modules.compute import choose_device, enough_memory
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import gather_ids

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
    time steps, so every second counts alike.

    The model is always in evaluation mode, even after ``train()``, and nothing about it is random.
    Letters in shapes: N clips, T time steps of a clip, D width.

    Args:
        checkpoint: checkpoint of a pretraining model.
        batch_size: windows at a time.

    Attributes:
        input: input of the model.
        sample_rate: rate in Hz to which audio is converted.
        embed_dim: D.
        num_layers: number of hidden states of :meth:`extract_features`: the transformer blocks and one.
        step_samples: samples from one time step to the next, at ``sample_rate``.
        batch_size: windows at a time; may be changed at any time.
        checkpoint: checkpoint without its weights.

    Raises:
        UserError: the checkpoint's weights do not fit its settings, or a setting that describes the input is missing.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 16):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.checkpoint = replace(checkpoint, state={})
        self.batch_size = batch_size
        self.input = checkpoint.input
        self.model = checkpoint.model()
        self.sample_rate = self.input.sample_rate
        self.embed_dim = self.encoder.step_dim(self._joins_bands)
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
        return clips[0] if single else torch.stack(clips) if clips else torch.zeros(0, self.embed_dim)

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
            found = [states if layer is None else states[layer] for states in self.hidden_states(waveforms)]
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
        raise UserError(NO_CLASSES.format(path=self.checkpoint.path))

    def top(self, probabilities: Tensor, top_k: int | None = None) -> list[Prediction]:
        """Sort classes by the probabilities (classes,) of a clip, the most probable first; all if ``top_k`` is None."""
        names = self.checkpoint.classes
        order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
        return [Prediction(names[index], float(probabilities[index])) for index in order]

    def hidden_states(self, waveforms: Iterable[Waveform]) -> Iterator[Tensor]:
        """Compute all hidden states (num_layers, T, D) of clips, on the model's device and with gradients if enabled.

        Args:
            waveforms: see :meth:`embeddings`.
        """
        for windows, outputs in self._outputs(waveforms, self._all_states):
            yield windows.merge(values["states"] for values in outputs)

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
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Iterator[tuple[Windows, Iterator[dict[str, Tensor]]]]:
        """Yield the windows of each clip, and a function's values for one window after the other, all to be taken.

        The function takes spectrograms (B, T, F) and their padding mask (B, T).
        """
        layouts: deque[Windows] = deque()
        outputs = self._in_batches(self._cut(waveforms, layouts), function)
        for first in outputs:
            windows = layouts.popleft()
            yield windows, itertools.chain([first], itertools.islice(outputs, len(windows.starts) - 1))

    def _cut(self, waveforms: Iterable[Waveform], layouts: deque[Windows]) -> Iterator[tuple[Tensor, int]]:
        """Yield the windows of all clips, (T, F) normalised and padded, and their numbers of frames before the padding.

        The layout of each clip is appended to ``layouts`` before its first window is yielded.
        """
        length, features = self.input.target_length, self.input.front_end
        for waveform in waveforms:
            layouts.append(self._layout(int(features.frames_in(np.array(len(waveform))))))
            chunks = self._log_mel(waveform)
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
            frames = int(features.frames_in(np.array(len(rest)))) - 1  # the last one goes with the rest
            if frames > 0:
                yield features(rest[: features.samples_for(frames)])
                rest = rest[frames * features.shift_samples :]
        yield features(rest)

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
        return {"states": self._final_norm(self._by_step(states[0], visible))[:, None], **others}

    def _all_states(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return ``states`` (B, num_layers, W, D), the time steps of all hidden states."""
        with _recorded(self.encoder, self.encoder.blocks) as states:
            visible, _ = self._run(source, padding_mask)
        *by_step, last = (self._by_step(tokens, visible) for tokens in states)
        return {"states": torch.stack([*by_step, self._final_norm(last)], dim=1)}

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
        return self.encoder.joins_bands

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

        def function(source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
            # In float64, confident scores stay apart for longer before they are rounded to 1.
            logits = self.model(source, padding_mask=padding_mask)["logits"].double()
            return {"probabilities": as_probabilities(logits)}

        for windows, outputs in self._outputs(waveforms, function):
            yield windows.mean(torch.stack([values["probabilities"] for values in outputs])).cpu()

    def _run(self, source: Tensor, padding_mask: Tensor) -> tuple[None, dict[str, Tensor]]:
        return None, {"features": self.model(source, padding_mask=padding_mask)["features"]}

    @property
    def _joins_bands(self) -> bool:
        return self.model.joins_bands

    def _final_norm(self, steps: Tensor) -> Tensor:
        return self.model.fc_norm(steps) if self.model.config.pooling == "mean" else steps


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


AUDIO_MODELS: dict[type[DownstreamModel], type[AudioModel]] = {Classifier: AudioClassifier}
"""Audio models of the downstream models; :class:`AudioModel` is that of pretraining models."""


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    batch_size: int = 16,
    *,
    teacher: bool = False,
) -> AudioModel:
    """Load a checkpoint of this plugin for use on audio.

    Args:
        path: checkpoint file of a pretraining model or a classifier.
        device: device, or its name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which prefers a GPU.
        batch_size: windows at a time.
        teacher: whether the teacher that followed the encoder in pretraining takes its place.

    Returns:
        An :class:`AudioClassifier` for the checkpoint of a classifier.

    Raises:
        UserError: the file is not a checkpoint of this plugin, it has no teacher, or the device does not exist.
    """
    checkpoint = Checkpoint.read(path)
    kind = AudioModel if checkpoint.downstream is None else AUDIO_MODELS[checkpoint.downstream]
    model, device = kind(checkpoint, batch_size), choose_device(device)
    if teacher:
        network = model.model
        if not isinstance(network, PretrainingModel) or network.teacher is None:
            raise UserError(
                f"{path}: has no teacher; only pretraining checkpoints of models that learn from features do"
            )
        if any(name.startswith("teacher.") for name in checkpoint.untrained):
            raise UserError(f"{path}: the published file lacks the teacher, which is untrained here")
        network.teacher.copy_to(network.encoder)
    with enough_memory(device, "the model: use another device"):
        return model.to(device)
