"""A model for ARCH, the benchmark of audio representations (La Quatra et al. 2024)::

    from arch_eval import ESC50
    from amae_plugin.interop.arch import AmaeModel

    ESC50("ESC-50", precompute_embeddings=True).evaluate(AmaeModel("checkpoint.pt"), mode="linear")

ARCH gives one clip after the other, which it has converted to the model's rate.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from amae_plugin.inference import model as inference
from amae_plugin.inference.clips import to_waveform


class AmaeModel:
    """A checkpoint's model with the functions that ARCH calls.

    Args:
        path: path of the checkpoint.
        device: see :func:`~amae_plugin.inference.model.load_model`.
        max_seconds: length to which :meth:`get_sequence_embeddings` pads or cuts its steps, since ARCH stacks those of
            all clips; the clips' own lengths if None.

    Attributes:
        model: model of the checkpoint.

    Raises:
        UserError: the file is no checkpoint of this plugin.
    """

    def __init__(self, path: str, device: str = "auto", max_seconds: float | None = None):
        self.model = inference.load_model(path, device)
        self.max_seconds = max_seconds

    def get_embeddings(self, audio: Tensor, **kwargs: object) -> Tensor:
        """Embed a clip (samples,) or (channels, samples): (D,), on the CPU."""
        return self._embedding(audio).clip

    def get_sequence_embeddings(self, audio: Tensor, **kwargs: object) -> Tensor:
        """Embed the time steps of a clip: (steps, D), 0 after its end, on the CPU."""
        steps = self._embedding(audio).steps
        if self.max_seconds is None:
            return steps
        total = self.model.steps_in(int(self.max_seconds * self.model.sample_rate))
        return pad(steps, (0, 0, 0, total - len(steps)))

    def get_token_embeddings(self, audio: Tensor, frame_length_ms: float = 20, **kwargs: object) -> Tensor:
        """Embed the frames of a clip: (frames, D), for each the embedding of the time step that holds its centre."""
        steps, (samples, step) = self._embedding(audio).steps, (audio.shape[-1], self.model.step_samples)
        frame = frame_length_ms / 1000 * self.model.sample_rate
        centres = (torch.arange(int(samples / frame)) + 0.5) * frame
        return steps[(centres / step).long().clamp(max=len(steps) - 1)]

    def get_classification_embedding_size(self) -> int:
        """Return the width of the embedding of a clip."""
        return self.model.embed_dim

    def get_token_embedding_size(self) -> int:
        """Return the width of the embedding of a frame."""
        return self.model.embed_dim

    def get_sampling_rate(self) -> int:
        """Return the sample rate in Hz of the clips."""
        return self.model.sample_rate

    def _embedding(self, audio: Tensor) -> inference.Embedding:
        return next(self.model.embeddings([to_waveform(audio, "audio")]))
