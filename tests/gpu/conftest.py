"""Tests that need a GPU. Where there is none they are skipped, or with AMAE_TEST_DEVICE=cpu run on the CPU instead.

On the CPU they show that their own code works, and little else: a device is compared with itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from loading import load

TESTS = Path(__file__).parents[1]
DEVICE = torch.device(os.environ.get("AMAE_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
LACKS = ""
if ON_GPU and not torch.cuda.is_available():
    LACKS = "PyTorch finds no GPU on this machine, so these tests are skipped"


def pytest_report_header() -> str:
    return LACKS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and LACKS:
            item.add_marker(pytest.mark.skip(reason=LACKS))


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 means float32: cuDNN's convolutions otherwise round to TF32, as matrix products do not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


end_to_end = load("end_to_end", TESTS / "end_to_end" / "conftest.py")
corpus, labelled = end_to_end.corpus, end_to_end.labelled  # fixtures
