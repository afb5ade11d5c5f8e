"""The interface of the HEAR benchmark: ``hear-validator amae_plugin.interop.hear -m checkpoint.pt``.

HEAR (Turian et al. 2022, neuralaudio.ai/hear) imports a module by name and calls the three functions below.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from amae_plugin.inference import model as inference
from amae_plugin.inference.clips import to_waveform


class HearModel(nn.Module):
    """A checkpoint's model with the attributes that HEAR reads.

    Attributes:
        model: model of the checkpoint.
        sample_rate: sample rate of the audio in Hz.
        scene_embedding_size: width of the embedding of a clip.
        timestamp_embedding_size: width of the embedding of a time step.
    """

    def __init__(self, path: str):
        super().__init__()
        self.model = inference.load_model(path, device="cpu")  # HEAR moves it
        self.sample_rate = self.model.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = self.model.embed_dim


def load_model(model_file_path: str) -> HearModel:
    """Load a checkpoint of this plugin, of a pretraining model or a classifier.

    Raises:
        UserError: the file is no checkpoint of this plugin.
    """
    return HearModel(model_file_path)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embed clips, see :meth:`~amae_plugin.inference.model.AudioModel.embed`.

    Args:
        audio: (clips, samples) at the model's rate, on any device; see :func:`to_waveform` for its scale.
        model: result of :func:`load_model`.

    Returns:
        (clips, scene_embedding_size) float32 on the device of the audio.
    """
    return torch.stack([embedding.clip for embedding in model.model.embeddings(_waveforms(audio))]).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embed the time steps of clips, see :meth:`~amae_plugin.inference.model.AudioModel.embed_timestamps`.

    Args:
        audio: see :func:`get_scene_embeddings`.
        model: result of :func:`load_model`.

    Returns:
        Embeddings (clips, steps, timestamp_embedding_size), and timestamps (clips, steps), the centres of the steps in
        milliseconds; both float32 on the device of the audio.
    """
    embeddings = list(model.model.embeddings(_waveforms(audio)))
    steps = torch.stack([embedding.steps for embedding in embeddings])
    timestamps = torch.stack([embedding.timestamps for embedding in embeddings]) * 1000
    return steps.to(audio.device), timestamps.to(audio.device, torch.float32)


def _waveforms(audio: Tensor) -> Iterator[Tensor]:
    return (to_waveform(clip, f"audio[{index}]") for index, clip in enumerate(audio))
