"""Encoders and classifiers as ONNX, for a batch of any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from amae_plugin.checkpoints import Model
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.modules.patching import Size2d

WEIGHTS = "model.onnx"
"""Name of the file."""
INPUT = "log_mel"
_INLINE_BYTES = 1 << 30  # of weights; a protocol buffer, which an ONNX file is, holds 2 GiB at most


class ClassifierOutputs(nn.Module):
    """A classifier as a function with two results."""

    names = ("logits", "features")

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and features (B, D) of normalised log-mel (B, T, F)."""
        output = self.model(log_mel)
        return output["logits"], output["features"]


class EncoderOutputs(nn.Module):
    """The encoder of a pretraining model as a function."""

    names = ("features",)

    def __init__(self, model: PretrainingModel):
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> tuple[Tensor]:
        """Features (B, prefix + L, D) of log-mel (B, T, F) as the system expects it."""
        return (self.model.extract_features(log_mel)[0],)


def outputs_of(model: Model) -> ClassifierOutputs | EncoderOutputs:
    """A model as the function that is exported."""
    if isinstance(model, Classifier):
        return ClassifierOutputs(model).eval()
    return EncoderOutputs(model).eval()


def write(model: Model, input_size: Size2d, path: Path) -> None:
    """Write a model to a file; weights beyond a gigabyte go to another one beside it.

    Args:
        model: a classifier or a pretraining model, in evaluation mode.
        input_size: frames and bands of its input.
        path: of the file.
    """
    function = outputs_of(model)
    example = (torch.zeros(2, *input_size),)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    with _silence():
        # Strict: the only way of tracing that understands len() of a tensor of unknown length.
        batch = {INPUT: {0: torch.export.Dim("batch")}}
        traced = torch.export.export(function, example, dynamic_shapes=batch, strict=True)
        program = torch.onnx.export(
            traced,
            example,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(function.names),
            dynamic_shapes={INPUT: {0: "batch"}},
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=size > _INLINE_BYTES)


def largest_difference(path: Path, model: Model, sources: list[Tensor]) -> float:
    """How far what onnxruntime computes with a file is from what the model computes, relative to its size.

    Args:
        path: of the file.
        model: in evaluation mode.
        sources: batches (B, T, F) of several sizes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    function = outputs_of(model)
    largest = 0.0
    for source in sources:
        with torch.inference_mode():
            expected = function(source)
        for actual, value in zip(session.run(None, {INPUT: source.numpy()}), expected):
            difference = (torch.from_numpy(actual) - value).abs().max() / value.abs().max().clamp(min=1)
            largest = max(largest, float(difference))
    return largest


@contextlib.contextmanager
def _silence():  # type: ignore[no-untyped-def]
    """Keep back what the exporter says about its own progress and future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
