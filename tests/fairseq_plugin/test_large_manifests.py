"""The memory that a large collection takes until its first batch, and when it is resumed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from amae_plugin.fairseq_plugin.classification import AmaeClassificationTask, AmaeClassificationTaskConfig

LINES = 100_000
BYTES = 250  # a line, which makes 500 MB of two million lines; what is mapped of the files counts as well


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    classes = [f"/m/0{number:05x}" for number in range(527)]
    rng = np.random.default_rng(0)
    counts, drawn = rng.integers(1, 4, LINES).tolist(), iter(rng.integers(0, 527, 3 * LINES).tolist())
    rows = (f"part/{line % 1000:03d}/clip_{line:09d}.flac\t{160_000 + line % 7}\n" for line in range(LINES))
    (folder / "train.tsv").write_text(".\n" + "".join(rows))
    labels = (",".join({classes[next(drawn)] for _ in range(count)}) for count in counts)
    (folder / "train.lbl").write_text("".join(f"{line}\n" for line in labels))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
    return folder


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"balanced_samples": LINES}, {"max_sentences": 32}),
        ({"batch_length": "longest", "sample_rate": 16_000}, {"max_tokens": 16_384}),
    ],
    ids=["balanced", "by length"],
)
def test_a_large_collection_takes_little_memory(folder: Path, settings: dict, batches: dict) -> None:
    values = {"data": str(folder), "seed": 1, "best_checkpoint_metric": "mAP", "multi_label": True, **settings}
    config = OmegaConf.merge(OmegaConf.structured(AmaeClassificationTaskConfig), values)
    tracemalloc.start()
    try:
        task = AmaeClassificationTask(config)
        task.load_dataset("train")
        epoch = task.get_batch_iterator(task.dataset("train"), epoch=1, **batches)
        epoch.next_epoch_itr()
        state = {**epoch.state_dict(), "iterations_in_epoch": 100}
        task.get_batch_iterator(task.dataset("train"), epoch=1, **batches).load_state_dict(state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak + (folder / "train.tsv").stat().st_size < BYTES * LINES
