"""AdamW and SGD with a learning rate and a weight decay by parameter."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Dict, List, Tuple

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.models.settings import setting


class _GroupedOptimizer(FairseqOptimizer):
    """Base of PyTorch's optimizers with fairseq's overrides for single parameters.

    A parameter's ``optim_overrides`` (fairseq's name for it) may hold ``{"optimizer": {"lr_scale": ...,
    "weight_decay_scale": ...}}``, both 1 otherwise. fairseq's composite optimizer would need an optimizer and a
    schedule for each kind of parameter.
    """

    def start(
        self, optimizer: Callable[..., torch.optim.Optimizer], params: Iterable[nn.Parameter], **settings: Any
    ) -> None:
        """Make the optimizer of these parameters.

        Args:
            optimizer: class of the optimizer.
            params: parameters.
            settings: arguments of the optimizer but its learning rate and weight decay.

        Raises:
            UserError: PyTorch refuses a setting.
        """
        groups: Dict[Tuple[float, float], Dict[int, nn.Parameter]] = defaultdict(dict)
        for place, parameter in enumerate(params):
            overrides = getattr(parameter, "optim_overrides", {}).get("optimizer", {})
            groups[overrides.get("lr_scale", 1.0), overrides.get("weight_decay_scale", 1.0)][place] = parameter
        scaled = [
            {
                "params": list(group.values()),
                "places": list(group),
                "lr_scale": lr_scale,
                "weight_decay": self.cfg.weight_decay * weight_decay_scale,
            }
            for (lr_scale, weight_decay_scale), group in groups.items()
        ]
        try:
            self._optimizer = optimizer(scaled, lr=self.cfg.lr[0], fused=True, **settings)
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from None
        # fairseq's wrapper for common.amp loads into PyTorch's optimizer, past this class.
        self._optimizer.register_load_state_dict_pre_hook(_with_own_settings)
        self.set_lr(self.cfg.lr[0])

    def get_lr(self) -> float:
        """The learning rate of parameters without an override; some schedules write it into the groups themselves."""
        return _unscaled_lr(self.param_groups)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate that the overrides scale."""
        for group in self.param_groups:
            group["lr"] = float(lr) * group["lr_scale"]


def _unscaled_lr(groups: Sequence[Mapping[str, Any]]) -> float:
    group = next((group for group in groups if group["lr_scale"] == 1), groups[0])  # exact, if there is one
    return float(group["lr"] / group["lr_scale"])


def _with_own_settings(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> Dict[str, Any]:
    """Give a checkpoint's state this run's settings and groups, where PyTorch would take the checkpoint's.

    Only the learning rate stays the checkpoint's, until the schedule sets it.

    Args:
        optimizer: optimizer that loads the state.
        stored: state of the optimizer in the checkpoint.

    Raises:
        UserError: the state cannot be told apart by parameter.
    """
    groups, before = optimizer.state_dict()["param_groups"], stored["param_groups"]
    sizes, others = ([len(group["params"]) for group in each] for each in (groups, before))
    known = all("places" in group for group in before)  # not in checkpoints from before they were kept
    if sum(sizes) != sum(others) or not (known or sizes == others):
        problem = "this run trains other parameters than the checkpoint's, or groups them otherwise"
        remedy = "restore model.frozen, model.layer_decay and model.head_lr, or set checkpoint.reset_optimizer=true"
        raise UserError(f"optimizer: {problem}; {remedy}")
    places = chain.from_iterable(group["places"] for group in (before if known else groups))
    place_of = dict(zip(chain.from_iterable(group["params"] for group in before), places))
    number_at = {place: number for group in groups for place, number in zip(group["places"], group["params"])}
    state = {number_at[place_of[number]]: values for number, values in stored["state"].items()}
    lr = _unscaled_lr(before)
    return {**stored, "state": state, "param_groups": [{**group, "lr": lr * group["lr_scale"]} for group in groups]}


@dataclass
class AmaeAdamWConfig(FairseqDataclass):
    """Hyperparameters of :class:`AmaeAdamW`."""

    betas: Tuple[float, float] = setting((0.9, 0.95), "decay of the two moments")
    eps: float = setting(1e-8, "added to the denominator")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    lr: List[float] = II("optimization.lr")


@register_optimizer("amae_adamw", dataclass=AmaeAdamWConfig)
class AmaeAdamW(_GroupedOptimizer):
    """PyTorch's AdamW in its fused form, on CPU and GPU; fairseq's own ``adam`` is fused on a GPU only, with Apex."""

    def __init__(self, cfg: AmaeAdamWConfig, params: Iterable[nn.Parameter]):
        super().__init__(cfg)
        self.start(torch.optim.AdamW, params, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps)


@dataclass
class AmaeSGDConfig(FairseqDataclass):
    """Hyperparameters of :class:`AmaeSGD`."""

    momentum: float = setting(0.9, "momentum")
    weight_decay: float = setting(0.0, "weight decay")
    lr: List[float] = II("optimization.lr")


@register_optimizer("amae_sgd", dataclass=AmaeSGDConfig)
class AmaeSGD(_GroupedOptimizer):
    """PyTorch's SGD with momentum; fairseq's own ``sgd`` knows no overrides."""

    def __init__(self, cfg: AmaeSGDConfig, params: Iterable[nn.Parameter]):
        super().__init__(cfg)
        self.start(torch.optim.SGD, params, momentum=cfg.momentum)


def set_overrides(model: nn.Module, lr_scale: Callable[[str], float] = lambda name: 1.0) -> None:
    """Give every parameter its ``optim_overrides``.

    Biases, norms and other vectors get no weight decay, as in all recipes of this package.

    Args:
        model: module that has the parameters.
        lr_scale: factor of a parameter's learning rate, by its name.
    """
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        overrides = {"lr_scale": lr_scale(name), "weight_decay_scale": float(decays)}
        parameter.optim_overrides = {"optimizer": overrides}  # type: ignore[attr-defined]
