"""A trained encoder on people's audio: three lines of Python, any length, any number of clips."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amae_plugin.checkpoints import NO_CLASSES, Checkpoint
from amae_plugin.data.log_mel import fit_length
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import Audio, load_waveform
from amae_plugin.inference.windows import Windows
from amae_plugin.models.encoder import Encoder
from amae_plugin.modules.compute import choose_device, matrix_precision
from amae_plugin.modules.masking import gather_ids
from amae_plugin.modules.patching import Size2d

Batch = Sequence[Audio]
"""Several clips, all as paths or all as samples at one rate."""

_CHUNK_FRAMES = 4096  # of a log-mel spectrogram computed at a time: a clip of hours must not need gigabytes for it


class Embedding(NamedTuple):
    """What a model makes of a clip.

    Attributes:
        clip: (D,) float32, the embedding of the whole clip.
        steps: (T, D) float32, one embedding a time step.
        timestamps: (T,) float64, the centre of each time step in seconds from the clip's beginning.
    """

    clip: Tensor
    steps: Tensor
    timestamps: Tensor


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


class AudioModel(nn.Module):
    """A pretrained encoder that takes audio of any length.

    **Windows.** A clip becomes a log-mel spectrogram with the front end and the normalisation that the checkpoint
    holds. If it is longer than the model's input, windows of that length hear it, each half a window after the one
    before, the last one flush with the end. All of them begin at the same grid of *time steps*, columns of tokens
    (160 ms for patches of 16 x 16, 20 ms for frame tokens), so a step that several windows hear has the mean of what
    they made of it. Windows of all clips go through the encoder in batches of ``batch_size``.

    **Padding.** A clip shorter than the model's input is followed by padding, as in training. Tokens that lie wholly in
    the padding are taken out before the first block, as a masked autoencoder takes out hidden ones: nothing attends to
    them, and they are in no mean. So a clip gives the same values whatever else is in the batch. (A classifier is shown
    padding as its training showed it, see :class:`AudioClassifier`.)

    **Embeddings.** The embedding of a time step is the mean of the tokens of its frequency bands after the encoder's
    final norm; class tokens are in no mean. The embedding of a clip is the mean of its time steps, so every second
    counts alike.

    The model is always in evaluation mode, also after ``train()``: nothing about it is random.
    Letters in shapes: N clips, T time steps of a clip, D width.

    Args:
        checkpoint: of a pretraining model.
        batch_size: windows at a time.

    Attributes:
        sample_rate: that audio is converted to, in Hz.
        embed_dim: D.
        num_layers: hidden states of :meth:`extract_features`: the transformer blocks and one.
        step_samples: from one time step to the next, at ``sample_rate``.
        batch_size: may be changed at any time.
        checkpoint: what the checkpoint says, without its weights.

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
        self.features = self.input.front_end
        self.target_length = self.input.target_length
        self.model: Any = checkpoint.model()
        self.sample_rate = self.features.sample_rate
        self.embed_dim = self.encoder.embed_dim
        self.num_layers = len(self.encoder.blocks) + 1
        self.step_samples = self.encoder.patch_stride[0] * self.features.shift_samples
        self._grid: Size2d = self.encoder.grid(self.target_length, self.encoder.num_mel_bins)
        self.eval()

    def embed(self, audio: Audio | Batch, sample_rate: float | None = None) -> Tensor:
        """Embed clips.

        Args:
            audio: the path of a file, or samples (samples,) or (channels, samples), see
                :func:`~amae_plugin.inference.clips.load_waveform`; or a batch: a list of these, or samples
                (N, channels, samples).
            sample_rate: of samples, in Hz; files state their own.

        Returns:
            (D,) float32 on the CPU, or (N, D) of a batch.

        Raises:
            UserError: a clip cannot be used (missing, no audio, empty, silent, not finite, or shorter than 25 ms), or
                samples have no rate.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        clips = [embedding.clip for embedding in self.embeddings(waveforms)]
        return clips[0] if single else torch.stack(clips) if clips else torch.zeros(0, self.embed_dim)

    def embed_timestamps(
        self, audio: Audio | Batch, sample_rate: float | None = None
    ) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        """Embed the time steps of clips.

        Args:
            audio: as of :meth:`embed`.
            sample_rate: as of :meth:`embed`.

        Returns:
            Embeddings (T, D) float32 on the CPU and timestamps (T,) float64, the centre of each step in seconds from
            the clip's beginning; or a list of such pairs of a batch. The last step may reach beyond the clip's end.

        Raises:
            UserError: see :meth:`embed`.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        pairs = [(embedding.steps, embedding.timestamps) for embedding in self.embeddings(waveforms)]
        return pairs[0] if single else pairs

    def extract_features(
        self, audio: Audio | Batch, sample_rate: float | None = None, layer: int | None = None
    ) -> Tensor | list[Tensor]:
        """Hidden states of clips at their time steps.

        Layer 0 is what goes into the first transformer block, layer i what comes out of block i, and the last, like -1,
        is the encoder's output after its final norm, which is what :meth:`embed_timestamps` gives.

        Args:
            audio: as of :meth:`embed`.
            sample_rate: as of :meth:`embed`.
            layer: which; all if None.

        Returns:
            (T, D) float32 on the CPU, or (num_layers, T, D) of all layers; or a list of these of a batch.

        Raises:
            UserError: see :meth:`embed`; or there is no such layer.
        """
        if layer is not None and not -self.num_layers <= layer < self.num_layers:
            raise UserError(f"layer {layer}: this encoder has the layers 0 to {self.num_layers - 1}")
        waveforms, single = self._waveforms(audio, sample_rate)
        with torch.inference_mode():
            found = [states if layer is None else states[layer] for states in self.hidden_states(waveforms)]
        found = [states.cpu() for states in found]
        return found[0] if single else found

    def predict(
        self, audio: Audio | Batch, sample_rate: float | None = None, top_k: int | None = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The most probable classes of clips, if this is a classifier.

        Args:
            audio: as of :meth:`embed`.
            sample_rate: as of :meth:`embed`.
            top_k: how many; all if None.

        Returns:
            The classes with their probabilities, the most probable first; or a list of such lists of a batch.

        Raises:
            UserError: see :meth:`embed`; or this is a pretraining model, which knows no classes.
        """
        waveforms, single = self._waveforms(audio, sample_rate)
        found = [self.top(probabilities, top_k) for probabilities in self.probabilities(waveforms)]
        return found[0] if single else found

    @torch.inference_mode()
    def embeddings(self, waveforms: Iterable[Tensor]) -> Iterator[Embedding]:
        """Embed clips one after the other, as many as there are; windows of neighbouring clips share batches.

        Args:
            waveforms: (samples,) float32 at ``sample_rate``, as ``load_waveform`` gives them.

        Raises:
            UserError: the model gives values that are not finite.
        """
        for windows, outputs in self._outputs(waveforms, self._last_state):
            steps = windows.merge(outputs["states"])[0]
            clip = windows.mean(outputs["features"]) if "features" in outputs else steps.mean(dim=0)
            yield Embedding(clip.cpu(), steps.cpu(), self.timestamps(len(steps)))

    def probabilities(self, waveforms: Iterable[Tensor]) -> Iterator[Tensor]:
        """Probabilities of classes, see :meth:`AudioClassifier.probabilities`.

        Raises:
            UserError: this is a pretraining model.
        """
        raise UserError(NO_CLASSES.format(path=self.checkpoint.path))

    def top(self, probabilities: Tensor, top_k: int | None = None) -> list[Prediction]:
        """The most probable classes by the probabilities (classes,) of a clip, all of them if ``top_k`` is None."""
        names = self.checkpoint.classes
        order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
        return [Prediction(names[index], float(probabilities[index])) for index in order]

    def hidden_states(self, waveforms: Iterable[Tensor]) -> Iterator[Tensor]:
        """All hidden states (num_layers, T, D) of clips, on the model's device; gradients flow if they are enabled.

        Args:
            waveforms: as of :meth:`embeddings`.
        """
        for windows, outputs in self._outputs(waveforms, self._all_states):
            yield windows.merge(outputs["states"])

    def timestamps(self, steps: int) -> Tensor:
        """(T,) float64, the centres of the first time steps, in seconds.

        A step's beginning is that of its first analysis window, its end that of its last one.
        """
        length = self.features.samples_for(self.encoder.patch_size[0])
        return (torch.arange(steps, dtype=torch.float64) * self.step_samples + length / 2) / self.sample_rate

    def train(self, mode: bool = True) -> AudioModel:
        """Stay in evaluation mode; gradients flow all the same where they are enabled."""
        super().train(False)
        return self

    def _waveforms(self, audio: Audio | Batch, sample_rate: float | None) -> tuple[Iterator[Tensor], bool]:
        """The clips, and whether there is one only, which was not in a batch."""
        several = isinstance(audio, (list, tuple)) or (isinstance(audio, (np.ndarray, Tensor)) and audio.ndim == 3)
        if not several:
            return iter([load_waveform(audio, sample_rate, self.features)]), True  # type: ignore[arg-type]
        clips: Any = audio
        return (load_waveform(c, sample_rate, self.features, f"audio[{i}]") for i, c in enumerate(clips)), False

    def _outputs(
        self, waveforms: Iterable[Tensor], function: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Iterator[tuple[Windows, dict[str, Tensor]]]:
        """The windows of each clip, and what a function of (B, T, F) and a padding mask (B, T) gives for them.

        Values of windows are stacked, so they are (N windows, ...).
        """
        layouts: deque[Windows] = deque()
        outputs = self._in_batches(self._cut(waveforms, layouts), function)
        for first in outputs:
            windows = layouts.popleft()
            own = [first, *itertools.islice(outputs, len(windows.starts) - 1)]
            yield windows, {name: torch.stack([values[name] for values in own]) for name in first}

    def _cut(self, waveforms: Iterable[Tensor], layouts: deque[Windows]) -> Iterator[tuple[Tensor, int]]:
        """Windows of all clips, (T, F) normalised and padded, and their frames before the padding.

        How each clip is cut is appended to ``layouts`` before its first window comes.
        """
        for waveform in waveforms:
            log_mel = self._log_mel(waveform.detach().cpu())
            layouts.append(self._layout(len(log_mel)))
            for start in layouts[-1].starts:
                window = log_mel[start * self.encoder.patch_stride[0] :][: self.target_length]
                yield self.input.normalize(fit_length(window, self.target_length)), len(window)

    def _in_batches(
        self, windows: Iterator[tuple[Tensor, int]], function: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """What the function gives for each window, in order."""
        while batch := list(itertools.islice(windows, self.batch_size)):
            source = torch.stack([window for window, _ in batch]).to(self._device)
            lengths = torch.tensor([frames for _, frames in batch], device=self._device)
            outputs = function(source, torch.arange(self.target_length, device=self._device) >= lengths[:, None])
            if not all(bool(values.isfinite().all()) for values in outputs.values()):
                raise UserError(
                    f"{self.checkpoint.path}: the model gives values that are not finite numbers; its training "
                    "diverged, so take an earlier checkpoint"
                )
            for index in range(len(batch)):
                yield {name: values[index] for name, values in outputs.items()}

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """(frames, bands), as of the whole waveform: no frame depends on another, since each loses its own mean."""
        features = self.features
        frames = max(1, 1 + (len(waveform) - features.window_samples) // features.shift_samples)
        chunks = [
            features(
                waveform[first * features.shift_samples :][: features.samples_for(min(_CHUNK_FRAMES, frames - first))]
            )
            for first in range(0, frames, _CHUNK_FRAMES)
        ]
        return torch.cat(chunks)

    def _layout(self, frames: int) -> Windows:
        beyond_first = max(0, frames - self.encoder.patch_size[0])
        steps = 1 - (-beyond_first // self.encoder.patch_stride[0])
        if frames <= self.target_length:  # overlapping patches may leave a few of the last frames aside
            steps = min(steps, self._grid[0])
        return Windows.cover(steps, self._grid[0])

    def _last_state(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """``states`` (B, 1, W, D), the time steps of the encoder's output, and what :meth:`_run` gives beside it."""
        with _recorded(self.encoder, ()) as states:
            visible, others = self._run(source, padding_mask)
        return {"states": self._final_norm(self._by_step(states[0], visible))[:, None], **others}

    def _all_states(self, source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """``states`` (B, num_layers, W, D)."""
        with _recorded(self.encoder, self.encoder.blocks) as states:
            visible, _ = self._run(source, padding_mask)
        *by_step, last = (self._by_step(tokens, visible) for tokens in states)
        return {"states": torch.stack([*by_step, self._final_norm(last)], dim=1)}

    def _run(self, source: Tensor, padding_mask: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Run the encoder once.

        Returns:
            The positions (B, K) of the patch tokens that it was given, None if all were; and what else is known of the
            windows as a whole.
        """
        padded = bool(padding_mask.any())
        patches, grid = self.encoder.patches(source, padding_mask if padded else None)
        visible = unused = None
        if padded:
            padding = self.encoder.patch_padding(padding_mask)
            visible, unused = gather_ids(torch.zeros_like(padding), padding)
        with matrix_precision(source.device, self.model.config.bf16):
            self.encoder(patches, grid, visible, unused)
        return visible, {}

    def _by_step(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Means (B, W, D) over the frequency bands of each time step; 0 where there are no tokens."""
        tokens = tokens[:, self.encoder.num_prefix_tokens :].float()
        # Where the encoder's tokens lie on the time-major grid.
        places = torch.arange(self._grid[0] * self._grid[1], device=tokens.device)[None]
        places = self.encoder.in_token_order(places, self._grid).expand(len(tokens), -1)
        if visible is not None:
            places = places.gather(1, visible)
        on_grid = tokens.new_zeros(len(tokens), self._grid[0] * self._grid[1], tokens.shape[2])
        on_grid = on_grid.scatter(1, places[..., None].expand_as(tokens), tokens)
        return on_grid.unflatten(1, self._grid).mean(dim=2)

    def _final_norm(self, steps: Tensor) -> Tensor:
        """What follows the mean over tokens; of a pretraining model nothing, as its encoder ends with its norm."""
        return steps

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        return self.model.encoder

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


class AudioClassifier(AudioModel):
    """A fine-tuned classifier on audio of any length; see :class:`AudioModel`.

    It is shown each window as in validation, so for clips no longer than its input, predictions are those of
    ``amae evaluate``: padding is attended to unless its system was made for padded batches (MAE-AST), and probabilities
    are a softmax if it was trained with cross-entropy, else sigmoids. Those of the windows of a longer clip are
    averaged, with weights by which every second counts alike.

    The embedding of a clip is what the classifier's head sees (``features``). Embeddings of time steps are means over
    frequency bands of the encoder's output, normalised as the mean over all tokens is before the head (``fc_norm`` of
    mean pooling, in place of the encoder's final norm).
    """

    @torch.inference_mode()
    def probabilities(self, waveforms: Iterable[Tensor]) -> Iterator[Tensor]:
        """Probabilities of the classes of clips, one after the other, as many as there are.

        Args:
            waveforms: as of :meth:`embeddings`.

        Returns:
            For each clip (classes,) float64, in the order of ``checkpoint.classes``.

        Raises:
            UserError: as of :meth:`embeddings`; or the checkpoint does not say what makes probabilities of its scores.
        """
        as_probabilities = self.checkpoint.probabilities

        def function(source: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
            # In float64, confident scores stay apart for longer before they are rounded to 1.
            logits = self.model(source, padding_mask=padding_mask)["logits"].double()
            return {"probabilities": as_probabilities(logits)}

        for windows, outputs in self._outputs(waveforms, function):
            yield windows.mean(outputs["probabilities"]).cpu()

    def _run(self, source: Tensor, padding_mask: Tensor) -> tuple[None, dict[str, Tensor]]:
        return None, {"features": self.model(source, padding_mask=padding_mask)["features"]}

    def _final_norm(self, steps: Tensor) -> Tensor:
        return self.model.fc_norm(steps) if self.model.config.pooling == "mean" else steps


@contextmanager
def _recorded(encoder: Encoder, blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what goes into each of some of an encoder's blocks while it runs, and what comes out of the encoder."""
    states: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: states.append(args[0])) for block in blocks]
    hooks.append(encoder.register_forward_hook(lambda _, args, output: states.append(output)))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def load_model(path: str | os.PathLike[str], device: str = "auto", batch_size: int = 16) -> AudioModel:
    """Load a checkpoint of this plugin for use on audio.

    Args:
        path: of the checkpoint, of a pretraining model or a classifier.
        device: where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..., or ``"auto"``: a GPU if there is one.
        batch_size: windows at a time.

    Returns:
        An :class:`AudioClassifier` if the checkpoint is one of a classifier.

    Raises:
        UserError: the file is no checkpoint of this plugin, or there is no such device.
    """
    checkpoint = Checkpoint.read(path)
    kind = AudioClassifier if checkpoint.is_classifier else AudioModel
    return kind(checkpoint, batch_size).to(choose_device(device))
