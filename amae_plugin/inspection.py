"""Inspection: all facts that a checkpoint states about its model, input and training."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.transcripts import SPECIAL
from amae_plugin.errors import UserError, first_of
from amae_plugin.models.base import Encoder, Model, PretrainingModel
from amae_plugin.models.registry import find_system

Facts = dict[str, Any]
"""Facts in JSON's types, by name."""
_FORMULAS = {"two_std": "(x - mean) / (2 std)", "one_std": "(x - mean) / std", "model": "in the encoder"}
_SETTINGS: dict[str, tuple[str, str, Sequence[type]]] = {
    "recipe": ("task", "recipe", (str,)),
    "task": ("task", "_name", (str,)),
    "data": ("task", "data", (str,)),
    "clips_per_update": ("task", "clips_per_update", (int,)),
    "multi_label": ("task", "multi_label", (bool,)),
    "metric": ("checkpoint", "best_checkpoint_metric", (str,)),
    "save_dir": ("checkpoint", "save_dir", (str,)),
    "max_update": ("optimization", "max_update", (int,)),
    "stop_time_hours": ("optimization", "stop_time_hours", (int, float)),
    "lr": ("optimization", "lr", (list,)),
    "optimizer": ("optimizer", "_name", (str,)),
    "loss": ("criterion", "loss", (str,)),
}
"""Sections, names and types of the settings of a run, by their names in the description."""
# Settings of a pretraining model in a summary.
_PRETRAINING = (
    *("masking", "mask_ratio", "image_mask_ratio", "decoder", "decoder_embed_dim", "decoder_depth", "norm_pix_loss"),
    *("contrastive_weight", "contrastive_temperature", "contrastive_direction", "contrastive_all_ranks"),
)


def describe(checkpoint: Checkpoint) -> Facts:
    """Describe a checkpoint's model, input and training in JSON's types; None for what it does not state.

    Parameters are counted by the part of the model that holds them. ``best`` is the best value of ``metric`` in the run
    so far, and ``last`` the value of the last validation. ``train_loss`` is the mean over the epoch so far.

    Raises:
        UserError: the weights do not fit the settings, or a setting that describes the input is missing.
    """
    model, model_input = checkpoint.model(), checkpoint.input
    encoder = model.encoder
    mean, std = encoder.input_statistics or (model_input.mean, model_input.std)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] += parameter.numel()
    return {
        "path": str(checkpoint.path.absolute()),
        "model": checkpoint.model_settings["_name"],
        "encoder": checkpoint.encoder_settings["_name"],
        "paper": find_system(checkpoint.encoder_settings).paper,
        "settings": checkpoint.model_settings,
        "parameters": {**parts, "total": parts.total()},
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "shared_depth": checkpoint.encoder_settings.get("shared_depth"),
        "num_heads": encoder.num_heads,
        "positions": {"kind": encoder.positions.kind, "grid": encoder.positions.grid},
        "patch_size": encoder.patch_size,
        "patch_stride": encoder.patch_stride,
        "grid": encoder.grid(model_input.target_length, model_input.num_mel_bins),
        "modalities": list(encoder.modalities),
        "image": _image(encoder, model_input),
        "draws": isinstance(model, PretrainingModel) and model.draws,
        "teacher": _teacher(model, checkpoint),
        "input": {
            "frames": model_input.target_length,
            "seconds": model_input.samples / model_input.sample_rate,
            **asdict(model_input.front_end),
            "normalization": model_input.normalization,
            "mean": mean,
            "std": std,
            "statistics": "learned by the encoder's input norm"
            if encoder.input_statistics
            else "task.mean and task.std",
        },
        "updates": checkpoint.updates,
        "epoch": (checkpoint.state_of_run("train_iterator", dict) or {}).get("epoch"),
        "last": checkpoint.state_of_run("val_loss", int, float),
        "best": checkpoint.state_of_run("best", int, float),
        "train_loss": _train_loss(checkpoint),
        **{name: checkpoint.setting(section, key, *kinds) for name, (section, key, kinds) in _SETTINGS.items()},
        "classes": list(checkpoint.classes) if checkpoint.task_state.get("classes") else None,
        "units": checkpoint.units.plain() if checkpoint.task_state.get("units") else None,
        "ema_decay": checkpoint.setting("ema", "ema_decay", int, float) if "ema" in checkpoint.extra_state else None,
        "average": checkpoint.state_of_run("average", dict),
        "conversion": checkpoint.state_of_run("conversion", dict),
    }


def summary(facts: Facts) -> str:
    """Summarise the result of :func:`describe` in a few lines for a terminal."""
    settings, taken, positions = facts["settings"], facts["input"], facts["positions"]
    size, stride = facts["patch_size"], facts["patch_stride"]
    lines = {
        "checkpoint": facts["path"],
        "recipe": facts["recipe"],
        "model": " on ".join(dict.fromkeys((facts["model"], facts["encoder"]))),
        "encoder": _join(
            f"{name} {facts[name]}" for name in ("embed_dim", "depth", "shared_depth", "num_heads") if facts[name]
        ),
        "pretraining": _join(f"{name} {settings[name]}" for name in _PRETRAINING if name in settings),
        "tokens": f"patches of {size[0]} frames x {size[1]} bands"
        + (f" every {stride[0]} frames and {stride[1]} bands" if stride != size else "")
        + f", {_grid(facts['grid'])}",
        "positions": _join([positions["kind"], positions["grid"] and f"table for {_grid(positions['grid'])}"]),
        "teacher": facts["teacher"] and _describe_teacher(**facts["teacher"]),
        "parameters": _join(f"{part} {count:,}" for part, count in facts["parameters"].items()),
        "input": f"{taken['frames']} frames ({taken['seconds']:.4g} s), {taken['num_mel_bins']} mel bands, "
        f"{taken['window_type']} windows of {taken['window_ms']:g} ms every {taken['shift_ms']:g} ms at "
        f"{taken['sample_rate']:,} Hz",
        "image": facts["image"] and _describe_image(**facts["image"]),
        "normalised": f"{_FORMULAS[taken['normalization']]}, mean {taken['mean']:.8g}, std {taken['std']:.8g}, "
        f"{taken['statistics']}",
        "training": _training(facts),
        "measures": _measures(facts),
        "data": facts["data"],
        "written to": facts["save_dir"],
        "to cite": facts["paper"],
        "classes": _classes(facts),
        "units": facts["units"] and _units(**facts["units"]),
        "keeps": "" if facts["ema_decay"] is None else f"a moving average of its weights, decay {facts['ema_decay']:g}",
        "made of": _average(facts["average"]) or _conversion(facts["conversion"]),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items() if text)


def _join(parts: Iterable[str | None]) -> str:
    return ", ".join(part for part in parts if part is not None)


def _teacher(model: Model, checkpoint: Checkpoint) -> Facts | None:
    """Describe the teacher of a pretraining model; ``decay`` is that of the last update."""
    if not isinstance(model, PretrainingModel) or model.teacher is None:
        return None
    schedule, updates = model.teacher.decay, checkpoint.updates
    planned = (checkpoint.config.get("optimization") or {}).get("max_update") or 0
    decay = schedule.at(updates, planned) if updates and (schedule.updates or planned) else None
    return {"parts": list(model.teacher.parts), "schedule": str(schedule), "decay": decay}


def _describe_teacher(parts: Sequence[str], schedule: str, decay: float | None) -> str:
    *others, last = parts
    named = f"{', '.join(others)} and {last}" if others else last
    reached = None if decay is None else f"at last {decay:.7g}"
    return _join([f"moving average of the encoder's {named}, decay {schedule}", reached])


def _image(encoder: Encoder, model_input: ModelInput) -> Facts | None:
    """Describe the image that an encoder takes, and its patches."""
    taken, patch_size = model_input.image, encoder.image_patch_size
    if taken is None or patch_size is None:
        return None
    side = taken.size // patch_size
    return {**asdict(taken), "patch_size": patch_size, "grid": (side, side)}


def _describe_image(size: int, patch_size: int, grid: Sequence[int], **_: object) -> str:
    return f"{size} x {size} pixels, patches of {patch_size} x {patch_size}, {grid[0]} x {grid[1]} (rows x columns)"


def _grid(grid: Sequence[int]) -> str:
    return f"{grid[0]} x {grid[1]} (time x frequency)"


def _training(facts: Facts) -> str:
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
    return _join(parts)


def _measures(facts: Facts) -> str:
    metric, loss = facts["metric"], facts["train_loss"]
    values = {metric: facts["last"], f"best {metric}": facts["best"], "training loss": loss}
    return _join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)


def _classes(facts: Facts) -> str:
    names = facts["classes"] or []
    several = ", several a clip" if facts["multi_label"] else ""
    return f"{len(names):,}{several}: {first_of(names)}" if names else ""


def _units(labels: str, symbols: Sequence[str], post_process: str) -> str:
    own = symbols[len(SPECIAL) :]
    return f"{len(own):,} of {labels}, which make words as post_process={post_process}: {first_of(own)}"


def _average(average: Facts | None) -> str:
    return f"{'moving average' if average['moving'] else 'average'} of {first_of(average['of'])}" if average else ""


def _conversion(conversion: Facts | None) -> str:
    if not conversion:
        return ""
    parts: dict[str, list[str]] = {}
    for name in conversion["initialised"]:
        parts.setdefault(name if name.startswith("encoder.") else name.split(".")[0], []).append(name)
    lacking = [names[0] if len(names) == 1 else f"{part} ({len(names)} tensors)" for part, names in parts.items()]
    more = f", which lacks {first_of(lacking)}: untrained here" if lacking else ""
    return f"{conversion['source']} ({conversion['kind']}){more}"


def _train_loss(checkpoint: Checkpoint) -> float | None:
    """Return the mean of the training loss over the epoch so far, from fairseq's stored meters."""
    try:
        for _, name, kind, state in dict(checkpoint.extra_state.get("metrics") or {}).get("train", ()):
            if (name, kind) == ("loss", "AverageMeter") and float(state["count"]) > 0:
                loss = float(state["sum"]) / float(state["count"])
                return loss if math.isfinite(loss) else None
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{checkpoint.path}: its entry extra_state.metrics is not as fairseq writes it") from None
    return None
