"""Published checkpoints as their publishers' code writes them, made of the golden archives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden:
    """A golden archive."""

    def __init__(self, name: str):
        self.values = dict(np.load(GOLDEN / f"{name}.npz"))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.values[name]))

    def number(self, name: str) -> int:
        return int(self.values[name])

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights under the official names, float32."""
        names = [name for name in self.values if name.startswith("state/")]
        tensors = {name[len("state/") :]: self[name] for name in names}
        return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}

    def mae_ast_cfg(self, **model: Any) -> dict[str, Any]:
        """What MAE-AST's fairseq checkpoints hold as ``cfg``, as far as it matters."""
        kernel = self.number("kernel_time"), self.number("kernel_freq")
        return {
            "model": {
                "_name": "mae_ast",
                "ast_kernel_size_time": kernel[0],
                "ast_kernel_size_chan": kernel[1],
                "encoder_attention_heads": self.number("num_heads"),
                "enc_sine_pos": True,
                "dec_sine_pos": True,
                "layer_norm_first": False,
                "activation_fn": "gelu",
                "encoder_layerdrop": 0.1,
                "random_mask_prob": 0.7,
                **model,
            },
            "task": {
                "_name": "mae_ast_pretraining",
                "feature_type": "fbank",
                "feature_dim": 128,
                "mask_type": "chunk_mask",
            },
            "criterion": {"_name": "mae_ast", "reconstruction_weight": 10.0, "classification_weight": 1},
        }


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    return Golden
