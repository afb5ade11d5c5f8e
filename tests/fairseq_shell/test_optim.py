from __future__ import annotations

import copy

import torch
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.fairseq_shell.optim import AmaeAdamW, set_overrides


def build(model: nn.Module) -> AmaeAdamW:
    cfg = OmegaConf.create({"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": [0.01]})
    return AmaeAdamW(cfg, list(model.parameters()))


def train(model: nn.Module, optimizer: AmaeAdamW, steps: int) -> None:
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    set_overrides(model)
    decay = {id(p): group["weight_decay"] for group in build(model).param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_equals_adamw_of_pytorch() -> None:
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    train(ours, build(ours), 5)
    torch.manual_seed(0)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        adamw.zero_grad()
        theirs(torch.randn(4, 3)).square().sum().backward()
        adamw.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_learning_rate_of_a_parameter_can_be_scaled() -> None:
    model = nn.Linear(3, 3)
    model.weight.optim_overrides = {"optimizer": {"lr_scale": 0.5}}
    optimizer = build(model)
    optimizer.set_lr(0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(model.weight): 0.1, id(model.bias): 0.2}
    assert optimizer.get_lr() == 0.2


def test_state_survives_a_checkpoint() -> None:
    model, resumed = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = build(model)
    train(model, optimizer, 3)
    resumed.load_state_dict(model.state_dict())
    other = build(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(resumed, other, 2)
    assert torch.equal(model.weight, resumed.weight)
