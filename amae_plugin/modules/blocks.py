"""Transformer blocks: ViT's pre-norm block and the original post-norm block, with dropout and stochastic depth.

Dropout has a form that is fast on a CPU, where PyTorch's draws the random numbers of the elements one after the other
in compiled code. This takes a quarter of a training step of MAE-AST. On other devices it is PyTorch's.

Letters in shapes: B clips, L tokens, D width, H heads, C width of a head.
Parameter names are those of timm and of the published checkpoints.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 16
_CHUNK = 2**18  # elements whose random numbers stay in the cache until they are compared


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
    """Two linear layers with a GELU between them, on (..., D).

    Attributes:
        dropout: dropout after the GELU, without effect unless its probability is changed.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.dropout = Dropout(0.0)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))


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
        query, key, value = split_heads(self.qkv(x), self.num_heads)
        x = attention(query, key, value, padding_mask, self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class Dropout(nn.Module):
    """PyTorch's dropout; on a CPU, its probability is rounded to a multiple of 2^-16."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        if not self.training or not self.p or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        return x * random_kept(x.shape, self.p) * _scale(self.p)


def split_heads(qkv: Tensor, num_heads: int) -> list[Tensor]:
    """Split (B, L, 3 D) into query, key and value (B, H, L, C)."""
    # The gradients of chunks are joined. Those of places along a dimension are padded with zeros and added up.
    return [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def attention(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention with dropout of the attention weights.

    Args:
        query: (B, H, L, C).
        key: (B, H, L, C).
        value: (B, H, L, C).
        padding_mask: (B, L), True = not attended to.
        dropout: probability in [0, 1); on a CPU it is rounded to a multiple of 2^-16.

    Returns:
        (B, H, L, C).
    """
    if not dropout or query.device.type != "cpu":
        allowed = None if padding_mask is None else ~padding_mask[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32) * random_kept(scores.shape, dropout) * _scale(dropout)
    return weights.to(value.dtype) @ value


# Opaque to the compiler, whose code would draw the numbers one by one.
@torch.library.custom_op("amae::random_kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_kept(shape: Sequence[int], p: float) -> Tensor:
    """Draw the elements that dropout keeps, each with probability 1 - p: bool of that shape, on the CPU.

    PyTorch's generator seeds a faster one. Each of its 64-bit numbers serves four elements.
    """
    kept = np.empty(math.prod(shape), dtype=bool)
    generator = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
    for start in range(0, len(kept), _CHUNK):
        part = kept[start : start + _CHUNK]
        numbers = generator.random_raw(-(-len(part) * _BITS // 64)).view(np.int16)
        np.greater_equal(numbers[: len(part)], np.int16(_dropped(p) - 2 ** (_BITS - 1)), out=part)
    return torch.from_numpy(kept).view(shape)


@random_kept.register_fake
def _(shape: Sequence[int], p: float) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)


def _dropped(p: float) -> int:
    return min(round(p * 2**_BITS), 2**_BITS - 1)


def _scale(p: float) -> float:
    return 2**_BITS / (2**_BITS - _dropped(p))


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
    """ViT's pre-norm transformer block, the same function as timm's ``Block``.

    Attributes:
        dropout: dropout of both branches, without effect unless its probability is changed.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.drop_path1 = DropPath()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath()
        self.dropout = Dropout(0.0)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        return self.with_norms(x, self.norm1, self.norm2, padding_mask)

    def with_norms(self, x: Tensor, norm1: nn.Module, norm2: nn.Module, padding_mask: Tensor | None = None) -> Tensor:
        """Do what :meth:`forward` does, with other norms before the attention and the MLP."""
        x = x + self.drop_path1(self.dropout(self.attn(norm1(x), padding_mask)))
        return x + self.drop_path2(self.dropout(self.mlp(norm2(x))))


class RenormedBlock(nn.Module):
    """Attention and MLP of a pre-norm block behind norms of its own.

    Its only parameters are the norms; the rest stays the block's.
    """

    def __init__(self, block: Block):
        super().__init__()
        dim, eps = block.norm1.normalized_shape, block.norm1.eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self._block = (block,)  # in a tuple, so that PyTorch does not count its parameters here too

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        return self._block[0].with_norms(x, self.norm1, self.norm2, padding_mask)


class PostNormBlock(nn.Module):
    """Original post-norm transformer block (Vaswani et al. 2017) with dropout, in wav2vec 2.0's form."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.attn = Attention(dim, num_heads, attention_dropout)
        self.drop_path1 = DropPath()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); tokens where ``padding_mask`` (B, L) is True are not attended to."""
        return self.with_mlp(x, padding_mask)[0]

    def with_mlp(self, x: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`forward` and the MLP's output (B, L, D), before the sum and the second norm."""
        x = self.norm1(x + self.drop_path1(self.dropout(self.attn(x, padding_mask))))
        branch = self.mlp(x)
        return self.norm2(x + self.drop_path2(self.dropout(branch))), branch


@contextmanager
def drop_paths(blocks: Iterable[nn.Module], uniform: Tensor, rate: float) -> Iterator[None]:
    """Let clips skip branches of the blocks while the context is open.

    The rate rises linearly from 0 at the first block to *rate* at the last, as in timm and MAE's fine-tuning. A clip
    that does not skip a branch gets it divided by the probability that it is kept.

    Args:
        blocks: blocks with a :class:`DropPath` for the attention and one for the MLP, in this order; or lists of such
            blocks, which a clip skips together.
        uniform: (B, depth, 2) random numbers in [0, 1), which decide for both branches of every block.
        rate: probability in [0, 1) that a clip skips a branch of the last block.
    """
    scales = drop_path_scales(uniform, rate)
    paths = [[path for path in block.modules() if isinstance(path, DropPath)] for block in blocks]
    for pairs, scale in zip(paths, scales.unbind(dim=1), strict=True):
        for path, factor in zip(pairs, itertools.cycle(scale.unbind(dim=1))):
            path.scale = factor[:, None, None]
    try:
        yield
    finally:
        for path in itertools.chain.from_iterable(paths):
            path.scale = None


def drop_path_scales(uniform: Tensor, rate: float) -> Tensor:
    """Return the factors (B, depth, 2) of the branches, 0 for a skipped one; see :func:`drop_paths`."""
    kept = 1 - torch.linspace(0, rate, uniform.shape[1], device=uniform.device)[:, None]
    return (uniform < kept) / kept


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"a width of {dim} cannot be divided among {num_heads} heads")
