"""Learning rates that end with a run, follow the clock, or follow the losses of a run that goes on."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from fairseq.optim.lr_scheduler.cosine_lr_scheduler import CosineLRSchedule, CosineLRScheduleConfig
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.optim import AmaeAdamW
from amae_plugin.fairseq_plugin.schedules import Cosine, CosineByTime, CosineByTimeConfig, Plateau

HOUR = 3600.0
OPTIMIZER = OmegaConf.create({"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": [0.01]})


def schedule(**settings: Any) -> CosineByTime:
    chosen = {"lr": [0.01], "stop_time_hours": 1.0, "max_update": 1000, "warmup_updates": 100, "warmup_init_lr": 0.0}
    cfg = OmegaConf.create({**OmegaConf.to_container(OmegaConf.structured(CosineByTimeConfig)), **chosen, **settings})
    return CosineByTime(cfg, AmaeAdamW(OPTIMIZER, [nn.Parameter(torch.zeros(1))]))


@pytest.fixture(autouse=True)
def no_trainer() -> None:
    metrics.reset()


def cosine(kind: type[CosineLRSchedule], **settings: Any) -> CosineLRSchedule:
    cfg = OmegaConf.merge(OmegaConf.structured(CosineLRScheduleConfig), {"lr": [0.01], "min_lr": 1e-6, **settings})
    return kind(cfg, AmaeAdamW(OPTIMIZER, [nn.Parameter(torch.zeros(1))]))


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"max_update": 1000, "warmup_updates": 100}, 1e-6),
        ({"max_update": 1000}, 1e-6),
        ({"max_update": 1000, "lr_period_updates": 250}, 1e-6 * 0.1**3),
        ({"max_update": 1000, "lr_period_updates": 200, "t_mult": 2.0}, None),
        ({"max_update": 1000, "warmup_updates": 1000, "warmup_init_lr": 0.0}, 0.00999),  # warm-up alone
        ({"max_update": 1, "warmup_updates": 0}, 0.01),
    ],
)
def test_the_last_learning_rate_stays(settings: dict[str, Any], last: float | None) -> None:
    made, theirs = cosine(Cosine, **settings), cosine(CosineLRSchedule, **settings)
    updates = range(settings["max_update"])
    rates = [made.step_update(update) for update in updates]
    assert rates == [theirs.step_update(update) for update in updates]
    # Also of a run that is resumed when it is done, by a schedule that was just built.
    again = cosine(Cosine, **settings)
    again.load_state_dict(made.state_dict())
    for schedule in (made, again):
        assert schedule.step_update(settings["max_update"]) == schedule.optimizer.get_lr() == rates[-1]
    assert last is None or rates[-1] == pytest.approx(last, abs=2e-7)


def test_periods_without_an_end_are_those_of_fairseq() -> None:
    settings = {"max_update": 0, "lr_period_updates": 100, "warmup_updates": 10, "warmup_init_lr": 0.0}
    made, theirs = cosine(Cosine, **settings), cosine(CosineLRSchedule, **settings)
    rates = [made.step_update(update) for update in range(300)]
    assert rates == [theirs.step_update(update) for update in range(300)]
    assert rates[110] == pytest.approx(0.001)  # of the second period, a tenth


def learning_rate(after: float, **settings: Any) -> float:
    """After so many seconds."""
    made = schedule(**settings)
    made.load_state_dict({"best": None, "seconds": after})
    lr = made.step_update(7)
    assert made.optimizer.get_lr() == lr
    return lr


@pytest.mark.parametrize(
    ("after", "lr"),
    [
        (0.0, 0.0),
        (0.05 * HOUR, 0.005),
        (0.1 * HOUR, 0.01),
        (0.325 * HOUR, 0.005 * (1 + math.cos(math.pi / 4))),
        (0.55 * HOUR, 0.005),
        (HOUR, 0.0),
        (2 * HOUR, 0.0),
    ],
)
def test_the_learning_rate_is_that_of_the_time(after: float, lr: float) -> None:
    assert learning_rate(after) == pytest.approx(lr, abs=1e-6)


def test_time_passes() -> None:
    # One second in all, half of it warm-up.
    made = schedule(stop_time_hours=1 / HOUR, warmup_updates=500)
    first = made.step_update(0)
    while made.step_update(0) == first:
        pass
    assert first < made.step_update(0) < 0.01


def test_the_time_begins_with_the_trainer() -> None:
    metrics.log_start_time("wall")
    time.sleep(0.3)
    assert schedule(stop_time_hours=0.5 / HOUR, warmup_updates=999).step_update(0) > 0.005


def test_a_run_that_goes_on_counts_the_time_before() -> None:
    before = schedule()
    before.load_state_dict({"best": None, "seconds": 0.55 * HOUR})
    after = schedule()
    after.load_state_dict(before.state_dict())
    assert after.step_update(0) == pytest.approx(0.005, abs=1e-6)


def test_a_checkpoint_of_another_schedule_begins_the_time() -> None:
    made = schedule()
    made.load_state_dict({"best": 0.3})
    assert made.step_update(1000) < 1e-4
    assert made.best == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_time_hours": 0.0}, "stop_time_hours must be above 0"),
        ({"max_update": 100}, "max_update, 100, must be above lr_scheduler.warmup_updates, 100"),
    ],
)
def test_settings_that_make_no_schedule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(**settings)


UPDATES = 3  # of an epoch


def plateau(kind: type[ReduceLROnPlateauLRSchedule] = Plateau, **settings: Any) -> ReduceLROnPlateauLRSchedule:
    chosen = {"lr": [0.01], "lr_shrink": 0.5, "maximize_best_checkpoint_metric": False, **settings}
    cfg = OmegaConf.merge(OmegaConf.structured(ReduceLROnPlateauLRScheduleConfig), chosen)
    made = kind(cfg, AmaeAdamW(OPTIMIZER, [nn.Parameter(torch.zeros(1))]))
    made.step_update(0)
    return made


def epoch(schedule: ReduceLROnPlateauLRSchedule, number: int) -> list[float]:
    """The learning rates of an epoch's updates."""
    rates = []
    for update in range(number * UPDATES, (number + 1) * UPDATES):
        rates.append(schedule.optimizer.get_lr())
        assert schedule.step_update(update + 1) == schedule.optimizer.get_lr()
    return rates


def continued(schedule: ReduceLROnPlateauLRSchedule, updates: int, **settings: Any) -> ReduceLROnPlateauLRSchedule:
    """Load a checkpoint as fairseq's trainer does."""
    states = copy.deepcopy((schedule.state_dict(), schedule.optimizer.state_dict()))
    made = plateau(**settings)
    made.load_state_dict(states[0])
    made.optimizer.load_state_dict(states[1])
    made.step_update(updates)
    return made


SETTINGS = st.fixed_dictionaries(
    {
        "lr_patience": st.integers(0, 2),
        "lr_shrink": st.sampled_from([0.1, 0.5]),
        "warmup_updates": st.sampled_from([0, 2, 3, 4]),
        "maximize_best_checkpoint_metric": st.booleans(),
    }
)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, None]), min_size=1, max_size=9), SETTINGS, st.integers(0, 9))
def test_a_plateau_is_that_of_fairseq_wherever_the_run_stops_and_goes_on(
    losses: list[float | None], settings: dict[str, Any], stop: int
) -> None:
    theirs, made = plateau(ReduceLROnPlateauLRSchedule, **settings), plateau(**settings)
    for number, loss in enumerate(losses):
        assert epoch(made, number) == epoch(theirs, number)
        if number >= stop:  # the checkpoint is written before the schedule has the loss
            made = continued(made, (number + 1) * UPDATES, **settings)
        for schedule in (theirs, made):
            schedule.step(number + 1, loss)


def test_a_plateau_goes_on_from_another_learning_rate_of_the_settings() -> None:
    made = plateau()
    for number, loss in enumerate((1.0, 2.0, 2.0)):
        epoch(made, number)
        made.step(number + 1, loss)
    assert made.optimizer.get_lr() == 0.0025
    assert continued(made, 9, lr=[0.04]).optimizer.get_lr() == 0.01
    warming = plateau(warmup_updates=100)
    warming.step_update(50)
    assert continued(warming, 50, warmup_updates=10).optimizer.get_lr() == 0.01


def test_a_plateau_takes_over_the_learning_rate_of_fairseqs_and_begins_after_another_schedule() -> None:
    theirs = plateau(ReduceLROnPlateauLRSchedule)
    for loss in (1.0, 2.0):
        theirs.step(1, loss)
    made = continued(theirs, 9)
    assert made.optimizer.get_lr() == 0.005
    rates = [made.step(2, loss) for loss in (1.0, 0.5, 0.6)]
    assert rates == [0.0025, 0.0025, 0.00125]
    begun = continued(cosine(Cosine, max_update=100), 9)
    assert [begun.step(2, loss) for loss in (3.0, 4.0)] == [0.01, 0.005]
