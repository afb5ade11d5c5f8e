"""The checkpoints of this plugin as plain PyTorch: settings, weights and the models they make, without fairseq."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.files import replacing, writing
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.models.registry import SYSTEMS, input_settings, system_of
from amae_plugin.weight_files import read_weights

CLASSIFIER = "amae_classifier"
"""The registered name of the classifier."""
NO_CLASSES = (
    "{path}: a pretraining checkpoint, which knows no classes; fine-tune it first (model.pretrained={path}), or use "
    "its features (amae embed, amae evaluate --trials)"
)
"""What is said when a pretraining model is asked for classes."""
Model = Union[Classifier, PretrainingModel]
_ENCODER = "encoder."
_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda logits: logits.softmax(dim=1),
    "bce": torch.sigmoid,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fairseq wrote in a run of this plugin, or that was made of a published one.

    Attributes:
        path: of the file.
        config: the run's settings, section by section; ``model`` and ``task`` among them.
        state: the model's weights.
        task_state: what the task keeps with them; ``classes`` of a classifier.
        extra_state: the trainer's: ``val_loss``, ``best``, the position in the data; and ``conversion``: of which
            published checkpoint it was made.
        updates: of the optimizer that made the weights; None if the file does not say how many.
    """

    path: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    task_state: Mapping[str, Any] = field(default_factory=dict)
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    updates: int | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint; nothing but tensors and plain values is unpickled.

        Raises:
            UserError: the file is missing, damaged, holds other objects, or is not a checkpoint of this plugin.
        """
        path = Path(path)
        content = read_weights(path)
        config = content.get("cfg") if isinstance(content, dict) else None
        if not isinstance(config, Mapping) or "model" not in content:
            raise UserError(f"{path}: not a checkpoint of a fairseq run, which has the entries cfg and model")
        name = (config.get("model") or {}).get("_name")
        if name != CLASSIFIER and name not in SYSTEMS:
            raise UserError(
                f"{path}: a checkpoint of {name}, which is no model of this plugin; those are: "
                f"{', '.join((*SYSTEMS, CLASSIFIER))}"
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
        """Write the checkpoint to its path as fairseq would, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        # fairseq looks at the last entry of the history, also where no optimizer is to be resumed.
        history: dict[str, Any] = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
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
        """Weights that no training has touched: what a published checkpoint that was converted did not hold."""
        return tuple(self.extra_state.get("conversion", {}).get("initialised", ()))

    @property
    def model_settings(self) -> Mapping[str, Any]:
        """The model section."""
        return self.config["model"]

    @property
    def is_classifier(self) -> bool:
        """Whether the model classifies; else it is a pretraining model."""
        return self.model_settings["_name"] == CLASSIFIER

    @property
    def encoder_settings(self) -> Mapping[str, Any]:
        """The model section of the system that the encoder is of."""
        return self.model_settings["encoder"] if self.is_classifier else self.model_settings

    @property
    def input_settings(self) -> dict[str, Any]:
        """The settings of :func:`.registry.input_settings`, and ``target_length``, the frames of the input.

        Raises:
            UserError: the task section lacks a setting that describes the input.
        """
        task = self.config.get("task") or {}
        statistics = () if system_of(self.encoder_settings).normalizes_input else ("mean", "std")
        missing = [name for name in ("target_length", "num_mel_bins", *statistics) if task.get(name) is None]
        if missing:
            raise UserError(f"{self.path}: its settings lack {', '.join(f'task.{name}' for name in missing)}")
        return {"target_length": task["target_length"], **input_settings(task, self.encoder_settings)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of a classifier's classes.

        Raises:
            UserError: it is no classifier, or the names are not there.
        """
        if not self.is_classifier:
            raise UserError(NO_CLASSES.format(path=self.path))
        names = self.task_state.get("classes")
        if not names:
            raise UserError(f"{self.path}: does not hold the names of its classes (task_state, classes)")
        return tuple(names)

    @property
    def probabilities(self) -> Callable[[Tensor], Tensor]:
        """What makes probabilities (B, C) of a classifier's logits (B, C): the counterpart of its training's loss.

        Raises:
            UserError: the loss is not known.
        """
        loss = (self.config.get("criterion") or {}).get("loss")
        if loss not in _PROBABILITIES:
            raise UserError(
                f"{self.path}: its setting criterion.loss is {loss}, and what makes probabilities of its scores is "
                f"known for {' and '.join(_PROBABILITIES)}"
            )
        return _PROBABILITIES[loss]

    @property
    def encoder_state(self) -> dict[str, Tensor]:
        """The weights of the encoder, under its own names."""
        return {name[len(_ENCODER) :]: value for name, value in self.state.items() if name.startswith(_ENCODER)}

    def model(self) -> Model:
        """The model, in evaluation mode, on the CPU.

        Raises:
            UserError: the weights do not fit the settings.
        """
        if self.is_classifier:
            model: Model = Classifier(ClassifierConfig.from_settings(self.model_settings))
        else:
            model = SYSTEMS[self.model_settings["_name"]].model(self.model_settings)
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise UserError(f"{self.path}: the weights do not fit the settings: {error}") from None
        return model.eval()

    def load_encoder(self, classifier: Classifier) -> None:
        """Give a classifier the weights of this checkpoint's encoder.

        Raises:
            UserError: they do not fit, or lack the final norm that the pooling ``cls`` needs.
        """
        state = self.encoder_state
        if classifier.config.pooling == "mean":  # which does without the encoder's final norm
            state = {name: value for name, value in state.items() if not name.startswith("norm.")}
        elif not any(name.startswith("norm.") for name in state):
            raise UserError(f"{self.path}: has no final norm of the encoder, so model.pooling must be mean")
        try:
            classifier.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{self.path}: the encoder's weights do not fit its settings: {error}") from None
