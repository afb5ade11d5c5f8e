"""What a checkpoint is: everything that it says about itself, and nothing that it does not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.models.encoder import Encoder
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.modules.positions import GridPositions, LearnedPositions

_SHOWN = 10  # names
# Of a pretraining model's settings, those that a summary shows.
_PRETRAINING = ("masking", "mask_ratio", "decoder", "decoder_embed_dim", "decoder_depth", "norm_pix_loss")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says about its model, its input and its training, in JSON's types; None where it says nothing.

    Parameters are counted by the part of the model that they are in. ``best`` is the best value of ``metric`` in the
    run so far and ``last`` that of the last validation; ``train_loss`` is the mean over the epoch so far.

    Raises:
        UserError: the weights do not fit the settings, or a setting that describes the input is missing.
    """
    model: Any = checkpoint.model()
    encoder: Encoder = model.encoder
    first_block: Any = encoder.blocks[0]
    task = checkpoint.config["task"]
    expected = checkpoint.input
    features = expected.front_end
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] += parameter.numel()
    extra = checkpoint.extra_state
    return {
        "path": str(checkpoint.path.absolute()),
        "recipe": task.get("recipe"),
        "model": checkpoint.model_settings["_name"],
        "encoder": checkpoint.encoder_settings["_name"],
        "settings": _plain(checkpoint.model_settings),
        "parameters": {**parts, "total": sum(parts.values())},
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": first_block.attn.num_heads,
        "positions": _positions(encoder),
        "patch_size": list(encoder.patch_size),
        "patch_stride": list(encoder.patch_stride),
        "grid": list(encoder.grid(expected.target_length, expected.num_mel_bins)),
        "input": {
            "sample_rate": features.sample_rate,
            "frames": expected.target_length,
            "seconds": expected.samples / features.sample_rate,
            "num_mel_bins": features.num_mel_bins,
            "window_type": features.window_type,
            "window_ms": features.window_ms,
            "shift_ms": features.shift_ms,
            **_statistics(encoder, expected),
        },
        "updates": checkpoint.updates,
        "epoch": (extra.get("train_iterator") or {}).get("epoch"),
        "metric": _setting(checkpoint, "checkpoint", "best_checkpoint_metric"),
        "last": _number(extra.get("val_loss")),
        "best": _number(extra.get("best")),
        "train_loss": _train_loss(extra),
        "task": task.get("_name"),
        "data": task.get("data"),
        "save_dir": _setting(checkpoint, "checkpoint", "save_dir"),
        "clips_per_update": task.get("clips_per_update"),
        "max_update": _setting(checkpoint, "optimization", "max_update"),
        "stop_time_hours": _setting(checkpoint, "optimization", "stop_time_hours"),
        "optimizer": _setting(checkpoint, "optimizer", "_name"),
        "lr": _plain(_setting(checkpoint, "optimization", "lr")),
        "loss": _setting(checkpoint, "criterion", "loss"),
        "multi_label": task.get("multi_label"),
        "classes": list(checkpoint.task_state.get("classes") or []) or None,
        "conversion": _plain(extra.get("conversion")),
    }


def summary(facts: Mapping[str, Any]) -> str:
    """What :func:`describe` gives, in a few lines for a terminal."""
    settings, heard = facts["settings"], facts["input"]
    classifier = facts["model"] != facts["encoder"]
    lines = [
        ("checkpoint", facts["path"]),
        ("recipe", facts["recipe"]),
        ("model", f"{facts['model']} on {facts['encoder']}" if classifier else facts["model"]),
        ("encoder", ", ".join(f"{name} {facts[name]}" for name in ("embed_dim", "depth", "num_heads"))),
        ("pretraining", ", ".join(f"{name} {settings[name]}" for name in _PRETRAINING if name in settings)),
        ("tokens", _tokens(facts)),
        ("positions", facts["positions"]["kind"] + _grid(facts["positions"]["grid"], ", table for ")),
        ("parameters", ", ".join(f"{part} {count:,}" for part, count in facts["parameters"].items())),
        (
            "input",
            f"{heard['frames']} frames ({heard['seconds']:.4g} s), {heard['num_mel_bins']} mel bands, "
            f"{heard['window_type']} windows of {heard['window_ms']:g} ms every {heard['shift_ms']:g} ms at "
            f"{heard['sample_rate']:,} Hz",
        ),
        (
            "normalised",
            f"(x - mean) / (2 std), mean {heard['mean']:.8g}, std {heard['std']:.8g}, {heard['statistics']}",
        ),
        ("training", _training(facts)),
        ("measures", _measures(facts)),
        ("data", facts["data"]),
        ("written to", facts["save_dir"]),
        ("classes", _classes(facts)),
        ("made of", _conversion(facts["conversion"])),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines if text)


def _tokens(facts: Mapping[str, Any]) -> str:
    size, stride = facts["patch_size"], facts["patch_stride"]
    apart = "" if size == stride else f" every {stride[0]} frames and {stride[1]} bands"
    return f"patches of {size[0]} frames x {size[1]} bands{apart}{_grid(facts['grid'], ', ')}"


def _grid(grid: list[int] | None, before: str) -> str:
    return "" if grid is None else f"{before}{grid[0]} x {grid[1]} (time x frequency)"


def _training(facts: Mapping[str, Any]) -> str:
    updates, hours, lr = facts["updates"], facts["stop_time_hours"], facts["lr"]
    planned = f" of {facts['max_update']:,}" if facts["max_update"] else ""
    if hours:
        planned += f" or as many as fit {hours:.3g} hours"
    parts = [
        None if updates is None else f"{updates:,} updates{planned}",
        None if facts["epoch"] is None else f"epoch {facts['epoch']:,}",
        None if facts["clips_per_update"] is None else f"{facts['clips_per_update']:,} clips an update",
        facts["optimizer"],
        f"lr {lr[0]:g}" if lr else None,
        facts["loss"],
    ]
    return ", ".join(part for part in parts if part is not None)


def _measures(facts: Mapping[str, Any]) -> str:
    values = {
        facts["metric"]: facts["last"],
        f"best {facts['metric']}": facts["best"],
        "training loss": facts["train_loss"],
    }
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)


def _classes(facts: Mapping[str, Any]) -> str:
    names = facts["classes"] or []
    several = ", several a clip" if facts["multi_label"] else ""
    return f"{len(names):,}{several}: {_shown(names)}" if names else ""


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _conversion(conversion: Mapping[str, Any] | None) -> str:
    if not conversion:
        return ""
    parts: dict[str, list[str]] = {}
    for name in conversion["initialised"]:
        parts.setdefault(name if name.startswith("encoder.") else name.split(".")[0], []).append(name)
    lacking = [names[0] if len(names) == 1 else f"{part} ({len(names)} tensors)" for part, names in parts.items()]
    more = f", which lacks {_shown(lacking)}: untrained here" if lacking else ""
    return f"{conversion['source']} ({conversion['kind']}){more}"


def _statistics(encoder: Encoder, expected: ModelInput) -> dict[str, Any]:
    """Of the normalisation ``(x - mean) / (2 std)``, and where they come from."""
    if isinstance(encoder, MAEASTEncoder):
        norm = encoder.input_norm
        mean, std = norm.running_mean.item(), (norm.running_var + norm.eps).sqrt().item()
        return {"mean": mean, "std": std, "statistics": "learned by the encoder's input norm"}
    return {"mean": expected.mean, "std": expected.std, "statistics": "task.mean and task.std"}


def _positions(encoder: Encoder) -> dict[str, Any]:
    """The kind of an encoder's position table, and the grid (time, frequency) that it is for."""
    positions = encoder.positions
    if isinstance(positions, GridPositions):
        kind = "fixed 2-D sine-cosine" if positions.is_sincos else "fixed, a table that is not the 2-D sine-cosine one"
        return {"kind": kind, "grid": list(positions.grid)}
    if isinstance(positions, LearnedPositions):
        return {"kind": "learned", "grid": list(positions.grid[::-1])}  # its rows are the bands
    return {"kind": "fixed 1-D sine-cosine along the tokens", "grid": None}


def _train_loss(extra_state: Mapping[str, Any]) -> float | None:
    """The mean of the training loss over the epoch so far, of the meters that fairseq stored."""
    meters: Iterable[Any] = dict(extra_state.get("metrics") or {}).get("train", ())
    for _, name, kind, state in meters:
        if (name, kind) == ("loss", "AverageMeter") and float(state["count"]) > 0:
            return _number(float(state["sum"]) / float(state["count"]))
    return None


def _setting(checkpoint: Checkpoint, section: str, name: str) -> Any:
    return (checkpoint.config.get(section) or {}).get(name)


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
