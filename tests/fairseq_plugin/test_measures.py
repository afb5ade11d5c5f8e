"""Measures of a whole validation split, as fairseq's own validation prints them and compares checkpoints by them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from fairseq_cli.train import validate
from omegaconf import OmegaConf
from torch import Tensor, nn

from amae_plugin.fairseq_plugin import patches
from amae_plugin.fairseq_plugin.classification import (
    AmaeClassification,
    AmaeClassificationTask,
    AmaeClassificationTaskConfig,
)
from amae_plugin.metrics.classification import multi_label, single_label

Batch = dict[str, Any]


@pytest.fixture(autouse=True)
def no_run() -> Iterator[None]:
    """fairseq's meters and best result are global."""
    metrics.reset()
    patches.forget_run()
    yield
    metrics.reset()
    patches.forget_run()


class Scores(nn.Module):
    """A model whose logits are its input."""

    def forward(self, source: Tensor) -> dict[str, Tensor]:
        return {"logits": source}


class Validation(Trainer):
    """fairseq's trainer between two updates, with batches of validation at hand."""

    def __init__(self, metric: str = "accuracy", maximize: bool = True, multi: bool = False):
        self.cfg = OmegaConf.structured(FairseqConfig())
        self.cfg.common.log_format = "json"
        self.cfg.checkpoint.best_checkpoint_metric = metric
        self.cfg.checkpoint.maximize_best_checkpoint_metric = maximize
        settings = {"best_checkpoint_metric": metric, "maximize_best_checkpoint_metric": maximize}
        config = OmegaConf.structured(AmaeClassificationTaskConfig)
        self.task = AmaeClassificationTask(OmegaConf.merge(config, {**settings, "data": "", "multi_label": multi}))
        self._model = self._wrapped_model = Scores()
        self._criterion = self._wrapped_criterion = AmaeClassification(self.task, "cross_entropy", 0.0)
        self.tpu = self.cuda = False
        self._dummy_batch = None
        self._num_updates = 1
        self._warn_once: set[str] = set()
        self.batches: dict[str, list[Batch]] = {}

    def get_valid_iterator(self, subset: str, disable_iterator_cache: bool = False) -> SimpleNamespace:
        self._dummy_batch = self.batches[subset][0]
        return SimpleNamespace(next_epoch_itr=lambda **_: Batches(self.batches[subset]))

    def __call__(self, *subsets: Sequence[Batch]) -> list[float]:
        """What fairseq takes for the result of each subset."""
        self.batches = {f"valid{index}": list(batches) for index, batches in enumerate(subsets)}
        with metrics.aggregate("train"):
            return validate(self.cfg, self, self.task, SimpleNamespace(epoch=1), list(self.batches))


class Batches(list):
    """As fairseq's iterators are: they know where they are."""

    n = 0


def split(clips: int, classes: int = 4, seed: int = 0) -> Batch:
    """A batch of clips of one class each, with scores that are better than chance."""
    rng = np.random.default_rng(seed)
    target = np.eye(classes, dtype=np.float32)[rng.integers(classes, size=clips)]
    scores = (rng.normal(size=(clips, classes)) + target).astype(np.float32)
    arrays = {"id": torch.arange(clips), "target": torch.tensor(target)}
    return {**arrays, "net_input": {"source": torch.tensor(scores)}, "nsentences": clips, "ntokens": clips}


def part(batch: Batch, clips: Any) -> Batch:
    source, number = batch["net_input"]["source"][clips], len(batch["id"][clips])
    arrays = {name: batch[name][clips] for name in ("id", "target")}
    return {**arrays, "net_input": {"source": source}, "nsentences": number, "ntokens": number}


def measures(batch: Batch) -> dict[str, float]:
    return single_label(batch["net_input"]["source"].numpy(), batch["target"].argmax(1).numpy()).headline


def printed(caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    """The values of the latest validation that fairseq printed."""
    line = next(record.message for record in reversed(caplog.records) if record.message.startswith("{"))
    return {name.removeprefix("valid0_"): float(value) for name, value in json.loads(line).items()}


def test_measures_are_those_of_the_whole_split_and_not_a_mean_over_batches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    whole = split(50)
    batches = [part(whole, slice(start, start + 8)) for start in range(0, 50, 8)]
    expected = measures(whole)
    assert Validation()(batches) == [expected["accuracy"]]
    values = printed(caplog)
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=6e-4)
    means = {name: np.mean([measures(batch)[name] for batch in batches]) for name in expected}
    assert all(abs(means[name] - expected[name]) > 1e-3 for name in expected)
    assert "id" not in values and "scores" not in values and "target" not in values


def test_the_loss_may_be_a_mean_over_classes_as_well() -> None:
    criterion, batch = AmaeClassification(None, "cross_entropy", 0.0, mean_over_classes=True), split(5)
    loss, clips, _ = criterion(Scores(), batch)
    expected = -(batch["target"] * batch["net_input"]["source"].log_softmax(dim=1)).mean()
    torch.testing.assert_close(loss / clips, expected)
    losses = [AmaeClassification(None, "bce", 0.0, mean)(Scores(), batch)[0] for mean in (True, False)]
    assert losses[0] == losses[1]


def test_ranking_measures_are_those_of_the_whole_split() -> None:
    whole = split(40)
    expected = multi_label(whole["net_input"]["source"].numpy(), whole["target"].numpy()).mean_average_precision
    assert Validation("mAP", multi=True)([part(whole, slice(i, i + 10)) for i in range(0, 40, 10)]) == [expected]


def test_a_clip_that_comes_twice_counts_once() -> None:
    whole = split(21)
    # An empty batch, too, for which fairseq takes the first one once more.
    again = [part(whole, slice(0, 7)), part(whole, slice(7, 21)), part(whole, slice(0, 7)), {}]
    assert Validation()(again) == [measures(whole)["accuracy"]]
    twice = part(whole, [*range(21), *range(7), *range(7)])
    assert measures(twice)["accuracy"] != measures(whole)["accuracy"]


def test_every_validation_and_every_subset_begins_anew_and_leaves_nothing_behind() -> None:
    first, second = split(20, seed=0), split(12, seed=1)
    expected = [measures(batch)["accuracy"] for batch in (first, second)]
    assert expected[0] != expected[1]
    validation = Validation()
    assert validation([first], [second]) == expected
    assert validation([second], [first]) == expected[::-1]
    # fairseq writes its meters into checkpoints.
    state = copy.deepcopy(metrics.state_dict())
    assert "loss" in str(state) and "accuracy" not in str(state)
    metrics.reset()
    metrics.load_state_dict(state)
    assert validation([first]) == expected[:1]


@pytest.mark.parametrize(("maximize", "bests"), [(True, [0.5, 0.5, 0.75]), (False, [0.5, 0.25, 0.25])])
def test_the_best_result_that_is_printed_includes_the_new_one(
    maximize: bool, bests: list[float], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    validation = Validation(maximize=maximize)
    checkpoint = OmegaConf.merge(validation.cfg.checkpoint, {"no_save": True, "save_dir": str(tmp_path)})
    batch = split(4)
    for index, result in enumerate((0.5, 0.25, 0.75)):
        signs = torch.where(torch.arange(4) < 4 * result, 1.0, -1.0)[:, None]
        batch["net_input"]["source"] = signs * batch["target"]
        assert validation([batch]) == [result]
        assert printed(caplog)["accuracy"] == result
        if index:  # before, fairseq knows no best one
            assert printed(caplog)["best_accuracy"] == bests[index]
        checkpoint_utils.save_checkpoint(checkpoint, SimpleNamespace(data_parallel_rank=1), None, result)
        assert checkpoint_utils.save_checkpoint.best == bests[index]


def test_fairseq_validate_which_only_reduces_the_logs_gets_the_measures_of_a_split() -> None:
    validation, whole = Validation(), split(20)
    validation.task.of_checkpoint = True
    criterion = validation.criterion.eval()
    for batches in ([whole], [part(whole, slice(0, 3)), part(whole, slice(3, 20))]):
        logs = [validation.task.valid_step(batch, Scores(), criterion)[2] for batch in batches]
        with metrics.aggregate(new_root=True) as found:
            validation.task.reduce_metrics(logs, criterion)
        assert found.get_smoothed_values()["accuracy"] == pytest.approx(measures(whole)["accuracy"], abs=1e-6)


def test_without_any_clip_there_is_no_measure() -> None:
    validation = Validation()
    stats = {"accuracy": math.nan}
    validation.task.post_validate(Scores(), stats, metrics.get_meters("default"))
    assert math.isnan(stats["accuracy"])
