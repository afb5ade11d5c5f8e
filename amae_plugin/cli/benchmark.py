"""``amae benchmark``: how fast a recipe's model trains here, or how fast a manifest's clips become batches."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amae_plugin.benchmark.candidates import TEXTBOOK, TWO_PASS_SSAST, system_of
from amae_plugin.benchmark.data_path import measure_loader, measure_stages
from amae_plugin.benchmark.step import PRECISIONS, StepSpec, alone, count_flops, measure_step
from amae_plugin.cli.arguments import natural, positive
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.recipes import model_settings

# Files of config/model, which a recipe takes for its own.
_COMPARED = ("amae_audio_mae", "amae_mae_ast", "amae_ssast")

_DESCRIPTION = """
Without --data: one optimizer step (forward, loss, backward, AdamW) of a recipe's model on random input, each precision
in a process of its own. With --compare: the same of all systems at the recipe's input, against the textbook form and
each other. With --data: clips per second of the data path.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``benchmark``."""
    parser = subparsers.add_parser(
        "benchmark", help="speed of a recipe's training step, or of the data path", description=_DESCRIPTION
    )
    parser.add_argument("--batch", type=positive, default=16, help="clips of a step or a batch (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")

    step = parser.add_argument_group("training step")
    step.add_argument(
        "--recipe", default="pretrain_audio_mae_base", help="name in --config-dir, or a file (%(default)s)"
    )
    step.add_argument("--config-dir", type=Path, default=Path("config"), metavar="DIR", help="recipes (%(default)s)")
    step.add_argument("--threads", type=positive, default=2, help="CPU threads (%(default)s)")
    step.add_argument("--steps", type=positive, default=5, help="timed steps, after a warm-up (%(default)s)")
    step.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    step.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="(%(default)s)")
    step.add_argument(
        "--reference", action="store_true", help="also a plain PyTorch model of the same sizes in fp32, as a yardstick"
    )
    step.add_argument(
        "--compare",
        action="store_true",
        help=f"all systems: {', '.join(_COMPARED)}, {TWO_PASS_SSAST}, and the yardstick",
    )
    step.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe, e.g. model.decoder=hybrid"
    )

    data = parser.add_argument_group("data path")
    data.add_argument("--data", type=Path, metavar="MANIFEST", help="measure the data path with these clips")
    data.add_argument("--workers", type=natural, default=os.cpu_count(), help="of the data loader (%(default)s)")
    data.add_argument("--clips", type=positive, default=500, help="clips drawn at random (%(default)s)")
    data.add_argument("--target-length", type=positive, default=1024, help="frames of a clip (%(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.compare and args.data is not None:
        raise UserError("--compare measures training steps and --data the data path: give one of them")
    measure = _measure_data if args.data is not None else _compare if args.compare else _measure_training
    figures = measure(args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measure_training(args: argparse.Namespace) -> dict[str, Any]:
    settings = model_settings(args.recipe, args.config_dir, args.set)
    system_of(settings)
    device = _device(args.device)
    reference = _measure_textbook(args, settings) if args.reference else None
    precisions: dict[str, dict[str, Any]] = {
        p: alone(measure_step, _spec(args, settings, p)) for p in dict.fromkeys(args.precision)
    }
    print("counting the arithmetic of a step", file=sys.stderr)
    flops = count_flops(_spec(args, settings, "fp32"))
    for figures in precisions.values():
        figures["flops_share"] = flops / figures["seconds"] / figures["matrix_flops_per_second"]
        _add_shares(figures, reference)
    result = {
        **_circumstances(args, device),
        "settings": settings,
        "flops": flops,
        "precisions": precisions,
        "reference": reference,
    }
    _print_training(result)
    return result


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    settings = {name: model_settings(args.recipe, args.config_dir, [*args.set, f"model={name}"]) for name in _COMPARED}
    settings[TWO_PASS_SSAST] = {**settings["amae_ssast"], "_name": TWO_PASS_SSAST}
    device = _device(args.device)
    reference = _measure_textbook(args, settings["amae_audio_mae"])
    systems: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in settings}
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for precision in dict.fromkeys(args.precision):
        for name, chosen in settings.items():
            systems[name][precision] = alone(measure_step, _spec(args, chosen, precision))
            _add_shares(systems[name][precision], reference)
        mae_ast = systems["amae_mae_ast"][precision]
        ratios[precision] = {
            name: {
                "times_faster": systems[name][precision]["seconds"] / mae_ast["seconds"],
                "memory_share": mae_ast["peak_bytes"] / systems[name][precision]["peak_bytes"],
            }
            for name in ("amae_ssast", TWO_PASS_SSAST)
        }
    result = {
        **_circumstances(args, device),
        "settings": settings,
        "reference": reference,
        "systems": systems,
        "mae_ast_against": ratios,
    }
    print(comparison_table(result))
    return result


def comparison_table(result: Mapping[str, Any]) -> str:
    """The figures of ``--compare`` as a table of Markdown, and how MAE-AST stands to SSAST in words."""
    rows = [
        ["", "seconds a step", "clips/s", "peak memory", "time / textbook", "memory / textbook", "masks"],
        ["---"] * 7,
    ]

    def add(name: str, figures: Mapping[str, Any]) -> None:
        measured = [f"{figures['seconds']:.4g}", f"{figures['clips_per_second']:.3g}"]
        measured += [f"{figures['peak_bytes'] / 2**30:.3g} GiB"]
        shares = [f"{figures[key]:.2f}" if key in figures else "1" for key in ("time_ratio", "memory_ratio")]
        rows.append([name, *measured, *shares, f"{figures['mask_share']:.2%}" if "mask_share" in figures else ""])

    add("textbook fp32", result["reference"])
    for name, precisions in result["systems"].items():
        for precision, figures in precisions.items():
            add(f"{name} {precision}", figures)
    lines = [f"{result['device']}, batch {result['batch']}, {result['threads']} CPU threads", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    for precision, against in result["mae_ast_against"].items():
        for name, ratio in against.items():
            lines.append(
                f"{precision}: amae_mae_ast takes 1/{ratio['times_faster']:.2f} of the time of {name} and "
                f"{ratio['memory_share']:.2f} of its memory"
            )
    return "\n".join(lines)


def _circumstances(args: argparse.Namespace, device: str) -> dict[str, Any]:
    return {
        "recipe": args.recipe,
        "device": device,
        "batch": args.batch,
        "threads": args.threads,
        "steps": args.steps,
    }


def _spec(args: argparse.Namespace, settings: dict[str, Any], precision: str) -> StepSpec:
    return StepSpec(settings, precision, args.batch, args.threads, args.steps, args.device)


def _measure_textbook(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    return alone(measure_step, _spec(args, {**settings, "_name": TEXTBOOK, "compile": False}, "fp32"))


def _add_shares(figures: dict[str, Any], reference: Mapping[str, Any] | None) -> None:
    """Add what the figures are of the step's time and of the textbook's figures."""
    if figures["mask_seconds"] is not None:
        figures["mask_share"] = figures["mask_seconds"] / figures["seconds"]
    if reference is not None:
        figures["time_ratio"] = figures["seconds"] / reference["seconds"]
        figures["cpu_time_ratio"] = figures["cpu_seconds"] / reference["cpu_seconds"]
        figures["memory_ratio"] = figures["peak_bytes"] / reference["peak_bytes"]


def _print_training(result: dict[str, Any]) -> None:
    print(f"{result['recipe']} on {result['device']}, batch {result['batch']}, {result['threads']} CPU threads")
    print(f"one step is {result['flops'] / 1e9:,.4g} GFLOP of matrix products")
    rows = dict(result["precisions"])
    if result["reference"]:
        rows = {"textbook fp32": result["reference"], **rows}
    for name, row in rows.items():
        parts = [
            f"{row['seconds']:.4g} s a step",
            f"{row['clips_per_second']:.4g} clips/s",
            f"{row['peak_bytes'] / 2**30:.3g} GiB peak",
        ]
        if "flops_share" in row:
            rate = row["matrix_flops_per_second"] / 1e9
            parts.append(f"{row['flops_share']:.0%} of the {rate:,.4g} GFLOP/s of a large matrix product")
        if "mask_share" in row:
            parts.append(f"masks {row['mask_share']:.2%} of the time")
        if "time_ratio" in row:
            parts.append(f"{row['time_ratio']:.2f} of the textbook's time, {row['memory_ratio']:.2f} of its memory")
        print(f"{name}: {', '.join(parts)}")


def _measure_data(args: argparse.Namespace) -> dict[str, Any]:
    manifest = Manifest.read(args.data)
    if not len(manifest):
        raise UserError(f"{args.data}: holds no clips")
    dataset = AudioDataset(
        manifest,
        ModelInput(target_length=args.target_length),
        on_bad_audio="skip",
        max_bad_audio=len(manifest),
    )
    clips = min(args.clips, len(manifest))
    indices = np.sort(np.random.default_rng(1).choice(len(manifest), clips, replace=False)).tolist()
    # The loader first: it reads every file twice, so that the stages find them in memory as its timed pass does.
    loader = measure_loader(dataset, indices, args.batch, args.workers)
    stages = measure_stages(dataset, indices, args.batch)
    figures = {
        "manifest": str(args.data),
        "clips": clips,
        "target_length": args.target_length,
        "batch": args.batch,
        "workers": args.workers,
        "clips_per_second_per_worker": stages,
        "loader_clips_per_second": loader,
    }
    print(f"{clips} clips, {stages['skipped']} unreadable; clips per second of one worker, files cached:")
    print(", ".join(f"{stage} {stages[stage]:,.4g}" for stage in ("decode", "features", "collate", "together")))
    print(f"data loader with {args.workers} workers: {loader:,.4g} clips per second")
    return figures


def _device(name: str) -> str:
    """A device in words.

    Raises:
        UserError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: must be cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: PyTorch finds {torch.cuda.device_count()} CUDA devices")
    return torch.cuda.get_device_name(device)
