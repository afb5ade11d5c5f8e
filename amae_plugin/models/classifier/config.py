"""Choices of a classifier; the defaults are those of Audio-MAE's fine-tuning (Huang et al. 2022, section 4.2)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class ClassifierConfig:
    """Encoder, pooling and regularisation. The fields carry their help in ``metadata`` so that fairseq shows it."""

    encoder: Any = field(
        default=None, metadata={"help": "model section of the system whose encoder this is, with its _name and sizes"}
    )
    num_classes: int = field(default=0, metadata={"help": "classes; the task knows them from labels.txt"})
    pooling: str = field(
        default="mean",
        metadata={
            "help": "mean (of the patch tokens, then a norm), cls (the class token), or AST's avgtok (mean of the "
            "normalised patch tokens, then a second norm) or avgcls (the same of the class tokens)"
        },
    )
    frozen: bool = field(default=False, metadata={"help": "linear probe: only what follows the encoder is trained"})
    batch_norm: bool = field(default=False, metadata={"help": "batch norm without weights before the head"})
    drop_path: float = field(default=0.1, metadata={"help": "stochastic depth: rate at the last block"})
    mask_ratio_time: float = field(
        default=0.2, metadata={"help": "share of the time steps hidden in training (scripts 0.2, paper 0.3)"}
    )
    mask_ratio_frequency: float = field(
        default=0.2, metadata={"help": "share of the bands hidden in training (scripts 0.2, paper 0.3)"}
    )
    bf16: bool = field(
        default=False,
        metadata={
            "help": "matrix work in bfloat16; weights, optimizer, residual stream, norms and loss stay in float32"
        },
    )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ClassifierConfig":
        """The config that a recipe's or a checkpoint's model section holds; keys that are no field are left aside."""
        return cls(**{f.name: settings[f.name] for f in fields(ClassifierConfig) if f.name in settings})
