"""Measures of a validation split, logged step by step as fairseq's trainer does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict

from amae_plugin.fairseq_plugin.meters import Measures, ScoresMeter, log_split
from amae_plugin.metrics.classification import multi_label, single_label

Log = Mapping[str, Any]


@pytest.fixture(autouse=True)
def no_meters() -> Iterator[None]:
    """fairseq's meters are global."""
    metrics.reset()
    yield
    metrics.reset()


def accuracy(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    one = single_label(scores, targets.argmax(axis=1))
    return {"accuracy": one.accuracy, "macro_f1": one.macro_f1}


def precision(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    return {"mAP": multi_label(scores, targets).mean_average_precision}


def split(clips: int, classes: int = 4, seed: int = 0) -> Log:
    """Scores of clips of one class each that are better than chance, and what a criterion logs beside them."""
    rng = np.random.default_rng(seed)
    target = np.eye(classes, dtype=np.uint8)[rng.integers(classes, size=clips)]
    scores = (rng.normal(size=(clips, classes)) + target).astype(np.float32)
    return {"id": np.arange(clips), "scores": scores, "target": target}


def part(log: Log, clips: Any) -> Log:
    return {key: value[clips] for key, value in log.items()}


def valid_step(logs: Sequence[Log], names: Sequence[str], measures: Measures) -> dict[str, float]:
    """As ``Trainer.valid_step`` and ``_reduce_and_log_stats``: the step's own smoothed values."""
    with metrics.aggregate("valid"), metrics.aggregate() as step:
        for log in logs:
            metrics.log_scalar("loss", float(log["scores"].mean()), len(log["id"]))
        for log in logs or [None]:
            log_split(log, names, measures)
        return step.get_smoothed_values()


@contextmanager
def validation() -> Iterator[MetersDict]:
    """As ``fairseq_cli.train.validate``, in the middle of an epoch of training."""
    with (
        metrics.aggregate("train"),
        metrics.aggregate("train_inner"),
        metrics.aggregate(new_root=True) as whole,
    ):
        yield whole


def validate(steps: Sequence[Sequence[Log]], measures: Measures, *names: str) -> dict[str, float]:
    with validation() as whole:
        for logs in steps:
            valid_step(logs, names, measures)
    return whole.get_smoothed_values()


def test_measures_are_those_of_the_whole_split_and_not_a_mean_over_batches() -> None:
    log = split(50)
    steps = [[part(log, slice(start, start + 8))] for start in range(0, 50, 8)]
    values = validate(steps, accuracy, "accuracy", "macro_f1")
    expected = accuracy(log["scores"], log["target"])
    assert {name: values[name] for name in expected} == expected
    means = {name: np.mean([accuracy(b["scores"], b["target"])[name] for [b] in steps]) for name in expected}
    assert all(abs(means[name] - expected[name]) > 1e-3 for name in expected)
    assert values["loss"] == pytest.approx(log["scores"].mean())


def test_ranking_measures_are_those_of_the_whole_split() -> None:
    log = split(40)
    values = validate([[part(log, slice(i, i + 10))] for i in range(0, 40, 10)], precision, "mAP")
    assert values["mAP"] == precision(log["scores"], log["target"])["mAP"]


def test_order_and_devices_do_not_matter() -> None:
    log = split(30)
    order = np.random.default_rng(1).permutation(30)
    steps = [[part(log, order[start + device : start + 10 : 2]) for device in range(2)] for start in (0, 10, 20)]
    assert validate(steps, accuracy, "accuracy") == pytest.approx(validate([[log]], accuracy, "accuracy"), rel=1e-6)


def test_a_clip_that_comes_twice_counts_once() -> None:
    log = split(21)
    again = [[part(log, slice(0, 7))], [part(log, slice(7, 21))], [part(log, slice(0, 7)), part(log, slice(0, 7))]]
    values = validate(again, accuracy, "accuracy", "macro_f1")
    expected = accuracy(log["scores"], log["target"])
    assert {name: values[name] for name in expected} == expected
    twice = {key: np.concatenate([value, value[:7], value[:7]]) for key, value in log.items()}
    assert accuracy(twice["scores"], twice["target"]) != expected


def test_measures_are_computed_once_and_only_when_the_split_is_whole() -> None:
    computed = []

    def measures(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        computed.append(len(scores))
        return accuracy(scores, targets)

    log = split(30)
    with validation() as whole:
        for start in (0, 10, 20):
            step = valid_step([part(log, slice(start, start + 10))], ["accuracy", "macro_f1"], measures)
            assert math.isnan(step["accuracy"]) and math.isnan(step["macro_f1"])
            assert math.isnan(whole.get_smoothed_values()["accuracy"])
            assert step["loss"] == pytest.approx(float(part(log, slice(start, start + 10))["scores"].mean()))
    assert computed == []
    assert whole.get_smoothed_values() == whole.get_smoothed_values()
    assert computed == [30]


def test_scores_are_not_printed() -> None:
    assert set(validate([[split(5)]], accuracy, "accuracy")) == {"loss", "accuracy"}


def test_every_validation_begins_anew_and_leaves_nothing_behind() -> None:
    first, second = split(20, seed=0), split(12, seed=1)
    values = [validate([[log]], accuracy, "accuracy")["accuracy"] for log in (first, second)]
    assert values == [accuracy(log["scores"], log["target"])["accuracy"] for log in (first, second)]
    assert values[0] != values[1]
    # fairseq keeps these for the whole run.
    for name in ("default", "train", "train_inner", "valid"):
        meters = metrics.get_meters(name)
        assert not any(isinstance(meter, ScoresMeter) for meter in meters.values())
    assert set(metrics.get_smoothed_values("train")) == set()
    assert math.isnan(metrics.get_smoothed_values("valid")["accuracy"])


def test_a_checkpoint_after_validation_can_be_resumed() -> None:
    log = split(20)
    before = validate([[log]], accuracy, "accuracy")
    state = metrics.state_dict()
    metrics.reset()
    metrics.load_state_dict(state)
    assert validate([[log]], accuracy, "accuracy") == before


def test_without_any_clip_there_is_no_measure() -> None:
    assert math.isnan(validate([[]], accuracy, "accuracy")["accuracy"])


def test_a_meter_counts_what_was_added_and_forgets_when_reset() -> None:
    meter = ScoresMeter(accuracy)
    log = split(10)
    for clips in (slice(0, 6), slice(6, 10)):
        meter.update((log["id"][clips], log["scores"][clips], log["target"][clips]))
    assert meter.smoothed_value == 10
    assert meter.compute() == accuracy(log["scores"], log["target"])
    meter.update((np.array([10]), np.eye(4)[:1], np.eye(4)[:1]))
    correct = accuracy(log["scores"], log["target"])["accuracy"] * 10 + 1
    assert meter.compute()["accuracy"] == pytest.approx(correct / 11)
    meter.reset()
    assert meter.smoothed_value == 0
    meter.update((log["id"][:6], log["scores"][:6], log["target"][:6]))
    assert meter.compute() == accuracy(log["scores"][:6], log["target"][:6])
