"""A run says how far its first line is, if that is more than minutes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from amae_plugin.fairseq_plugin.pace import FirstLine, first_line


def clock(*times: float):
    return iter(times).__next__


@pytest.mark.parametrize(
    ("batches", "seconds", "warning"),
    [
        (1600, 11.0, "in about 4.9 hours, after 1600 batches of 11.0 s: rest"),
        (62, 10.0, "in about 10 minutes, after 62 batches of 10.0 s: rest"),
        (20, 10.0, None),
        (1, 1e6, None),
    ],
)
def test_it_is_said_once_and_only_if_it_is_far(
    batches: int, seconds: float, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    line = FirstLine(batches, "rest", clock(100.0, 100.0 + seconds))
    for _ in range(4):
        line.after_batch()
    assert [record.message.removeprefix("the first line of the log comes ") for record in caplog.records] == (
        [warning] if warning else []
    )


@pytest.mark.parametrize(
    ("recipe", "updates", "consumed", "batches", "advice"),
    [
        ("pretrain_audio_mae_base", 0, 0, 1600, "take --config-name=pretrain_audio_mae_tiny, lower task.clips"),
        ("pretrain_audio_mae_base", 150, 0, 400, "take --config-name=pretrain_audio_mae_tiny, "),
        ("pretrain_audio_mae_base", 150, 9900, 100, "take --config-name=pretrain_audio_mae_tiny, "),
        ("pretrain_audio_mae_tiny", 0, 0, 1600, "lower task.clips"),
        (None, 0, 0, 1600, "lower task.clips"),
    ],
)
def test_it_comes_at_the_log_interval_or_at_the_end_of_the_epoch(
    recipe: str | None, updates: int, consumed: int, batches: int, advice: str
) -> None:
    cfg = {"common": {"log_interval": 200}, "optimization": {"update_freq": [8]}}
    cfg |= {"task": {"recipe": recipe}, "model": {"_name": "amae_audio_mae"}}

    class Epoch(SimpleNamespace):
        def __len__(self) -> int:
            return 10_000

    line = first_line(OmegaConf.create(cfg), updates, Epoch(next_epoch_idx=1, iterations_in_epoch=consumed))
    assert (line.batches, line.advice[: len(advice)]) == (batches, advice)
