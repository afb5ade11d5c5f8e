"""Settings of a classifier; the defaults are those of Audio-MAE's fine-tuning (Huang et al. 2022, section 4.2)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass, field

from amae_plugin.models.settings import DownstreamConfig


@dataclass
class ClassifierConfig(DownstreamConfig):
    """Pooling and regularisation of a classifier."""

    num_classes: int = field(default=0, metadata={"help": "number of classes; the task reads it from labels.txt"})
    pooling: str = field(
        default="mean",
        metadata={
            "help": "mean (of the patch tokens, then a norm), cls (the class token), or AST's avgtok (mean of the "
            "normalised patch tokens, then a second norm) or avgcls (the same of the class tokens)"
        },
    )
    frozen: bool = field(default=False, metadata={"help": "linear probe: train only what follows the encoder"})
    batch_norm: bool = field(default=False, metadata={"help": "batch norm without weights before the head"})
    drop_path: float = field(default=0.1, metadata={"help": "stochastic depth: rate of the last block"})
    mask_ratio_time: float = field(
        default=0.2, metadata={"help": "share of the time steps hidden in training (scripts 0.2, paper 0.3)"}
    )
    mask_ratio_frequency: float = field(
        default=0.2, metadata={"help": "share of the bands hidden in training (scripts 0.2, paper 0.3)"}
    )
