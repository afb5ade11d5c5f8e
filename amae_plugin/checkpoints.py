"""Checkpoints of this plugin without fairseq: settings, weights, and the models that they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.errors import UserError
from amae_plugin.files import replacing, writing
from amae_plugin.models.base import DownstreamModel, Model
from amae_plugin.models.downstream import DOWNSTREAM, build_model, encoder_section
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.models.settings import Settings
from amae_plugin.models.system import System
from amae_plugin.weight_files import read_weights

NO_CLASSES = (
    "{path}: a pretraining checkpoint, which knows no classes; fine-tune it first (model.pretrained={path}), or use "
    "its features (amae embed, amae evaluate --trials)"
)
"""Message for a pretraining model in place of a classifier."""
Kind = TypeVar("Kind", bound=Model)
_ENCODER = "encoder."
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
            UserError: the file is missing, damaged, holds other objects, or is not a checkpoint of this plugin.
        """
        path = Path(path)
        content = read_weights(path)
        if not isinstance(content, dict) or not isinstance(content.get("cfg"), Mapping) or "model" not in content:
            raise UserError(f"{path}: not a checkpoint of a fairseq run, which would have the entries cfg and model")
        config = content["cfg"]
        name = (config.get("model") or {}).get("_name")
        if name not in DOWNSTREAM and name not in SYSTEMS:
            raise UserError(
                f"{path}: a checkpoint of {name}, which is not a model of this plugin; those are: "
                f"{', '.join((*SYSTEMS, *DOWNSTREAM))}"
            )
        history = content.get("optimizer_history") or [{}]
        return cls(
            path,
            config,
            content["model"],
            content.get("task_state") or {},
            content.get("extra_state") or {},
            history[-1].get("num_updates"),
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
        content = {
            "args": None,
            "cfg": dict(self.config),
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
    def untrained(self) -> tuple[str, ...]:
        """Names of weights that the published checkpoint lacked, so that they are untrained."""
        return tuple(self.extra_state.get("conversion", {}).get("initialised", ()))

    @property
    def model_settings(self) -> Settings:
        """Model section."""
        return self.config["model"]

    @property
    def encoder_settings(self) -> Settings:
        """Section that describes the encoder."""
        return encoder_section(self.model_settings)

    @property
    def system(self) -> System:
        """System of the encoder."""
        return find_system(self.encoder_settings)

    @property
    def downstream(self) -> type[DownstreamModel] | None:
        """Class of the downstream model; None for a pretraining checkpoint."""
        return DOWNSTREAM.get(self.model_settings["_name"])

    @property
    def input(self) -> ModelInput:
        """Input of the model.

        Raises:
            UserError: the task section lacks a setting that describes the input.
        """
        try:
            return ModelInput.from_settings(self.config.get("task") or {}, self.system.input(self.encoder_settings))
        except (UserError, ValueError) as error:
            raise UserError(f"{self.path}: {error}") from None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a classifier.

        Raises:
            UserError: the checkpoint has no classes, or lacks their names.
        """
        if self.downstream is None:
            raise UserError(NO_CLASSES.format(path=self.path))
        names = self.task_state.get("classes")
        if not names:
            raise UserError(f"{self.path}: does not hold the names of its classes (task_state.classes)")
        return tuple(names)

    @property
    def probabilities(self) -> Callable[[Tensor], Tensor]:
        """Function from a classifier's logits (B, C) to probabilities (B, C), as its training loss implies.

        Raises:
            UserError: the loss is unknown.
        """
        loss = (self.config.get("criterion") or {}).get("loss")
        if loss not in _PROBABILITIES:
            raise UserError(
                f"{self.path}: its setting criterion.loss is {loss}; probabilities can be computed only for "
                f"{' and '.join(_PROBABILITIES)}"
            )
        return _PROBABILITIES[loss]

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

    def model(self) -> Model:
        """Build the model, in evaluation mode, on the CPU.

        Raises:
            UserError: the weights do not fit the settings.
        """
        model = build_model(self.model_settings)
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise UserError(f"{self.path}: the weights do not fit the settings: {error}") from None
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
            raise UserError(f"{self.path}: has no final norm of the encoder, so model.pooling must be mean")
        try:
            model.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{self.path}: the encoder's weights do not fit its settings: {error}") from None
