from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.classification import AmaeClassifier
from amae_plugin.fairseq_plugin.optim import AmaeAdamW, AmaeSGD, set_overrides


def build(model: nn.Module, **settings: Any) -> AmaeAdamW:
    cfg = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": [0.01], **settings}
    return AmaeAdamW(OmegaConf.create(cfg), list(model.parameters()))


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


def layered(layer_decay: float = 0.5, **settings: Any) -> tuple[nn.Sequential, AmaeAdamW]:
    """Layers 0, 1 and 2, of which 2 is the topmost: two linear ones and a norm."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    set_overrides(model, lambda name: layer_decay ** (2 - int(name.split(".")[0])))
    return model, build(model, **settings)


def by_name(model: nn.Module, optimizer: AmaeAdamW, setting: str) -> dict[str, Any]:
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


LOADS = {
    "alone": lambda optimizer, state: optimizer.load_state_dict(state, {}),
    "common.amp": lambda optimizer, state: optimizer.optimizer.load_state_dict(state),  # as fairseq's wrapper does
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 0.75)])
def test_a_run_that_goes_on_has_its_own_settings_and_the_moments_of_the_checkpoint(
    before: float, after: float, load: Callable[[AmaeAdamW, dict[str, Any]], None]
) -> None:
    model, optimizer = layered(before)
    train(model, optimizer, 3)
    optimizer.set_lr(0.002)
    settings = {"weight_decay": 0.3, "betas": [0.8, 0.9], "eps": 1e-6, "lr": [0.5]}
    resumed, other = layered(after, **settings)
    load(other, copy.deepcopy(optimizer.state_dict()))
    assert other.get_lr() == 0.002  # until the schedule sets it
    fresh, wanted = layered(after, **settings)
    wanted.set_lr(0.002)
    for setting in ("lr", "lr_scale", "weight_decay", "betas", "eps"):
        assert by_name(resumed, other, setting) == by_name(fresh, wanted, setting)
    resumed_parameters = dict(resumed.named_parameters())
    for name, parameter in model.named_parameters():
        moments = optimizer.optimizer.state[parameter]
        assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in moments.items():
            assert torch.equal(other.optimizer.state[resumed_parameters[name]][key], value), (name, key)
    train(resumed, other, 1)


def test_overrides_of_a_loaded_state_come_last() -> None:
    (_, optimizer), (_, other) = layered(), layered(weight_decay=0.3)
    other.load_state_dict(optimizer.state_dict(), {"weight_decay": 0.7})
    assert {group["weight_decay"] for group in other.param_groups} == {0.7}


def test_sgd_goes_on_with_its_own_momentum() -> None:
    model = nn.Linear(3, 3)
    optimizers = [
        AmaeSGD(OmegaConf.create({"momentum": momentum, "weight_decay": 0.0, "lr": [0.01]}), list(model.parameters()))
        for momentum in (0.9, 0.5)
    ]
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert [group["momentum"] for group in optimizers[1].param_groups] == [0.5]


def without_places(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it was before it kept which parameters its groups have."""
    groups = [{key: value for key, value in group.items() if key != "places"} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def test_a_state_that_cannot_be_told_apart_by_parameter_names_settings_and_remedy() -> None:
    (model, optimizer), (resumed, other) = layered(0.5), layered(0.75)
    train(model, optimizer, 1)
    other.load_state_dict(without_places(optimizer.state_dict()))
    weights = [each[0].weight for each in (model, resumed)]
    assert torch.equal(other.optimizer.state[weights[1]]["exp_avg"], optimizer.optimizer.state[weights[0]]["exp_avg"])
    message = r"model\.frozen, model\.layer_decay and model\.head_lr, or set checkpoint\.reset_optimizer=true"
    with pytest.raises(UserError, match=message):
        layered(1.0)[1].load_state_dict(without_places(optimizer.state_dict()))
    with pytest.raises(UserError, match=message):
        build(model[2:]).load_state_dict(optimizer.state_dict())


def test_the_learning_rate_is_also_what_a_schedule_writes_into_the_groups() -> None:
    for scales in (1.0, 0.5):
        _, optimizer = layered(0.5)
        for group in optimizer.param_groups:
            group["lr_scale"] *= scales  # without a group of scale 1, too
            group["lr"] = 0.004 * group["lr_scale"]
        assert optimizer.get_lr() == 0.004
