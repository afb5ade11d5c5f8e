"""The yardstick: a masked autoencoder of a recipe's sizes, built from PyTorch's own transformer layers.

A textbook would write it like this: no windows, no compilation, no mixed precision. A speed relative to this model's
step in the same run means the same on any machine. With the ViT-B recipe it has 12 layers of width 768 over 103 tokens,
then 16 layers of width 512 over all 512.

Letters in shapes: B clips, L patches, P values in a patch, K visible patches.
"""

import torch
from torch import Tensor, nn

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.modules.embedding import grid_size


class TextbookMAE(nn.Module):
    """Encoder over the visible patches, decoder with global attention over all of them.

    Args:
        config: sizes, of which only those of a plain masked autoencoder are used.
    """

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        rows, columns = grid_size(config.input_length, config.num_mel_bins, config.patch_size)
        self.num_patches = rows * columns
        self.patch_values = config.patch_size[0] * config.patch_size[1]
        self.num_visible = int(self.num_patches * (1 - config.mask_ratio))
        self.embed = nn.Linear(self.patch_values, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.encoder = _layers(config.embed_dim, config.depth, config.num_heads, config.mlp_ratio)
        self.decoder_embed = nn.Linear(config.embed_dim, config.decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_embed_dim))
        width = config.decoder_embed_dim
        self.decoder = _layers(width, config.decoder_depth, config.decoder_num_heads, config.mlp_ratio)
        self.pred = nn.Linear(width, self.patch_values)

    def forward(self, patches: Tensor) -> Tensor:
        """Mean squared error of the hidden ones of the patches (B, L, P), under a new random mask: a scalar."""
        batch, length, values = patches.shape
        shuffle = torch.rand(batch, length, device=patches.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        visible = patches.gather(1, shuffle[:, : self.num_visible, None].expand(-1, -1, values))
        latent = self.encoder(torch.cat([self.cls_token.expand(batch, -1, -1), self.embed(visible)], dim=1))
        tokens = self.decoder_embed(latent[:, 1:])
        tokens = torch.cat([tokens, self.mask_token.expand(batch, length - self.num_visible, -1)], dim=1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, tokens.shape[-1]))
        errors = (self.pred(self.decoder(tokens)) - patches).square().mean(dim=-1)
        hidden = restore >= self.num_visible
        return (errors * hidden).sum() / hidden.sum()


def _layers(dim: int, depth: int, num_heads: int, mlp_ratio: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        dim, num_heads, int(dim * mlp_ratio), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
