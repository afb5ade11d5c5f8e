"""A model for the audio tasks of MTEB::

    import mteb
    from amae_plugin.interop.mteb import AmaeEncoder

    mteb.evaluate(AmaeEncoder("checkpoint.pt"), mteb.get_tasks(["BeijingOpera"]))

MTEB gives batches of clips of any length and rate, and compares what ``encode`` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from amae_plugin.errors import UserError
from amae_plugin.inference import model as inference
from amae_plugin.inference.clips import at_rate

if TYPE_CHECKING:
    from mteb.models import ModelMeta

_MEBIBYTE = 2**20


class AmaeEncoder:
    """A checkpoint's model with the functions that MTEB calls.

    Args:
        model_name: path of the checkpoint, or the name in MTEB's results.
        revision: version of the model, named in MTEB's results.
        device: see :func:`~amae_plugin.inference.model.load_model`.
        path: path of the checkpoint; *model_name* if None.
        kwargs: further arguments that MTEB passes to every model, unused.

    Attributes:
        model: model of the checkpoint.

    Raises:
        UserError: the file is no checkpoint of this plugin.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        path: str | None = None,
        **kwargs: object,
    ):
        self.model = inference.load_model(path or model_name, device or "auto")
        self.revision = revision

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        **kwargs: object,
    ) -> np.ndarray:
        """Embed clips, see :meth:`~amae_plugin.inference.model.AudioModel.embed`.

        Args:
            inputs: batches; their entry ``audio`` is a list of clips, each with ``array``, samples (samples,) or
                (channels, samples), and ``sampling_rate`` in Hz.
            task_metadata: unused, as all arguments that follow.
            hf_split: name of the split.
            hf_subset: name of the subset.
            prompt_type: kind of the clips, queries or documents.
            kwargs: options of other models.

        Returns:
            (clips, D) float32.

        Raises:
            UserError: a batch has no audio, or a clip is empty, not finite, or of another full scale.
        """
        clips = [embedding.clip for embedding in self.model.embeddings(self._waveforms(inputs), timestamps=False)]
        return torch.stack(clips).numpy() if clips else np.zeros((0, self.model.embed_dim), np.float32)

    def similarity(self, embeddings1: np.ndarray | Tensor, embeddings2: np.ndarray | Tensor) -> Tensor:
        """Return the cosines of the angles of all pairs of embeddings, (N, D) and (M, D): (N, M)."""
        return _directions(embeddings1) @ _directions(embeddings2).T

    def similarity_pairwise(self, embeddings1: np.ndarray | Tensor, embeddings2: np.ndarray | Tensor) -> Tensor:
        """Return the cosines of the angles between embeddings (N, D) and others (N, D), one by one: (N,)."""
        return (_directions(embeddings1) * _directions(embeddings2)).sum(dim=1)

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:
        """Description of the model in MTEB's form, under which it files the results."""
        from mteb.models import ModelMeta  # which is there when it asks

        weights = list(self.model.parameters())
        path = self.model.checkpoint.path
        return ModelMeta(
            loader=type(self),
            loader_kwargs={"path": str(path)},
            name=f"amae_plugin/{path.stem}",
            revision=self.revision,
            release_date=None,
            languages=None,
            n_parameters=sum(weight.numel() for weight in weights),
            n_embedding_parameters=0,
            memory_usage_mb=sum(weight.numel() * weight.element_size() for weight in weights) / _MEBIBYTE,
            max_tokens=None,
            embed_dim=self.model.embed_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio"],
        )

    def _waveforms(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
        for number, batch in enumerate(inputs):
            if "audio" not in batch:
                raise UserError(f"this model embeds audio alone, and batch {number} has {', '.join(batch)}")
            for index, clip in enumerate(batch["audio"]):
                name = f"clip {index} of batch {number}"
                yield at_rate(np.asarray(clip["array"]), clip["sampling_rate"], self.model.sample_rate, name)


def _directions(embeddings: np.ndarray | Tensor) -> Tensor:
    return normalize(torch.as_tensor(embeddings).float().reshape(-1, embeddings.shape[-1]))
