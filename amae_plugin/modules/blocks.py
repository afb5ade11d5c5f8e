"""Transformer blocks: ViT's pre-norm, the original post-norm, and the windowed one of Audio-MAE's local decoder.

Letters in shapes: B clips, L tokens, D width, H heads, C = D / H, W windows of one clip, S tokens in a window.
Parameter names are those of timm and of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amae_plugin.modules.dropout import Dropout, attention
from amae_plugin.modules.local_attention import WindowPlan


class Linear(nn.Linear):
    """PyTorch's linear layer with the bias as an addition of its own.

    On a CPU, the fused form first fills the whole output with the bias. Apart, a compiled block adds it in passing, in
    the loop that computes the activation, norm or sum that follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        product = F.linear(x, self.weight)
        return product + self.bias.to(product.dtype)


def xavier_linear(module: nn.Module) -> None:
    """Initialise all linear layers of a module: Xavier-uniform weights, biases 0 (MAE and its followers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def normal_linear(module: nn.Module) -> None:
    """Initialise all linear layers of a module: weights from N(0, 0.02), biases 0 (BERT and its followers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
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
    """Global multi-head self-attention; ``dropout`` of the attention weights acts in training."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        _check_heads(dim, num_heads)
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


class Block(nn.Module):
    """Pre-norm transformer block of ViT, the same function as timm's ``Block``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, padding_mask: Tensor | None = None, branch_scales: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D).

        Args:
            x: tokens.
            padding_mask: (B, L), True = not attended to.
            branch_scales: (B, 2) factors of the attention branch and of the MLP branch, of :func:`drop_path_scales`.
        """
        attended = self.attn(self.norm1(x), padding_mask)
        if branch_scales is None:
            x = x + attended
            return x + self.mlp(self.norm2(x))
        x = x + attended * branch_scales[:, :1, None]
        return x + self.mlp(self.norm2(x)) * branch_scales[:, 1:, None]


class PostNormBlock(nn.Module):
    """Post-norm transformer block with dropout: the original one (Vaswani et al. 2017), in wav2vec 2.0's form."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, attention_dropout: float = 0.0
    ):
        super().__init__()
        self.attn = Attention(dim, num_heads, attention_dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None, branch_scales: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); arguments as of :meth:`Block.forward`."""
        attended = self.dropout(self.attn(x, padding_mask))
        if branch_scales is None:
            x = self.norm1(x + attended)
            return self.norm2(x + self.dropout(self.mlp(x)))
        x = self.norm1(x + attended * branch_scales[:, :1, None])
        return self.norm2(x + self.dropout(self.mlp(x)) * branch_scales[:, 1:, None])


def drop_path_scales(uniform: Tensor, rate: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016): factors of the branches of all blocks.

    The rate rises linearly from 0 at the first block to *rate* at the last, as in timm and MAE's fine-tuning.

    Args:
        uniform: (B, depth, 2) numbers in [0, 1), of the attention and the MLP branch of every block.
        rate: in [0, 1).

    Returns:
        (B, depth, 2): 0 where a clip skips the branch, else 1 over the probability that it does not.

    Raises:
        ValueError: the rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a drop path rate is at least 0 and below 1, not {rate}")
    kept = 1 - torch.linspace(0, rate, uniform.shape[1], device=uniform.device)[:, None]
    return (uniform < kept) / kept


class WindowAttention(nn.Module):
    """Scaled cosine attention inside windows with log-spaced continuous relative positions (Swin V2, section 3).

    The form that Audio-MAE's code uses: scores are cosines divided by a learned temperature per head,
    ``max(tau, 0.01)``, plus a bias that a small MLP computes from sign(d) log(1 + |d|) of the token distance d in time
    and frequency.
    """

    def __init__(self, dim: int, num_heads: int, meta_hidden_dim: int = 384, meta_dropout: float = 0.1):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.tau = nn.Parameter(torch.ones(num_heads))
        self.meta_mlp = MetaMlp(num_heads, meta_hidden_dim, meta_dropout)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Tokens in window order (B, W * S, D) to the same shape."""
        batch, length, dim = x.shape
        bias = self.meta_mlp(plan.distances).T.reshape(-1, plan.window_length, plan.window_length)  # (H, S, S)
        qkv = self.qkv(x).view(-1, plan.window_length, 3, self.num_heads, dim // self.num_heads)
        x = cosine_attention(qkv, self.tau, bias, plan.separation)
        return self.proj(x.reshape(batch, length, dim))


class MetaMlp(nn.Module):
    """Relative position bias of every head from a log-spaced distance in time and frequency."""

    def __init__(self, num_heads: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_heads)
        self.dropout = dropout

    def forward(self, distances: Tensor) -> Tensor:
        """Distances (N, 2) to biases (N, H)."""
        hidden = F.dropout(F.relu(self.fc1(distances)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class WindowBlock(nn.Module):
    """Block of the local decoder: windowed attention, then an MLP, each with its norm *after* the branch (Swin V2)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.attn = WindowAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Tokens in window order (B, W * S, D) to the same shape."""
        x = x + self.norm1(self.attn(x, plan))
        return x + self.norm2(self.mlp(x))


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"a width of {dim} cannot be divided among {num_heads} heads")


def cosine_attention(qkv: Tensor, tau: Tensor, bias: Tensor, separation: Tensor | None) -> Tensor:
    """Attention inside windows; qkv (B * W, S, 3, H, C) to (B * W, S, H, C)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B * W, H, S, C) each
    norms = query.norm(dim=-1, keepdim=True) * key.norm(dim=-1).unsqueeze(-2)
    scores = query @ key.transpose(-2, -1) / norms.clamp(min=1e-6)
    scores = scores / tau.clamp(min=0.01)[:, None, None] + bias
    if separation is not None:
        by_clip = scores.unflatten(0, (-1, len(separation)))
        scores = (by_clip + separation[:, None]).flatten(0, 1)
    return (scores.softmax(-1) @ value).transpose(1, 2)
