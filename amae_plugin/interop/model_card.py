"""The page that lies beside an exported model: what it is, what it takes, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from amae_plugin.checkpoints import Checkpoint, Model
from amae_plugin.data.labels import LABELS_NAME
from amae_plugin.inspection import describe, summary
from amae_plugin.models.encoder import Encoder

FILE = "README.md"
_PROBABILITIES = {"bce": "torch.sigmoid(logits)", "cross_entropy": "torch.softmax(logits, dim=1)"}
_MADE = "Written by `amae export`"

# torchaudio's names of what LogMel does.
_INPUT = """```python
import torch
import torchaudio


def log_mel_of(waveform):  # (samples,) float in [-1, 1], mono, {rate} Hz
    features = torchaudio.compliance.kaldi.fbank(
        waveform[None],
        sample_frequency={rate},
        num_mel_bins={bands},
        window_type="{window}",
        frame_length={window_ms},
        frame_shift={shift_ms},
    )
    spare = max(0, {frames} - len(features))
    features = torch.nn.functional.pad(features[:{frames}], (0, 0, 0, spare))
    return (features - ({shift})) / {scale}


log_mel = torch.stack([log_mel_of(waveform) for waveform in waveforms])  # (clips, {frames}, {bands})
```
"""


def write(checkpoint: Checkpoint, model: Model, folder: Path, title: str, loading: Mapping[str, str]) -> None:
    """Write the page.

    Args:
        checkpoint: that was exported.
        model: its model.
        folder: of the exported files.
        title: of the page.
        loading: how to load them, by format.
    """
    (folder / FILE).write_text(_text(checkpoint, model, title, loading), encoding="utf-8")


def is_own(path: Path) -> bool:
    """Whether a page was written here."""
    return _MADE in path.read_text(encoding="utf-8", errors="replace")


def _text(checkpoint: Checkpoint, model: Model, title: str, loading: Mapping[str, str]) -> str:
    facts = describe(checkpoint)
    # Of paths on the machine of the training, only the last names matter to others.
    facts["path"] = checkpoint.path.name
    facts["data"] = Path(facts["data"]).name if facts["data"] else None
    facts["save_dir"] = Path(facts["save_dir"]).parent.name if facts["save_dir"] else None
    kind = "audio-classification" if checkpoint.is_classifier else "feature-extraction"
    what = "A classifier" if checkpoint.is_classifier else "An encoder"
    tags = "\n".join(f"- {tag}" for tag in ("audio", "masked-autoencoder", facts["encoder"].removeprefix("amae_")))
    parts = [
        f"---\nlibrary_name: {next(iter(loading))}\npipeline_tag: {kind}\ntags:\n{tags}\n---\n",
        f"# {title}\n",
        f"{what} of audio. {_MADE} of amae_plugin from a checkpoint of it, and checked against that: the files compute "
        "what it computes.\n",
        f"```text\n{summary(facts)}\n```\n",
        "## Input\n",
        _input(checkpoint),
        "## Output\n",
        _output(facts, model.encoder),
    ]
    for name, text in loading.items():
        parts += [f"## With {name}\n", text]
    return "\n".join(parts)


def _input(checkpoint: Checkpoint) -> str:
    features = checkpoint.input.front_end
    shift, scale = checkpoint.input.shift_and_scale
    return _INPUT.format(
        rate=features.sample_rate,
        bands=features.num_mel_bins,
        window=features.window_type,
        window_ms=features.window_ms,
        shift_ms=features.shift_ms,
        frames=checkpoint.input.target_length,
        shift=shift,
        scale=scale,
    )


def _output(facts: Mapping[str, Any], encoder: Encoder) -> str:
    if facts["classes"]:
        how = _PROBABILITIES.get(facts["loss"])
        probabilities = f"; probabilities are `{how}`" if how else ""
        return f"`logits` (clips, {len(facts['classes'])}) of the classes in {LABELS_NAME}{probabilities}.\n"
    prefix, grid = encoder.num_prefix_tokens, tuple(facts["grid"])
    tokens = {0: "", 1: "the class token, then "}.get(prefix, f"{prefix} class tokens, then ")
    places = torch.arange(grid[0] * grid[1])[None]
    order = "time step by time step" if torch.equal(encoder.in_token_order(places, grid), places) else "band by band"
    return (
        f"`features` (clips, {prefix + places.numel()}, {encoder.embed_dim}): {tokens}{grid[0]} x {grid[1]} patches "
        f"(time x frequency), {order}.\n"
    )
