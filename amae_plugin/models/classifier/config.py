"""Settings of a classifier; the defaults are those of Audio-MAE's fine-tuning (Huang et al. 2022, section 4.2)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass

from amae_plugin.models.settings import DownstreamConfig, setting


@dataclass
class ClassifierConfig(DownstreamConfig):
    """Pooling and regularisation of a classifier."""

    num_classes: int = setting(0, "number of classes; the task reads it from labels.txt")
    pooling: str = setting(
        "mean",
        "mean (of the patch tokens, then a norm), cls (the class token after a norm), AST's avgtok (mean of the "
        "normalised patch tokens, then a second norm) or avgcls (the same of the class tokens), or M2D's token_mean "
        "(mean of the normalised patch tokens) or time_concat (mean of the time steps, bands side by side)",
    )
    frozen: bool = setting(False, "linear probe: train only what follows the encoder")
    batch_norm: bool = setting(False, "batch norm without weights before the head, over a batch of one device")
    head_std: float = setting(2e-5, "standard deviation of the head's initial weights")
    mask_ratio_time: float = setting(0.2, "share of the time steps hidden in training (scripts 0.2, paper 0.3)")
    mask_ratio_frequency: float = setting(0.2, "share of the bands hidden in training (scripts 0.2, paper 0.3)")
