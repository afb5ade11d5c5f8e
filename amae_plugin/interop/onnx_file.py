"""Encoders and classifiers as ONNX, for a batch of any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from amae_plugin.interop.formats import Format
from amae_plugin.models.base import Model

_FILE = "model.onnx"
_INPUT = "log_mel"
_INLINE_BYTES = 1 << 30  # of weights; a protocol buffer, which an ONNX file is, holds 2 GiB at most


class Onnx(Format):
    """A graph of the whole model, what it does to its input included; frames and bands are fixed."""

    name = "onnx"
    packages = ("onnx", "onnxruntime", "onnxscript")
    files = (_FILE, f"{_FILE}.data")

    def write(self, folder: Path) -> None:
        """See :meth:`Format.write`; weights beyond a gigabyte go to a file of their own."""
        function = _Function(self.model).eval()
        example = (torch.zeros(2, *self.input_size),)
        with _silence():
            # Strict: the only way of tracing that understands len() of a tensor of unknown length.
            batch = {_INPUT: {0: torch.export.Dim("batch")}}
            traced = torch.export.export(function, example, dynamic_shapes=batch, strict=True)
            program = torch.onnx.export(
                traced,
                example,
                dynamo=True,
                input_names=[_INPUT],
                output_names=[self.model.output_name],
                dynamic_shapes={_INPUT: {0: "batch"}},
                verbose=False,
            )
        assert program is not None
        size = sum(value.numel() * value.element_size() for value in self.model.state_dict().values())
        program.save(folder / _FILE, external_data=size > _INLINE_BYTES)

    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        """See :meth:`Format.outputs`."""
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / _FILE, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {_INPUT: source.numpy()})[0])

    def loading(self, folder: str) -> str:
        """See :meth:`Format.loading`."""
        return (
            "```python\n"
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{folder}/{_FILE}")\n'
            f'({self.model.output_name},) = session.run(None, {{"{_INPUT}": log_mel.numpy()}})\n'
            "```\n"
        )


class _Function(nn.Module):
    """What is exported of a model."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.model.outputs(log_mel)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
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
