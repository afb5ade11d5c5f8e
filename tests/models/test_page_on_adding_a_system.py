"""The mask on the page on adding a system is one."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F

from amae_plugin.modules import masking

PAGE = Path(masking.__file__).parents[1] / "models" / "README.md"


def test_the_inverse_block_mask_shows_blocks_and_an_exact_number_of_tokens() -> None:
    code = re.search(r"```python\n(class InverseBlockMasking.*?)```", PAGE.read_text(), re.S)
    names = dict(vars(masking))
    exec(code[1], names)
    strategy, grid = names["InverseBlockMasking"](0.8), (64, 8)
    hidden = strategy(masking.ClipNoise(torch.arange(50)), grid)
    assert hidden.shape == (50, 512)
    assert ((~hidden).sum(1) == 102).all()
    # Visible tokens come in blocks: most have visible neighbours, of which at random one in five would be.
    visible = (~hidden).float().view(50, 1, *grid)
    neighbours = F.conv2d(visible, torch.tensor([[[[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]]]), padding=1)
    assert neighbours[visible.bool()].mean() > 2
