"""Checkpoints of this plugin without fairseq: settings, weights, and the models that they make."""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.transcripts import Units
from amae_plugin.errors import UserError
from amae_plugin.files import replacing, writing
from amae_plugin.models import state_dicts
from amae_plugin.models.base import DownstreamModel, Model
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.ctc import CTC
from amae_plugin.models.downstream import DOWNSTREAM, build_model, encoder_section
from amae_plugin.models.published import find_state
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.models.settings import PretrainingConfig, Settings, SpeechSettings
from amae_plugin.models.system import System
from amae_plugin.modules.compute import NoDraws, enough_memory
from amae_plugin.modules.embedding import grid_size
from amae_plugin.weight_files import read_weights, unwrapped

Kind = TypeVar("Kind", bound=Model)
_ENCODER = "encoder."
_SECTIONS = ("task", "criterion", "dataset", "checkpoint", "optimization", "optimizer", "ema")
"""Sections that are read; fairseq writes others."""
_LONGEST = 1_000_000  # frames of an input, almost three hours
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    dict: "a section",
}
_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda logits: logits.softmax(dim=1),
    "bce": torch.sigmoid,
}


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint of a run of this plugin under fairseq, or of converted published weights.

    Attributes:
        path: checkpoint file.
        config: settings of the run by section, among them ``model`` and ``task``.
        state: weights of the model.
        task_state: state of the task; the ``classes`` of a classifier.
        extra_state: state of the trainer, such as ``val_loss``, ``best`` and the position in the data, and
            ``conversion``, the origin of a converted checkpoint.
        updates: number of optimizer updates of the weights; None if the file does not state it.
    """

    path: Path
    config: Mapping[str, Settings]
    state: Mapping[str, Tensor]
    task_state: Settings = field(default_factory=dict)
    extra_state: Settings = field(default_factory=dict)
    updates: int | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint; nothing but tensors and plain values is unpickled.

        Raises:
            UserError: the file is missing, damaged, holds other objects, or is not a checkpoint of this plugin; or its
                settings are not those of a model with its weights.
        """
        path = Path(path)
        content = read_weights(path)
        config = content.get("cfg") if isinstance(content, dict) else None
        model = config.get("model") if isinstance(config, Mapping) else None
        name = model.get("_name") if isinstance(model, Mapping) else None
        if not isinstance(content, dict) or config is None or str(name) not in (*DOWNSTREAM, *SYSTEMS):
            raise UserError(f"{path}: {_refusal(path, content, name)}")
        sections = {f"cfg.{section}": config.get(section) for section in _SECTIONS}
        sections |= {part: content.get(part) for part in ("model", "task_state", "extra_state")}
        for part, section in sections.items():
            if not isinstance(section, Mapping) and (part == "model" or section is not None):
                raise UserError(f"{path}: its entry {part} is {_brief(section)}, must be a section; it is damaged")
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content["model"].items()):
            raise UserError(f"{path}: its entry model holds more than tensors and their names, so it is no state dict")
        history = content.get("optimizer_history") or [{}]
        updates = (
            history[-1].get("num_updates") if isinstance(history, list) and isinstance(history[-1], dict) else None
        )
        return cls(
            path,
            config,
            unwrapped(content["model"]),
            content.get("task_state") or {},
            content.get("extra_state") or {},
            updates if isinstance(updates, int) else None,
        )

    def write(self) -> None:
        """Write the checkpoint to its path in fairseq's format, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        # fairseq reads the last entry of the history even if it resumes no optimizer.
        history: dict[str, object] = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
        if self.updates is not None:
            history["num_updates"] = self.updates
        added = {"speech": asdict(SpeechSettings())} if self.lacks_settings else {}
        content = {
            "args": None,
            "cfg": {**self.config, "model": {**self.model_settings, **added}},
            "model": dict(self.state),
            "criterion": None,
            "optimizer_history": [history],
            "task_state": dict(self.task_state),
            "extra_state": dict(self.extra_state),
            "last_optimizer_state": None,
        }
        with writing(self.path, "the checkpoint"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial, partial.open("wb") as file:
                torch.save(content, file)

    @property
    def lacks_settings(self) -> bool:
        """Whether a pretraining model lacks what fairseq's speech recipes overwrite; :meth:`write` adds it."""
        return self.downstream is None and "speech" not in self.model_settings

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of weights that the published checkpoint lacked, so that they are untrained."""
        return tuple((self.state_of_run("conversion", dict) or {}).get("initialised", ()))

    @property
    def model_settings(self) -> Settings:
        """Model section."""
        return self.config["model"]

    @property
    def encoder_settings(self) -> Settings:
        """Section that describes the encoder.

        Raises:
            UserError: a downstream model has no such section.
        """
        section = encoder_section(self.model_settings)
        if not isinstance(section, Mapping):
            raise UserError(f"{self.path}: its setting model.encoder is {_brief(section)}, must be a system's section")
        return section

    @property
    def system(self) -> System:
        """System of the encoder."""
        return find_system(self.encoder_settings)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model takes of a clip, of ``audio`` and ``image``."""
        return tuple(self.encoder_settings.get("modalities") or self.system.encoder_class.modalities)

    @property
    def downstream(self) -> type[DownstreamModel] | None:
        """Class of the downstream model; None for a pretraining checkpoint."""
        return DOWNSTREAM.get(self.model_settings["_name"])

    def setting(self, section: str, key: str, *kinds: type) -> Any:
        """Return a setting of the run; None if it is missing or null.

        Raises:
            UserError: it is of none of the types, or a number that is not finite.
        """
        return self._typed(f"setting {section}.{key}", (self.config.get(section) or {}).get(key), kinds)

    def state_of_run(self, key: str, *kinds: type) -> Any:
        """Return an entry of ``extra_state``; None if it is missing, null or a number that is not finite.

        Raises:
            UserError: it is of none of the types.
        """
        value = self.extra_state.get(key)
        finite = not isinstance(value, float) or math.isfinite(value)
        return self._typed(f"entry extra_state.{key}", value, kinds) if finite else None

    def _typed(self, name: str, value: object, kinds: Sequence[type]) -> Any:
        wrong = not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds)
        if value is not None and (wrong or (isinstance(value, float) and not math.isfinite(value))):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            raise UserError(f"{self.path}: its {name} is {_brief(value)}, must be {words}")
        return value

    @property
    def input(self) -> ModelInput:
        """Input of the model.

        Raises:
            UserError: the task section lacks a setting that describes the input, or it describes none of this model.
        """
        for key in ("front_end", "window_type", "normalization"):
            self.setting("task", key, str)
        self.setting("task", "mean", int, float)
        std = self.setting("task", "std", int, float)
        length, bands = (self.setting("task", key, int) for key in ("target_length", "num_mel_bins"))
        settings = self.encoder_settings
        try:
            encoder = self._encoder_config
            for key, value, fits, words in (
                ("std", std, std is None or std > 0, "above 0"),
                ("target_length", length, length is None or 0 < length <= _LONGEST, f"1 to {_LONGEST:,} frames"),
                ("num_mel_bins", bands, bands in (None, encoder.num_mel_bins), f"the model's, {encoder.num_mel_bins}"),
            ):
                if not fits:
                    raise ValueError(f"its setting task.{key} is {value}, must be {words}")
            found = ModelInput.from_settings(self.config.get("task") or {}, self.system.input(settings))
            stride = getattr(encoder, "patch_stride", None)
            grid_size(found.target_length, found.num_mel_bins, encoder.patch_size, stride)
        except (UserError, ValueError) as error:
            raise UserError(f"{self.path}: {error}") from None
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a classifier.

        Raises:
            UserError: the checkpoint has no classes, or lacks their names.
        """
        if self.downstream is not Classifier:
            raise self.no(Classifier)
        names = self.task_state.get("classes")
        if not names:
            raise UserError(f"{self.path}: does not hold the names of its classes (task_state.classes)")
        count = self.model_settings.get("num_classes")
        if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(n, str) for n in names):
            raise UserError(f"{self.path}: its entry task_state.classes must be the names of the {count} classes")
        return tuple(names)

    @property
    def units(self) -> Units:
        """Units of the texts of a recogniser.

        Raises:
            UserError: the checkpoint has no units, or they do not fit the model.
        """
        if self.downstream is not CTC:
            raise self.no(CTC)
        try:
            units = Units.from_plain(self.task_state.get("units"))
        except ValueError as error:
            raise UserError(f"{self.path}: its entry task_state.units {error}") from None
        if len(units) != (count := self.model_settings.get("num_units")):
            raise UserError(f"{self.path}: its entry task_state.units has {len(units)} units, and the model {count}")
        return units

    def no(self, kind: type[DownstreamModel]) -> UserError:
        """Return the error of a checkpoint that is of another kind of model than this one."""
        lack = f"which knows no {kind.tells}"
        if self.downstream is not None:
            return UserError(f"{self.path}: a {self.downstream.kind}, {lack}; this needs a {kind.kind}")
        remedy = f"fine-tune it first (model.pretrained={self.path})"
        features = "use its features (amae embed, amae evaluate --trials)"
        return UserError(f"{self.path}: a pretraining checkpoint, {lack}; {remedy}, or {features}")

    @property
    def probabilities(self) -> Callable[[Tensor], Tensor]:
        """Function from a classifier's logits (B, C) to probabilities (B, C), as its training loss implies.

        Raises:
            UserError: the loss is unknown.
        """
        loss = self.setting("criterion", "loss", str)
        if loss not in _PROBABILITIES:
            raise UserError(
                f"{self.path}: its setting criterion.loss is {loss}; probabilities can be computed only for "
                f"{' and '.join(_PROBABILITIES)}"
            )
        return _PROBABILITIES[loss]

    def require_predictions(self) -> None:
        """Check what predictions need besides the model.

        Raises:
            UserError: see :attr:`classes` and :attr:`probabilities`.
        """
        _ = self.classes, self.probabilities

    def require_finite(self, values: Tensor) -> None:
        """Refuse the model's values (B, ...) of B clips or windows if they are not finite.

        Raises:
            UserError: a value is infinite or not a number.
        """
        bad = int((~values.isfinite().flatten(1).all(dim=1)).sum())
        if bad:
            raise UserError(
                f"{self.path}: the model gives values that are not finite numbers for {bad:,} of {len(values):,} "
                "inputs; its training diverged, so take an earlier checkpoint"
            )

    def check_settings(self) -> None:
        """Compare the settings of the model with its weights, before a model of such sizes takes memory.

        Raises:
            UserError: a setting is of a wrong type, or a size is not that of the weights.
        """
        _ = self.encoder_settings  # which the message about it names
        try:
            state_dicts.check_sizes(self._encoder_config, self.state)
            if self.downstream is not None:
                self.downstream.check_sizes(self.model_settings, self.state)
        except (UserError, ValueError) as error:
            raise UserError(f"{self.path}: the weights do not fit the settings: {error}") from None

    @property
    def _encoder_config(self) -> PretrainingConfig:
        """Settings of the encoder.

        Raises:
            UserError: they name no system.
            ValueError: one is of a wrong type.
        """
        settings = self.encoder_settings
        return find_system(settings).config.from_settings(settings)

    def model(self) -> Model:
        """Build the model, in evaluation mode, on the CPU.

        Raises:
            UserError: the settings make no model, or the weights do not fit them.
        """
        self.check_settings()
        try:
            with enough_memory(torch.device("cpu"), f"the model of {self.path}"), NoDraws():
                model = build_model(self.model_settings)
        except (UserError, ValueError) as error:
            raise UserError(f"{self.path}: its settings make no model: {error}") from None
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise UserError(f"{self.path}: the weights do not fit the settings: {_sentence(error)}") from None
        return model.eval()

    def load(self, kind: type[Kind], purpose: str) -> Kind:
        """Build the model as :meth:`model` does, and refuse any other kind of model.

        Args:
            kind: class of the model.
            purpose: end of the message "..., so {purpose}".

        Raises:
            UserError: the model is of another kind, or its weights do not fit its settings.
        """
        model = self.model()
        if not isinstance(model, kind):
            found = "a pretraining checkpoint" if self.downstream is None else f"a {self.downstream.kind}"
            raise UserError(f"{self.path}: {found}, so {purpose}")
        return model

    def load_encoder(self, model: DownstreamModel) -> None:
        """Load the weights of this checkpoint's encoder into a downstream model.

        Raises:
            UserError: the weights do not fit, or lack the final norm that the model keeps.
        """
        state = {name[len(_ENCODER) :]: value for name, value in self.state.items() if name.startswith(_ENCODER)}
        if isinstance(model.encoder.norm, nn.Identity):
            state = {name: value for name, value in state.items() if not name.startswith("norm.")}
        elif not any(name.startswith("norm.") for name in state):
            remedy = "start from its pretraining checkpoint, or, for a classifier, set model.pooling=mean"
            raise UserError(f"{self.path}: has no final norm of the encoder, which this model needs; {remedy}")
        try:
            model.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{self.path}: the encoder's weights do not fit its settings: {_sentence(error)}") from None


def _refusal(path: Path, content: object, name: object) -> str:
    """Say what a file is that is no checkpoint of this plugin, and what to do with it."""
    state = find_state(content)
    kinds = [form for system in SYSTEMS.values() for form in system.published if state and form().recognises(state)]
    has_settings = isinstance(content, Mapping) and content.get("cfg") is not None
    if kinds or (state and not has_settings):
        what = f"published weights ({kinds[0].title})" if kinds else "weights without the settings of a model"
        command = shlex.join(["amae", "convert", str(path), str(path.with_name(f"{path.stem}.converted.pt"))])
        return f"{what}, not a checkpoint of this plugin; make one of them: {command}"
    if name is None:
        entries = "the entries cfg, with a section model and its _name, and model"
        return f"not a checkpoint of a fairseq run, which would have {entries}"
    known = ", ".join((*SYSTEMS, *DOWNSTREAM))
    return f"a checkpoint of {_brief(name)}, which is not a model of this plugin; those are: {known}"


def _sentence(error: RuntimeError) -> str:
    """Return PyTorch's error of a state dict, a list of several lines, in one line."""
    return " ".join(str(error).split())


def _brief(value: object) -> str:
    """Show a value from a file in a message."""
    return value if isinstance(value, str) and value.isidentifier() else textwrap.shorten(repr(value), 60)
