"""An encoder for X-ARES: ``AMAE_CHECKPOINT=checkpoint.pt python -m xares.run amae_plugin.interop.xares TASK...``.

X-ARES (Zhang et al. 2025) imports a module, makes its only class whose name ends with ``Encoder`` without arguments,
and trains small models on what it returns. It pads the clips of a batch with zeros and does not say how long they are.
"""

import os

import torch
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.inference import model as inference
from amae_plugin.inference.clips import to_waveform

VARIABLE = "AMAE_CHECKPOINT"
"""Name of the environment variable with the path of the checkpoint."""


class AmaeEncoder(nn.Module):
    """The encoder of a checkpoint, for clips of any length.

    Zeros at a clip's end are taken for X-ARES's padding. The clip's own time steps do not depend on them, and each step
    of the padding is the mean of its own. So the mean over all steps, which X-ARES classifies, is that of the clip.

    Args:
        path: path of the checkpoint; that in the environment variable ``AMAE_CHECKPOINT`` if None.

    Attributes:
        sampling_rate: sample rate in Hz of the audio.
        output_dim: D.
        hop_size_in_ms: time from one step to the next.

    Raises:
        UserError: no checkpoint is named, or the file is no checkpoint of this plugin.
    """

    def __init__(self, path: str | None = None):
        super().__init__()
        path = path or os.environ.get(VARIABLE)
        if not path:
            raise UserError(f"no checkpoint is named: set the environment variable {VARIABLE} to its path")
        self.model = inference.load_model(path, device="cpu")  # X-ARES moves it
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.embed_dim
        self.hop_size_in_ms = 1000 * self.model.step_samples / self.model.sample_rate

    def forward(self, audio: Tensor) -> Tensor:
        """Embed the time steps of clips (B, samples): (B, steps, D), on the model's device.

        Raises:
            UserError: a clip is not finite or of another full scale.
        """
        waveforms = (_own_samples(to_waveform(clip, f"audio[{index}]")) for index, clip in enumerate(audio))
        total, found = self.model.steps_in(audio.shape[1]), []
        for states, _ in self.model.encode(waveforms, all_layers=False):
            steps = states[-1]
            found.append(torch.cat([steps, steps.mean(dim=0).expand(total - len(steps), -1)]))
        return torch.stack(found)


def _own_samples(waveform: Tensor) -> Tensor:
    """Cut off the zeros at a clip's end; a clip of zeros stays as it is."""
    sounding = waveform.nonzero()
    return waveform[: int(sounding[-1]) + 1] if len(sounding) else waveform
