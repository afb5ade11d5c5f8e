"""Transformer blocks: ViT's pre-norm block and the original post-norm block.

Letters in shapes: B clips, L tokens, D width.
Parameter names are those of timm and of the published checkpoints.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amae_plugin.modules.dropout import Dropout, attention


class Linear(nn.Linear):
    """PyTorch's linear layer with the bias as a separate addition.

    On a CPU, PyTorch's fused form first fills the whole output with the bias. A separate addition is fused by the
    compiler into the activation, norm or sum that follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        product = F.linear(x, self.weight)
        return product + self.bias.to(product.dtype)


def init_linear(module: nn.Module, init_weight: Callable[[Tensor], object]) -> None:
    """Initialise the weights of all linear layers of a module with a function, and their biases with 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init_weight(layer.weight)
            nn.init.zeros_(layer.bias)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on (..., D)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Global multi-head self-attention, in training with ``dropout`` of the attention weights."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        x = attention(query, key, value, padding_mask, self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class DropPath(nn.Module):
    """Stochastic depth of a residual branch (Huang et al. 2016), placed in the blocks as in timm.

    The branch passes unchanged unless :func:`drop_paths` has drawn, for each clip, whether it skips the branch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor | None = None  # (B, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return x if self.scale is None else x * self.scale


class Block(nn.Module):
    """ViT's pre-norm transformer block, the same function as timm's ``Block``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.drop_path1 = DropPath()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath()

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        x = x + self.drop_path1(self.attn(self.norm1(x), padding_mask))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PostNormBlock(nn.Module):
    """Original post-norm transformer block (Vaswani et al. 2017) with dropout, in wav2vec 2.0's form."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, attention_dropout: float = 0.0
    ):
        super().__init__()
        self.attn = Attention(dim, num_heads, attention_dropout)
        self.drop_path1 = DropPath()
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath()
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        x = self.norm1(x + self.drop_path1(self.dropout(self.attn(x, padding_mask))))
        return self.norm2(x + self.drop_path2(self.dropout(self.mlp(x))))


@contextmanager
def drop_paths(blocks: Iterable[nn.Module], uniform: Tensor, rate: float) -> Iterator[None]:
    """Let clips skip branches of the blocks while the context is open.

    The rate rises linearly from 0 at the first block to *rate* at the last, as in timm and MAE's fine-tuning. A clip
    that does not skip a branch gets it divided by the probability that it is kept.

    Args:
        blocks: blocks with a :class:`DropPath` for the attention and one for the MLP, in this order.
        uniform: (B, depth, 2) random numbers in [0, 1), which decide for both branches of every block.
        rate: probability in [0, 1) that a clip skips a branch of the last block.
    """
    scales = drop_path_scales(uniform, rate)
    paths = [path for block in blocks for path in block.modules() if isinstance(path, DropPath)]
    for path, scale in zip(paths, scales.flatten(1).unbind(dim=1), strict=True):
        path.scale = scale[:, None, None]
    try:
        yield
    finally:
        for path in paths:
            path.scale = None


def drop_path_scales(uniform: Tensor, rate: float) -> Tensor:
    """Return the factors (B, depth, 2) of the branches, 0 for a skipped one; see :func:`drop_paths`."""
    kept = 1 - torch.linspace(0, rate, uniform.shape[1], device=uniform.device)[:, None]
    return (uniform < kept) / kept


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"a width of {dim} cannot be divided among {num_heads} heads")
