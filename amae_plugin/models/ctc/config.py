"""Settings of a recogniser; what regularises it is wav2vec 2.0's (Baevski et al. 2020, section 4.3)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass

from amae_plugin.models.settings import DownstreamConfig, setting


@dataclass
class CTCConfig(DownstreamConfig):
    """Output steps and regularisation of a recogniser."""

    num_units: int = setting(0, "number of output units with fairseq's own four; the task reads it from the dictionary")
    input_length: int = setting(1024, "frames of the longest input; the task sets it to task.target_length")
    sub_steps: int = setting(1, "output steps of a column of tokens; patches of 16 frames make 6.25 columns a second")
    dropout: float = setting(0.1, "dropout before the output layer")
    mask_ratio_time: float = setting(0.5, "share of the columns of tokens that training blanks out, in spans")
    mask_length: int = setting(10, "length of such a span in columns of tokens")
    mask_ratio_frequency: float = setting(0.2, "share of the mel bands that training blanks out, in spans")
    mask_length_frequency: int = setting(16, "length of such a span in mel bands")
