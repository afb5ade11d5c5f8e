"""Frequency-major weights of SSAST, turned to this package's time-major order.

Published SSAST and AST files, and image models, treat the spectrogram as an image whose rows are the mel bands: the
kernel is (bands, frames), tokens and position tables run band by band, and the heads predict the values of a patch band
by band. The position table's buffer ``grid_shape`` (bands, frames) marks such a state dict: some checkpoints of this
package hold it, and reading a published file adds it. The functions here turn a marked state dict in place.
"""

from collections.abc import MutableMapping

from torch import Tensor

from amae_plugin.models.state_dicts import turn_positions
from amae_plugin.modules.embedding import Size2d

State = MutableMapping[str, Tensor]
MARK = "positions.grid_shape"
"""Name of the grid (bands, frames) of a frequency-major table in an encoder's state dict."""


def turn_encoder(state: State, prefix: str, num_prefix_tokens: int) -> None:
    """Turn the encoder's part of a state dict if it is marked as frequency-major, and remove the mark.

    A table that does not fit the mark stays as it is, and loading refuses it.

    Args:
        state: state dict, changed in place.
        prefix: prefix of the names of the encoder's parameters.
        num_prefix_tokens: number of class tokens, whose positions come first in the table.
    """
    mark = state.pop(prefix + MARK, None)
    if mark is None:
        return
    table, kernel = f"{prefix}positions.pos_embed", f"{prefix}patch_embed.proj.weight"
    if table in state and state[table].shape[1] == num_prefix_tokens + mark.prod():
        state[table] = turn_positions(state[table], num_prefix_tokens, int(mark[0]))
        state[f"{prefix}positions.table_grid"] = mark.flip(0)
    if kernel in state:
        state[kernel] = state[kernel].transpose(2, 3).contiguous()


def turn_heads(state: State, prefix: str, patch_size: Size2d) -> None:
    """Turn the heads in a pretraining model's state dict if its encoder is marked as frequency-major.

    Args:
        state: state dict, changed in place.
        prefix: prefix of the names of the model's parameters.
        patch_size: frames and bands of a patch.
    """
    if f"{prefix}encoder.{MARK}" not in state:
        return
    for name in ("reconstruction_head.2", "classification_head.2"):
        for key in (f"{prefix}{name}.weight", f"{prefix}{name}.bias"):
            if key in state:
                state[key] = state[key].unflatten(0, patch_size[::-1]).transpose(0, 1).flatten(0, 1)
