from __future__ import annotations

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.classification import AmaeClassifier
from amae_plugin.fairseq_plugin.optim import AmaeAdamW, AmaeSGD, set_overrides


def build(model: nn.Module) -> AmaeAdamW:
    cfg = OmegaConf.create({"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": [0.01]})
    return AmaeAdamW(cfg, list(model.parameters()))


def train(model: nn.Module, optimizer: AmaeAdamW | AmaeSGD | torch.optim.Optimizer, steps: int) -> None:
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


def test_equals_sgd_of_pytorch() -> None:
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    set_overrides(ours)
    cfg = OmegaConf.create({"momentum": 0.9, "weight_decay": 0.1, "lr": [0.01]})
    train(ours, AmaeSGD(cfg, list(ours.parameters())), 5)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias]}]
    train(theirs, torch.optim.SGD(groups, lr=0.01, momentum=0.9), 5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


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


def layered(layer_decay: float = 0.5) -> tuple[nn.Sequential, AmaeAdamW]:
    """Layers 0, 1 and 2, of which 2 is the topmost: two linear ones and a norm."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    set_overrides(model, lambda name: layer_decay ** (2 - int(name.split(".")[0])))
    return model, build(model)


def by_name(model: nn.Module, optimizer: AmaeAdamW, setting: str) -> dict[str, float]:
    values = {id(p): group[setting] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in model.named_parameters()}


def test_learning_rates_of_a_classifier_decay_from_the_head_down() -> None:
    encoder = {"_name": "amae_audio_mae", "embed_dim": 8, "depth": 2, "num_heads": 2}
    settings = {"encoder": encoder, "num_classes": 3, "layer_decay": 0.5, "head_lr": 1.0, "compile": False}
    model = AmaeClassifier.build_model(OmegaConf.create(settings), None)
    rates = by_name(model, build(model), "lr")
    expected = {"encoder.patch_embed.": 3, "encoder.cls_token": 3, "encoder.blocks.0.": 2, "encoder.blocks.1.": 1}
    for name, rate in rates.items():
        (below,) = [layers for prefix, layers in expected.items() if name.startswith(prefix)] or [0]
        assert rate == 0.01 * 0.5**below, name
    assert {rates[f"{name}.weight"] for name in ("fc_norm", "head")} == {0.01}
    with pytest.raises(UserError, match=r"model\.layer_decay=0"):
        AmaeClassifier.build_model(OmegaConf.create({**settings, "layer_decay": 0}), None)
    with pytest.raises(UserError, match=r"model\.head_lr=0"):
        AmaeClassifier.build_model(OmegaConf.create({**settings, "head_lr": 0}), None)
    model = AmaeClassifier.build_model(OmegaConf.create({**settings, "head_lr": 100.0}), None)
    for name, rate in by_name(model, build(model), "lr").items():
        assert rate == pytest.approx(rates[name] * (1 if name.startswith("encoder.") else 100)), name


def test_a_schedule_keeps_the_ratios_of_the_layers() -> None:
    model, optimizer = layered(0.75)
    for rate in (0.0, 0.3, 0.002):
        optimizer.set_lr(rate)
        assert optimizer.get_lr() == rate
        rates = by_name(model, optimizer, "lr")
        assert [rates[f"{layer}.weight"] for layer in range(3)] == [rate * 0.75**2, rate * 0.75, rate]


def test_biases_and_norms_of_every_layer_do_not_decay() -> None:
    model, optimizer = layered()
    assert by_name(model, optimizer, "weight_decay") == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.1,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "2.bias": 0.0,
    }
    assert len(optimizer.param_groups) == 5  # (layer, decays or not), the norm's two in one


def test_layers_without_decay_learn_alike() -> None:
    model, optimizer = layered(1.0)
    assert set(by_name(model, optimizer, "lr").values()) == {0.01}
    assert len(optimizer.param_groups) == 2


def test_every_parameter_moves_at_its_own_rate() -> None:
    model, optimizer = layered(0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # Adam's first step is the learning rate, whatever the gradient; weights shrink by rate times weight decay as well.
    for name, parameter in model.named_parameters():
        rate = by_name(model, optimizer, "lr")[name]
        decay = by_name(model, optimizer, "weight_decay")[name]
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - rate * decay) - rate)
