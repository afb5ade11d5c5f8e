"""Pretraining models as encoders of fairseq's speech recipes (``wav2vec_ctc``, ``wav2vec_seq2seq``) and their like.

Such a recipe loads a checkpoint, overwrites settings in it by their names, and calls the model with padded waveforms.
The settings are those of :class:`SpeechConfig`; :class:`SpeechEncoder` gives a pretraining model the functions. The
calls are those of fairseq's ``Wav2VecEncoder``, of ESPnet's ``FairSeqWav2Vec2Encoder`` and ``FairseqHubertEncoder``,
and of SpeechBrain's ``FairseqWav2Vec2``.
"""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace
from typing import Any, Dict, Optional

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2Seq2SeqModel, Wav2VecCtc
from omegaconf import II, DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import FINE_TUNED
from amae_plugin.fairseq_plugin.hydra import in_words
from amae_plugin.inference.waveforms import WaveformEncoder
from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import DROPOUTS, SpeechSettings
from amae_plugin.modules.masking import random_spans

logger = logging.getLogger(__name__)

Output = Dict[str, Any]
"""Features of a batch of waveforms, under wav2vec 2.0's names."""
_LETTERS_PER_SECOND = 15  # of fluent speech, about; CTC needs a time step for each
_WAV2VEC_STEPS_PER_SECOND = 50
# What a recipe may ask for by a key of the model's section, and that these models do not have, with the value at rest.
_ABSENT = {"checkpoint_activations": False, "layer_type": "transformer", "adp_num": -1}

OmegaConf.register_new_resolver("amae.speech", lambda: asdict(SpeechSettings()), replace=True)


@dataclass
class SpeechConfig(FairseqDataclass):
    """Settings of a pretraining model that speech recipes overwrite; pretraining ignores them.

    fairseq overwrites only what a checkpoint has, wherever it is. In a section of their own, the settings do not meet
    those of pretraining.
    """

    # A dict in a checkpoint. fairseq-train could not hand one on, and without a help text it makes no option of it.
    speech: Any = II("amae.speech:")


class SpeechEncoder(PretrainingModel):
    """Functions of a pretraining model on waveforms, under the names of fairseq's wav2vec 2.0.

    A registered model inherits from this class before the plain model, whose functions on spectrograms remain.

    Attributes:
        cfg: model section of the checkpoint, with ``encoder_embed_dim``, the features of a time step.
    """

    cfg: DictConfig
    _speech = SpeechSettings()
    _input: Optional[ModelInput] = None
    _problem = "the model was not built by its task"
    _is_complete = True

    def prepare_speech(self, cfg: DictConfig, settings: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        """Take what a speech recipe says, and write the width of a time step where it looks for it.

        Args:
            cfg: model section.
            settings: the same section before fairseq dropped what the model has no field for.
            task: section that describes the input; if it does not, waveforms are refused when they come.

        Raises:
            UserError: a setting cannot be used.
        """
        section = settings.get("speech") or {}
        given = {each.name: section[each.name] for each in fields(SpeechSettings) if each.name in section}
        self._is_complete = bool(given)
        if not given and settings.get("mask_length") is not None:  # a span of pretraining, which a recipe overwrites
            given["mask_length"] = settings["mask_length"]
        own = {name: settings.get(name) for name in DROPOUTS if given.get(name) is None}
        try:
            self._speech = SpeechSettings(**{**given, **own})
            self.encoder.set_dropout(**self._speech.dropouts())
        except ValueError as error:
            with in_words():
                raise UserError(str(error)) from None
        for name, rest in _ABSENT.items():
            if settings.get(name, rest) not in (rest, None):
                logger.warning(f"model.{name}={settings[name]} has no effect: this encoder has no such thing")
        try:
            self._input = ModelInput.from_settings(task, find_system(settings).input(settings))
        except ValueError as error:
            self._problem = str(error)
        with open_dict(cfg):
            cfg.encoder_embed_dim = self.encoder.step_dim(joined=True)
        self.cfg = cfg

    @property
    def waveforms(self) -> WaveformEncoder:
        """The encoder on waveforms.

        Raises:
            UserError: the checkpoint does not say how its input is made.
        """
        if self._input is None:
            with in_words():
                raise UserError(
                    f"the pretraining checkpoint (model.w2v_path) does not say how a waveform becomes its input: "
                    f"{self._problem}; take one that training or amae convert wrote"
                )
        return WaveformEncoder(self, self._input)

    @override
    def forward(self, source: Tensor, *args: Any, features_only: bool = False, **kwargs: Any) -> Output:
        """Do what the plain model does, or :meth:`extract_features` if wav2vec 2.0's *features_only* is set."""
        if features_only:
            return self.extract_features(source, *args, **kwargs)
        return super().forward(source, *args, **kwargs)  # type: ignore[safe-super]  # the plain model's

    @override
    def extract_features(
        self,
        source: Tensor,
        padding_mask: Optional[Tensor] = None,
        mask: bool = False,
        layer: Optional[int] = None,
        output_layer: Optional[int] = None,
        **unused: Any,
    ) -> Any:
        """Encode waveforms; spectrograms (B, T, F) go to the plain model.

        Args:
            source: (B, samples), mono at the input's sample rate with a full scale of 1.
            padding_mask: (B, samples) bool, True = beyond the clip's end; None: no clip has padding.
            mask: hide spans of time steps and of channels, as the recipe says.
            layer: number of a block whose output is wanted, from 0 (wav2vec 2.0's argument); None: the last norm's.
            output_layer: the same from 1 (HuBERT's).
            unused: further arguments of fairseq's models, such as ``corpus_key``.

        Returns:
            ``x`` (B, T, C), ``padding_mask`` (B, T), None without one, and ``layer_results``, a tuple for each block
            that ran, whose first entry is its output (T, B, C).

        Raises:
            UserError: see :attr:`waveforms`.
        """
        if source.dim() == 3:
            return super().extract_features(source, padding_mask)
        encode, speech = self.waveforms, self._speech
        samples = np.full(len(source), source.shape[1])
        if padding_mask is not None:
            samples = (~padding_mask).sum(dim=1).cpu().numpy()
        steps = torch.from_numpy(encode.steps_in(samples)).to(source.device)
        size = int(steps.max())
        hidden = dropped = None
        if mask and speech.mask_prob:
            hidden = random_spans(steps, size, speech.mask_prob, speech.mask_length)
            if speech.mask_dropout:
                hidden &= torch.rand(hidden.shape, device=hidden.device) >= speech.mask_dropout
        if mask and speech.mask_channel_prob:
            width = self.encoder.embed_dim
            channels = torch.full_like(steps, width)
            dropped = random_spans(channels, width, speech.mask_channel_prob, speech.mask_channel_length)
        features, layers = encode(source, samples, hidden, dropped, speech.drop_path, speech.feature_grad_mult)
        index = layer if output_layer is None else output_layer - 1
        return {
            "x": features if index is None else layers[index],
            "padding_mask": None if padding_mask is None else torch.arange(size, device=steps.device) >= steps[:, None],
            "layer_results": [(states.transpose(0, 1), None, None) for states in layers],
        }

    def remove_pretraining_modules(self) -> None:
        """Keep the encoder alone. A checkpoint's weights of what is removed have no place and are no error.

        Raises:
            UserError: see :attr:`waveforms`.
        """
        encoder = self.waveforms
        parts = [name for name, _ in self.named_children() if name != "encoder"]
        tokens = [name for name, _ in self.named_parameters(recurse=False)]
        for name in (*parts, *tokens):
            setattr(self, name, None)  # a module that is None swallows its weights, a parameter does not
        self.encoder.hear_only()
        self.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *rest: [state.pop(f"{prefix}{name}", None) for name in tokens]
        )
        self._log_time_steps(encoder)
        if not self._is_complete:
            logger.warning(
                "this checkpoint has no section cfg.model.speech, since an earlier release wrote it: of the recipe's "
                "masks and dropouts, only those act that the checkpoint has. amae convert OLD NEW adds the section"
            )

    def _log_time_steps(self, encoder: WaveformEncoder) -> None:
        rate, span = encoder.steps_per_second, self._speech.mask_length
        logger.info(f"time steps: {rate:g} a second, {encoder.dim} values each; a masked span is {span / rate:.2g} s")
        if rate < _WAV2VEC_STEPS_PER_SECOND:
            usual = max(1, round(10 * rate / _WAV2VEC_STEPS_PER_SECOND))
            logger.warning(f"model.mask_length counts time steps: {usual} would be the 0.2 s of wav2vec 2.0's recipes")
        if rate < _LETTERS_PER_SECOND:
            logger.warning(
                f"{rate:g} time steps a second are fewer than the letters of speech, about {_LETTERS_PER_SECOND}, and "
                "CTC needs one for each: take sentencepiece units, wav2vec_seq2seq or a checkpoint of frame tokens"
            )

    @property
    def w2v_encoder(self) -> SimpleNamespace:
        """Where ESPnet looks for the encoder in a model that is not fairseq's wav2vec 2.0."""
        return SimpleNamespace(w2v_model=self)

    @property
    def hubert_encoder(self) -> SimpleNamespace:
        """Where ESPnet looks for the encoder in a model that is not fairseq's HuBERT."""
        return SimpleNamespace(hubert_model=self)


def _refuse_fine_tuned(model: nn.Module) -> None:
    """Refuse a fine-tuned model of fairseq's as a pretrained encoder.

    Raises:
        UserError: always.
    """
    with in_words():
        raise UserError(FINE_TUNED.format(kind="speech recogniser"))


# fairseq calls the method of whatever model it finds at w2v_path, and ends in an AttributeError with its own.
for fine_tuned in (Wav2VecCtc, Wav2Vec2Seq2SeqModel):
    if not hasattr(fine_tuned, "remove_pretraining_modules"):
        fine_tuned.remove_pretraining_modules = _refuse_fine_tuned

# fairseq's fine-tuned checkpoints hold the dictionary of their labels, which is no plain value: lists of words, counts.
torch.serialization.add_safe_globals([Dictionary])
