"""An upstream for s3prl, and so for SUPERB: an expert with all hidden states.

s3prl finds upstreams by name in ``s3prl.hub``::

    import s3prl.hub
    import s3prl.nn
    from amae_plugin.interop.s3prl import amae_local

    s3prl.hub.amae_local = amae_local
    upstream = s3prl.nn.S3PRLUpstream("amae_local", path_or_url="checkpoint.pt")

This module does not import s3prl. The release 0.4.18 of s3prl cannot be imported with torchaudio 2.9 or later, which
lack functions that two of its other upstreams import; ``interop/README.md`` shows an environment that works.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from amae_plugin.inference.clips import to_waveform
from amae_plugin.inference.model import load_model


class UpstreamExpert(nn.Module):
    """The encoder of a checkpoint of this plugin.

    A clip's hidden states are those of its own windows and do not depend on the other clips of the batch. Gradients
    flow if they are enabled, but dropout and LayerDrop stay off, so the number of hidden states is always the same.

    Args:
        ckpt: path of the checkpoint.
        kwargs: further arguments that s3prl passes to every upstream, unused.

    Raises:
        UserError: the file is no checkpoint of this plugin.
    """

    def __init__(self, ckpt: str, **kwargs: object):
        super().__init__()
        self.model = load_model(ckpt, device="cpu")  # s3prl moves it

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples at 16 kHz from one time step to the next, the same for every hidden state."""
        return self.model.step_samples

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Compute the hidden states of clips.

        Args:
            wavs: (samples,) each, at 16 kHz, with a full scale of 1.

        Raises:
            UserError: a clip is empty, not finite, or of another full scale.

        Returns:
            ``hidden_states``: one tensor (clips, steps of the longest, D) for the input of each transformer block and
            one for the encoder's output; see :meth:`~amae_plugin.inference.model.AudioModel.extract_features`. s3prl
            counts a step for each multiple of the downsample rate that a clip begins, and a clip's last step fills
            those that it lacks, whose analysis windows do not fit. After them come zeros.
        """
        waveforms = [to_waveform(wav, f"wavs[{index}]") for index, wav in enumerate(wavs)]
        of_clips = []
        for waveform, (states, _) in zip(waveforms, self.model.encode(waveforms)):
            missing = -(-len(waveform) // self.model.step_samples) - states.shape[1]
            filled = torch.cat([states, states[:, -1:].expand(-1, max(0, missing), -1)], dim=1)
            of_clips.append(filled.transpose(0, 1))
        return {"hidden_states": list(pad_sequence(of_clips, batch_first=True).unbind(dim=2))}


amae_local = UpstreamExpert
"""Entry of the upstream in ``s3prl.hub``."""
