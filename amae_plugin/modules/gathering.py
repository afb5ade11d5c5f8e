"""Tensors of all processes of a distributed training."""

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, distributed


def all_clips(values: Tensor) -> tuple[Tensor, int]:
    """Gather values (B, D) of the clips of all processes, whose numbers of clips may differ.

    Gradients flow back to every process. All processes must call this together.

    Returns:
        (N, D), process by process, and the place of this process's first clip; without distributed training the values
        themselves, and 0.
    """
    if not distributed.is_initialized():
        return values, 0
    own = torch.tensor([len(values)], device=values.device)
    found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    counts = torch.cat(found).tolist()
    padded = F.pad(values, (0, 0, 0, max(counts) - len(values)))
    parts = distributed.nn.functional.all_gather(padded)
    clips = torch.cat([part[:count] for part, count in zip(parts, counts)])
    return clips, sum(counts[: distributed.get_rank()])
