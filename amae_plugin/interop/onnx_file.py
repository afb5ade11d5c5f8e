"""Encoders and classifiers as ONNX, for a batch of any size."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.interop.formats import Format
from amae_plugin.models.base import Model

_FILE = "model.onnx"
_INPUT = "log_mel"
_INLINE_BYTES = 1 << 30  # of weights; a protocol buffer, which an ONNX file is, holds 2 GiB at most
_LOADING = """```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/{file}")
({output},) = session.run(None, {{"{input}": log_mel.numpy()}})
```
"""


class Onnx(Format):
    """A graph of the whole model, including its treatment of the input; frames and bands are fixed."""

    name = library = "onnx"
    packages = ("onnx", "onnxruntime", "onnxscript")
    files = (_FILE, f"{_FILE}.data")

    @override
    def write(self, folder: Path) -> None:
        example, batch = (torch.zeros(2, *self.input_size),), {_INPUT: {0: torch.export.Dim("batch")}}
        with _silence():
            # Only the strict way of tracing understands len() of a tensor of unknown length.
            traced = torch.export.export(_Function(self.model).eval(), example, dynamic_shapes=batch, strict=True)
            axes, outputs = {_INPUT: {0: "batch"}}, [self.model.output_name]
            program = torch.onnx.export(traced, input_names=[_INPUT], output_names=outputs, dynamic_shapes=axes)
        assert program is not None
        size = sum(value.numel() * value.element_size() for value in self.model.state_dict().values())
        program.save(folder / _FILE, external_data=size > _INLINE_BYTES)

    @override
    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / _FILE, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {_INPUT: source.numpy()})[0])

    @override
    def loading(self, folder: str) -> str:
        return _LOADING.format(folder=folder, file=_FILE, output=self.model.output_name, input=_INPUT)


class _Function(nn.Module):
    """A model's outputs as a module, which the exporter needs."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.model.outputs(log_mel)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back what the exporter says about its own progress and future; its errors stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
