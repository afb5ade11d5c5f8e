from __future__ import annotations

import torch
from torch import nn

from amae_plugin.modules.compute import NoDraws


def test_no_draws_leave_weights_within_the_bounds_of_every_draw() -> None:
    state = torch.get_rng_state()
    with NoDraws():
        layer = nn.Linear(3, 4)
        # What an earlier tensor may have left in the memory must not make PyTorch draw for ever.
        weight = nn.init.trunc_normal_(torch.full((5, 6), torch.nan), std=0.02)
        nn.init.normal_(layer.bias, std=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.cat([layer.weight.flatten(), layer.bias, weight.flatten()]).any()
    assert nn.Linear(3, 4).weight.any()
