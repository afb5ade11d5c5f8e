"""The teacher: copies that follow a module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.modules.blocks import Block, PostNormBlock
from amae_plugin.modules.moving_average import LinearDecay, MovingAverage


class Student(nn.Module):
    """A module with a parameter of its own, and blocks with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.blocks = nn.ModuleList([Block(8, 2), PostNormBlock(8, 2, dropout=0.5)])
        self.head = nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (LinearDecay(0.9998, 0.99999, 100), {3: 0.9998057, 100: 0.99999, 400: 0.99999}),  # EAT's archive
        (LinearDecay(0.9, 1.0, None, first=1), {1: 0.9, 501: 0.95, 1001: 1.0}),  # M2D: step / (total steps - 1)
        (LinearDecay(0.5, 0.7, 1, first=1), {1: 0.5, 2: 0.7}),
        (LinearDecay(0.99, 0.99, 5), {1: 0.99, 9: 0.99}),
    ],
)
def test_a_decay_grows_linearly_and_then_stays(decay: LinearDecay, expected: dict[int, float]) -> None:
    for update, value in expected.items():
        assert decay.at(update, max_update=1001) == pytest.approx(value, abs=1e-9)


def test_a_decay_over_a_run_of_unknown_length_is_refused() -> None:
    assert LinearDecay(0.9, 0.99, 10).at(5, 0) == pytest.approx(0.945)
    with pytest.raises(UserError, match=r"optimization\.max_update"):
        LinearDecay(0.9, 0.99).at(5, 0)


@pytest.mark.parametrize(
    ("values", "message"), [((1.1, 0.9), "between 0 and 1"), ((0.9, -1), "between 0 and 1"), ((0.9, 1, 0), "1 update")]
)
def test_a_decay_that_is_none_is_refused(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearDecay(*values)  # type: ignore[arg-type]


def test_the_teacher_follows_its_parts_by_name_and_nothing_else() -> None:
    student = Student()
    teacher = MovingAverage(student, ["token", "blocks"], LinearDecay(0.75, 0.75))
    before = copy.deepcopy(teacher.state_dict())
    assert before.keys() == {name for name in student.state_dict() if not name.startswith("head.")}
    for parameter in student.parameters():
        nn.init.normal_(parameter)
    teacher.follow(student, 1, 1)
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student.state_dict()[name])
    teacher.copy_to(student)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in teacher.state_dict().items())


def test_the_teacher_is_float32_untrained_and_always_in_evaluation_mode() -> None:
    student = Student().bfloat16()
    teacher = MovingAverage(student, ["token", "blocks"], LinearDecay(0.9, 0.9)).train()
    assert {(p.dtype, p.requires_grad) for p in teacher.parameters()} == {(torch.float32, False)}
    assert not any(module.training for module in teacher.modules())
    assert teacher.token.data_ptr() != student.token.data_ptr()
    with torch.autocast("cpu", torch.bfloat16):
        teacher.follow(student, 1, 1)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
