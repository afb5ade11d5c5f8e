"""Multi-window attention: heads with windows of different lengths along the tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amae_plugin.modules.multi_window import MultiWindowAttention, windows_of_heads


@pytest.mark.parametrize(
    ("heads", "tokens", "windows"),
    [
        (8, 250, (2, 5, 10, 25, 50, 125, 0, 0)),  # MW-MAE's
        (8, 512, (2, 4, 16, 32, 128, 256, 0, 0)),
        (16, 512, (2, 4, 4, 8, 16, 16, 32, 32, 64, 128, 128, 256, 0, 0, 0, 0)),
        (2, 32, (2, 0)),
        (1, 32, (0,)),
        (4, 7, (0, 0, 0, 0)),
    ],
)
def test_windows_divide_the_tokens_and_a_quarter_of_the_heads_see_all(
    heads: int, tokens: int, windows: tuple[int, ...]
) -> None:
    assert windows_of_heads(heads, tokens) == windows


def head_by_head(model: MultiWindowAttention, x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The attention of one clip, one window of one head after the other."""
    length = len(x)
    tables = model.relative.split([max(0, 2 * window - 1) for window in model.windows])
    heads = model.qkv(x).view(length, 3, model.num_heads, -1).unbind(2)
    outputs = []
    for window, table, qkv in zip(model.windows, tables, heads, strict=True):
        parts = []
        for piece in qkv.split(window or length):
            query, key, value = piece.unbind(1)
            scores = query @ key.T / query.shape[1] ** 0.5
            places = torch.arange(len(piece))
            if window:
                scores = scores + table[places[:, None] - places + window - 1]
            if padding_mask is not None:
                scores = scores.masked_fill(padding_mask[len(parts) * (window or length) :][: len(piece)], -torch.inf)
            parts.append(scores.softmax(-1) @ value)
        outputs.append(torch.cat(parts))
    return model.proj(torch.cat(outputs, dim=1))


@pytest.mark.parametrize("length", [12, 10, 3])
def test_all_heads_at_once_are_the_heads_one_by_one(length: int) -> None:
    torch.manual_seed(0)
    model = MultiWindowAttention(16, (2, 4, 6, 0))
    torch.nn.init.normal_(model.relative)
    x = torch.randn(2, length, 16)
    expected = torch.stack([head_by_head(model, clip, None) for clip in x])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    assert model.relative.grad is not None and model.relative.grad.isfinite().all()


def test_padding_is_not_attended_to() -> None:
    torch.manual_seed(0)
    model, x = MultiWindowAttention(16, (4, 0)), torch.randn(1, 12, 16)
    padding = torch.arange(12)[None] >= 10
    expected = head_by_head(model, x[0], padding[0])[:10]
    torch.testing.assert_close(model(x, padding)[0, :10], expected, rtol=1e-4, atol=1e-5)
    assert model(x, torch.arange(12)[None] >= 4).isfinite().all()


def test_compiled_code_computes_the_same_at_every_length_and_the_windows_only_once() -> None:
    torch.manual_seed(0)
    model, graphs = MultiWindowAttention(16, (2, 4, 6, 0)), []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    for length in (12, 10, 3, 12):
        x = torch.randn(2, length, 16)
        results = []
        for function in (model, compiled):
            model.zero_grad()
            output = function(x)
            output.square().sum().backward()
            results.append((output, model.relative.grad.clone()))
        torch.testing.assert_close(results[1], results[0])
    assert len(graphs) == 3
    assert not any("arange" in str(node.target) for graph in graphs for node in graph.graph.nodes)
