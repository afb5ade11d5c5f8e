"""Encoders and classifiers as models of Hugging Face's transformers, whose Auto classes load them from a folder.

Only this module imports transformers. ``amae export --format hf`` writes the folder, see
:mod:`amae_plugin.interop.hf_folder`; the code in it, :mod:`amae_plugin.interop.hf_code`, inherits the classes below.
Letters in shapes: B clips, T frames, F mel bands, S time steps, D width, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import FRONT_ENDS, FrontEnd
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import at_rate
from amae_plugin.inference.model import AudioClassifier, AudioModel, Spectrogram, audio_model
from amae_plugin.inference.windows import Windows
from amae_plugin.models.base import Model, PretrainingModel
from amae_plugin.models.downstream import build_model

_MULTI_LABEL, _SINGLE_LABEL = "multi_label_classification", "single_label_classification"


class AmaeConfig(PreTrainedConfig):
    """Settings of an exported checkpoint.

    Attributes:
        sections: the checkpoint's settings: its model, its input and its loss.
        hidden_size: D.
        num_hidden_layers: number of transformer blocks.
        num_attention_heads: number of attention heads.
    """

    model_type = "amae"

    sections: dict[str, Any] | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12

    @classmethod
    def of(cls, checkpoint: Checkpoint, model: Model) -> AmaeConfig:
        """Describe a checkpoint and its model.

        Raises:
            UserError: a classifier's checkpoint lacks the names of its classes or its loss.
        """
        settings = {**asdict(model.config), "_name": checkpoint.model_settings["_name"], "bf16": False}
        sections: dict[str, Any] = {"model": settings, "task": checkpoint.input.settings()}
        described: dict[str, Any] = {"sections": sections}
        if checkpoint.downstream is not None:
            checkpoint.require_predictions()
            sections["criterion"] = {"loss": checkpoint.setting("criterion", "loss", str)}
            described["id2label"] = dict(enumerate(checkpoint.classes))
            described["label2id"] = {name: index for index, name in enumerate(checkpoint.classes)}
            described["problem_type"] = _MULTI_LABEL if sections["criterion"]["loss"] == "bce" else _SINGLE_LABEL
            settings["encoder"] = {
                **asdict(checkpoint.system.config.from_settings(checkpoint.encoder_settings)),
                "_name": checkpoint.encoder_settings["_name"],
            }
        encoder = model.encoder
        return cls(
            hidden_size=audio_model(checkpoint, model=model).embed_dim,
            num_hidden_layers=len(encoder.blocks),
            num_attention_heads=encoder.num_heads,
            **described,
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """Checkpoint of these settings, without weights."""
        classes = [name for _, name in sorted((self.id2label or {}).items())]
        return Checkpoint(Path(self.name_or_path or "config.json"), self.sections or {}, {}, {"classes": classes})


class AmaeFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms of clips, as the checkpoint's front end computes them.

    Args:
        feature_size: F.
        sampling_rate: sample rate in Hz of the front end, to which clips of another rate are converted.
        padding_value: value of the frames after a clip's end.
        return_attention_mask: return ``attention_mask`` (B, T), 1 = a frame of the clip.
        front_end: name of the front end.
        window_type: its analysis window.
        window_ms: length of the window.
        shift_ms: time from one frame to the next.
        kwargs: further attributes, see transformers.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        front_end: str = "kaldi",
        window_type: str = "hanning",
        window_ms: float = 25.0,
        shift_ms: float = 10.0,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.return_attention_mask = return_attention_mask
        self.front_end = front_end
        self.window_type = window_type
        self.window_ms = window_ms
        self.shift_ms = shift_ms

    @classmethod
    def of(cls, front_end: FrontEnd, **attributes: Any) -> AmaeFeatureExtractor:
        """Describe a front end, with further attributes."""
        values = asdict(front_end)
        sizes = {"feature_size": values.pop("num_mel_bins"), "sampling_rate": values.pop("sample_rate")}
        return cls(front_end=front_end.name, **sizes, **values, **attributes)

    def __call__(
        self,
        raw_speech: np.ndarray | Tensor | Sequence[Any],
        sampling_rate: float | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Compute spectrograms, with padding after those of shorter clips.

        Args:
            raw_speech: clip (samples,), or several: a list of such, or an array (B, samples). The full scale is 1, or
                that of an integer type.
            sampling_rate: their sample rate in Hz; the front end's if None.
            padding: see transformers, as the following arguments.
            max_length: in frames.
            truncation: cut clips of more than ``max_length`` frames.
            pad_to_multiple_of: in frames.
            return_attention_mask: return ``attention_mask`` (B, T).
            return_tensors: ``"pt"`` or ``"np"``.

        Returns:
            ``input_values`` (B, T, F) float32, not normalised, which the model does with its own statistics, and
            ``attention_mask``.

        Raises:
            UserError: there is no clip, or one is empty, not finite, or of another shape or full scale.
        """
        features = _front_end(
            self.front_end, self.feature_size, self.sampling_rate, self.window_type, self.window_ms, self.shift_ms
        )
        found = []
        for index, clip in enumerate(_clips(raw_speech)):
            rate = self.sampling_rate if sampling_rate is None else sampling_rate
            found.append(features(at_rate(clip, rate, self.sampling_rate, f"raw_speech[{index}]")).numpy())
        return self.pad(
            BatchFeature({"input_values": found}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )


@functools.lru_cache
def _front_end(name: str, bands: int, rate: int, window: str, window_ms: float, shift_ms: float) -> FrontEnd:
    """Make a front end once, with its filters."""
    return FRONT_ENDS[name](
        sample_rate=rate, num_mel_bins=bands, window_type=window, window_ms=window_ms, shift_ms=shift_ms
    )


def _clips(raw_speech: np.ndarray | Tensor | Sequence[Any]) -> list[np.ndarray | Tensor]:
    """Return the clips of a batch, or a single one.

    Raises:
        UserError: there is none.
    """
    if not len(raw_speech):
        raise UserError("raw_speech is empty, must be a clip or a list of clips")
    if not isinstance(raw_speech, (np.ndarray, Tensor)) and np.ndim(raw_speech[0]) == 0:
        raw_speech = np.asarray(raw_speech)  # a list of samples
    if isinstance(raw_speech, (np.ndarray, Tensor)) and raw_speech.ndim == 1:
        raw_speech = [raw_speech]
    return [clip if isinstance(clip, Tensor) else np.asarray(clip) for clip in raw_speech]


@dataclass
class AmaeOutput(BaseModelOutputWithPooling):
    """Embeddings of clips; 0 after a clip's own time steps.

    Attributes:
        last_hidden_state: (B, S, D) embeddings of the time steps.
        pooler_output: (B, D) embeddings of the clips.
        hidden_states: (B, S, D) each, the input of every block and the last hidden state.
        attention_mask: (B, S), 1 = a step of the clip.
    """

    attention_mask: Tensor | None = None


class AmaePreTrainedModel(PreTrainedModel):
    """What both models share: the network, and its precision.

    Clips are heard as :class:`~amae_plugin.inference.model.AudioModel` hears them: longer ones in windows, each on its
    own, whatever else is in the batch. The model always computes as in evaluation; gradients flow if they are enabled.
    Loaded in half precision, it keeps the weights of the blocks' linear layers in it; everything else stays in float32.

    Args:
        config: settings.
    """

    config_class = AmaeConfig
    config: AmaeConfig
    base_model_prefix = "amae"
    main_input_name = "input_values"
    amae: AudioModel

    def __init__(self, config: AmaeConfig):
        super().__init__(config)
        checkpoint = config.checkpoint
        # transformers makes models without memory and knows the values of parameters alone.
        with torch.device("cpu"):
            self.amae = audio_model(checkpoint, model=_network(checkpoint))
        halved = {id(weight) for weight in self._linear_weights()}
        others = (name for name, each in self._tensors() if each.is_floating_point() and id(each) not in halved)
        self._in_float32 = frozenset(others)
        self._keep_in_fp32_modules_strict = set(self._in_float32)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights of the blocks' linear layers."""
        return self._linear_weights()[0].dtype

    def load(self, model: Model) -> None:
        """Take the weights of a checkpoint's model, less those that serve pretraining alone."""
        own = self.amae.model.state_dict()
        self.amae.model.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})

    def _init_weights(self, module: nn.Module) -> None:
        """Leave a module as its constructor made it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AmaePreTrainedModel:
        super()._apply(fn, recurse)
        for name, tensor in self._tensors():
            if name in self._in_float32:
                tensor.data = tensor.data.float()
        return self

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(), *self.named_buffers()]

    def _linear_weights(self) -> list[Tensor]:
        return [part.weight for part in self.amae.encoder.blocks.modules() if isinstance(part, nn.Linear)]

    def _matrix_precision(self) -> torch.autocast:
        half = self.dtype in (torch.float16, torch.bfloat16)
        return torch.autocast(self.device.type, dtype=self.dtype if half else torch.bfloat16, enabled=half)

    def _spectrograms(self, input_values: Tensor, attention_mask: Tensor | None) -> list[Spectrogram]:
        """Return the frames of each clip, without padding."""
        bands = self.amae.input.num_mel_bins
        if input_values.dim() != 3 or input_values.shape[2] != bands:
            raise ValueError(f"input_values must be (clips, frames, {bands}), not {tuple(input_values.shape)}")
        own = input_values.new_ones(input_values.shape[:2]) if attention_mask is None else attention_mask
        if not own.any(dim=1).all():
            raise ValueError("attention_mask marks no frame of a clip")
        return [Spectrogram(values[mask].float()) for values, mask in zip(input_values, own.bool())]

    def _embed(self, input_values: Tensor, attention_mask: Tensor | None, all_layers: bool) -> AmaeOutput:
        with self._matrix_precision():
            encoded = list(self.amae.encode(self._spectrograms(input_values, attention_mask), all_layers))
        states = pad_sequence([of_clip.transpose(0, 1) for of_clip, _ in encoded], batch_first=True)
        steps = torch.tensor([of_clip.shape[1] for of_clip, _ in encoded], device=states.device)
        return AmaeOutput(
            last_hidden_state=states[:, :, -1],
            pooler_output=torch.stack([clip for _, clip in encoded]),
            hidden_states=states.unbind(dim=2) if all_layers else None,
            attention_mask=(torch.arange(states.shape[1], device=states.device) < steps[:, None]).long(),
        )

    def _wants_layers(self, output_hidden_states: bool | None) -> bool:
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)


class AmaeModel(AmaePreTrainedModel):
    """Encoder of a checkpoint, also of a classifier."""

    @can_return_tuple
    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> AmaeOutput:
        """Embed clips.

        Args:
            input_values: (B, T, F) from :class:`AmaeFeatureExtractor`, of any length.
            attention_mask: (B, T), 1 = a frame of the clip; all frames if None.
            output_hidden_states: return ``hidden_states``.

        Raises:
            ValueError: the input has another shape, or the mask leaves nothing of a clip.
        """
        return self._embed(input_values, attention_mask, self._wants_layers(output_hidden_states))


class AmaeForAudioClassification(AmaePreTrainedModel):
    """Classifier of clips."""

    amae: AudioClassifier

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify clips.

        The logits of a clip longer than the model's input are those of the mean of its windows' probabilities.

        Args:
            input_values: see :meth:`AmaeModel.forward`.
            attention_mask: see :meth:`AmaeModel.forward`.
            labels: (B,) classes or, of several labels a clip, (B, C) of 0 and 1; gives ``loss``.
            output_hidden_states: return ``hidden_states``, those of :class:`AmaeOutput`, in a second pass.

        Returns:
            ``logits`` (B, C), and ``loss`` and ``hidden_states`` if they are wanted.

        Raises:
            ValueError: see :meth:`AmaeModel.forward`.
        """
        with self._matrix_precision():
            found = list(self.amae.logits(self._spectrograms(input_values, attention_mask)))
        multi_label = self.config.problem_type == _MULTI_LABEL
        logits = torch.stack([_of_clip(windows, values, multi_label) for windows, values in found])
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        layers = None
        if self._wants_layers(output_hidden_states):
            layers = self._embed(input_values, attention_mask, all_layers=True).hidden_states
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=layers)


def _of_clip(windows: Windows, logits: Tensor, multi_label: bool) -> Tensor:
    """Return the logits (C,) of the mean over windows of the probabilities that their logits (windows, C) mean."""
    if len(logits) == 1:
        return logits[0].float()
    logits = logits.double()
    shares = windows.weights.to(logits).log()[:, None]
    if multi_label:
        present, absent = (torch.logsumexp(shares + logsigmoid(values), dim=0) for values in (logits, -logits))
        return (present - absent).float()
    return torch.logsumexp(shares + logits.log_softmax(dim=1), dim=0).float()


def _network(checkpoint: Checkpoint) -> Model:
    """Build a checkpoint's network without what serves pretraining alone."""
    model = build_model(checkpoint.model_settings)
    if isinstance(model, PretrainingModel):
        parts = [*model.named_children(), *model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
        for name, _ in parts:
            if name != "encoder":
                setattr(model, name, None)
    return model
