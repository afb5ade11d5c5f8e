"""Published checkpoints as their publishers' code writes them, made of the golden archives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from archives import Archive


class Golden(Archive):
    """A golden archive, and the settings that its publisher's checkpoints hold beside the weights."""

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
