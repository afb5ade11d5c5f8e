"""Measure the speed of training or of the data path on this machine.

Measures an optimizer step (forward, loss, backward, AdamW) of a recipe's model on random input, each precision in a
process of its own. With --compare it measures all systems, against the textbook form and each other, on the recipe's
input or that of their published models; with --data, the clips per second of the data path.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amae_plugin.cli.arguments import add_config_dir, add_workers, device, positive
from amae_plugin.cli.choices import PRECISIONS
from amae_plugin.errors import UserError
from amae_plugin.files import try_file, write_json, writing

if TYPE_CHECKING:
    from amae_plugin.benchmark.step import StepSpec

Figures = dict[str, Any]

_COLUMNS = {
    "seconds": ("seconds a step", "{:.4g}"),
    "cpu_seconds": ("of the processor", "{:.4g}"),
    "clips_per_second": ("clips/s", "{:.4g}"),
    "fed_clips_per_second": ("clips/s with the loader", "{:.4g}"),
    "gflop_per_clip": ("GFLOP a clip", "{:,.4g}"),
    "peak_gib": ("peak memory", "{:.3g} GiB"),
    "flops_share": ("of the rate of a large matrix product", "{:.0%}"),
    "time_ratio": ("time / textbook", "{:.2f}"),
    "cpu_time_ratio": ("processor time / textbook", "{:.2f}"),
    "memory_ratio": ("memory / textbook", "{:.2f}"),
    "mask_share": ("masks", "{:.2%} of the time"),
}
"""Headings and formats of the figures that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="take this many clips a step or a batch (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")

    group = parser.add_argument_group("training step")
    add = group.add_argument
    recipe = "measure the model of this recipe, a name in --config-dir or a file (default: %(default)s)"
    add("--recipe", default="pretrain_audio_mae_base", metavar="RECIPE", help=recipe)
    add_config_dir(group)
    add(
        "--threads",
        type=positive,
        default=2,
        metavar="N",
        help="compute in this many threads on the CPU (default: %(default)s)",
    )
    add(
        "--steps",
        type=positive,
        default=5,
        metavar="N",
        help="time this many steps, after a warm-up (default: %(default)s)",
    )
    add(
        "--device",
        type=device,
        default="cpu",
        metavar="DEVICE",
        help="measure on this device: auto, cpu, cuda or cuda:N (default: %(default)s)",
    )
    precisions = f"measure in these precisions, of {', '.join(PRECISIONS)} (default: all)"
    add("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="NAME", help=precisions)
    add("--reference", action="store_true", help="add a plain PyTorch model of the same sizes in fp32, the yardstick")
    add("--compare", action="store_true", help="compare all systems, and SSAST in two passes")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe by these settings, such as model.decoder=hybrid",
    )
    add("--feed", type=Path, metavar="MANIFEST", help="also measure steps that a data loader feeds with these clips")
    trace = "also write a profile of a step in the first precision, for ui.perfetto.dev and chrome://tracing"
    add("--profile", type=Path, metavar="FILE", help=trace)

    data_path = parser.add_argument_group("data path")
    add = data_path.add_argument
    add("--data", type=Path, metavar="MANIFEST", help="measure the data path with these clips")
    add_workers(data_path, "decode")
    add(
        "--clips", type=positive, default=500, metavar="N", help="draw this many clips at random (default: %(default)s)"
    )
    frames = "take this many frames of a clip (default: %(default)s)"
    add("--target-length", type=positive, default=1024, metavar="N", help=frames)


def run(args: argparse.Namespace) -> None:
    """Print the figures as a table."""
    if args.profile is not None and (args.compare or args.data is not None):
        raise UserError("--profile is of one recipe's training step: leave out --compare and --data")
    if args.compare and args.data is not None:
        raise UserError("--compare measures training steps and --data the data path: give one of them")
    from amae_plugin.modules.compute import choose_device

    args.device = choose_device(args.device)
    for path in filter(None, (args.json, args.profile)):  # before the work
        try_file(path)
    figures = (_measure_data if args.data is not None else _compare if args.compare else _measure_training)(args)
    if args.json:
        with writing(args.json):
            write_json(args.json, figures)


def _measure_training(args: argparse.Namespace) -> Figures:
    from amae_plugin.benchmark.candidates import TEXTBOOK, find_candidate
    from amae_plugin.recipes import model_settings

    settings = model_settings(args.recipe, args.config_dir, args.set)
    find_candidate(settings)
    reference = _measure_all(args, {**settings, "_name": TEXTBOOK}, ["fp32"], None)["fp32"] if args.reference else None
    rows = _measure_all(args, settings, args.precision, reference)
    flops = rows[args.precision[0]]["flops"]
    result = {**_circumstances(args), "settings": settings, "flops": flops, "precisions": rows, "reference": reference}
    print(f"one step of {args.recipe} is {flops / 1e9:,.4g} GFLOP of matrix products")
    _print_table(result, {**({"textbook fp32": reference} if reference else {}), **rows})
    return result


def _compare(args: argparse.Namespace) -> Figures:
    from amae_plugin.benchmark.candidates import CANDIDATES, FASTER, SLOWER, TEXTBOOK

    settings = {name: _candidate_settings(args, name) for name in CANDIDATES}
    reference = _measure_all(args, settings.pop(TEXTBOOK), ["fp32"], None)["fp32"]
    systems = {name: _measure_all(args, model, args.precision, reference) for name, model in settings.items()}
    result = {**_circumstances(args), "settings": settings, "reference": reference, "systems": systems}
    rows = {f"{name} {precision}": row for name, system in systems.items() for precision, row in system.items()}
    _print_table(result, {"textbook fp32": reference, **rows})
    ratios: dict[str, dict[str, Figures]] = {precision: {} for precision in args.precision}
    for precision, name in itertools.product(ratios, SLOWER):
        fast, slow = systems[FASTER][precision], systems[name][precision]
        faster, memory = slow["seconds"] / fast["seconds"], fast["peak_bytes"] / slow["peak_bytes"]
        ratios[precision][name] = {"times_faster": faster, "memory_share": memory}
        print(f"{precision}: {FASTER} takes 1/{faster:.2f} of the time of {name} and {memory:.2f} of its memory")
    return {**result, f"{FASTER.removeprefix('amae_')}_against": ratios}


def _candidate_settings(args: argparse.Namespace, name: str) -> Figures:
    from amae_plugin.benchmark.candidates import CANDIDATES
    from amae_plugin.recipes import model_settings

    candidate = CANDIDATES[name]
    own_length = [f"task.target_length={candidate.target_length}"] if candidate.target_length else []
    changes = [f"model={candidate.sizes}", *own_length, *args.set]
    return {**model_settings(args.recipe, args.config_dir, changes), "_name": name}


def _measure_all(
    args: argparse.Namespace, settings: Figures, precisions: Sequence[str], reference: Figures | None
) -> dict[str, Figures]:
    """Measure a step in each precision, and count its arithmetic once."""
    from amae_plugin.benchmark.step import count_flops

    rows = {precision: _measure(args, settings, precision, reference) for precision in dict.fromkeys(precisions)}
    print("counting the arithmetic of a step", file=sys.stderr)
    flops = count_flops(_spec(args, settings, "fp32"))
    for row in rows.values():
        row["flops"], row["gflop_per_clip"] = flops, flops / args.batch / 1e9
        row["flops_share"] = flops / row["seconds"] / row["matrix_flops_per_second"]
    return rows


def _measure(args: argparse.Namespace, settings: Figures, precision: str, reference: Figures | None) -> Figures:
    """Measure a step in a process of its own, and relate it to the reference."""
    from amae_plugin.benchmark.step import measure_in_new_process

    row: Figures = measure_in_new_process(_spec(args, settings, precision))
    row["peak_gib"] = row["peak_bytes"] / 2**30
    if row["mask_seconds"] is not None:
        row["mask_share"] = row["mask_seconds"] / row["seconds"]
    if reference is not None:
        for ratio, figure in (("time", "seconds"), ("cpu_time", "cpu_seconds"), ("memory", "peak_bytes")):
            row[f"{ratio}_ratio"] = row[figure] / reference[figure]
    return row


def _spec(args: argparse.Namespace, settings: Figures, precision: str) -> StepSpec:
    from amae_plugin.benchmark.candidates import TEXTBOOK
    from amae_plugin.benchmark.step import StepSpec

    measured = (args.batch, args.threads, args.steps, str(args.device))
    if settings["_name"] == TEXTBOOK:  # the yardstick
        return StepSpec(settings, precision, *measured)
    profile = args.profile if precision == args.precision[0] else None
    return StepSpec(settings, precision, *measured, profile, args.feed, args.workers)


def _circumstances(args: argparse.Namespace) -> Figures:
    import torch

    on_cpu = args.device.type == "cpu"
    device = f"CPU ({torch.backends.cpu.get_cpu_capability()})" if on_cpu else torch.cuda.get_device_name(args.device)
    return {"device": device, **{name: vars(args)[name] for name in ("recipe", "batch", "threads", "steps")}}


def _print_table(result: Figures, rows: Mapping[str, Figures]) -> None:
    """Print figures as a table of Markdown, without the columns that no row has."""
    columns = {
        key: column for key, column in _COLUMNS.items() if any(row.get(key) is not None for row in rows.values())
    }
    lines = [["", *(heading for heading, _ in columns.values())], ["---"] * (1 + len(columns))]
    for name, row in rows.items():
        lines.append(
            [name, *("" if row.get(key) is None else form.format(row[key]) for key, (_, form) in columns.items())]
        )
    print(f"{result['device']}, batch {result['batch']}, {result['threads']} CPU threads\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")


def _measure_data(args: argparse.Namespace) -> Figures:
    import numpy as np

    from amae_plugin.benchmark.data_path import measure_loader, measure_stages, measure_worker
    from amae_plugin.data.dataset import AudioDataset
    from amae_plugin.data.images import ImageInput
    from amae_plugin.data.log_mel import ModelInput
    from amae_plugin.data.manifest import Manifest

    manifest = Manifest.read(args.data).require_clips()
    wanted = ModelInput(target_length=args.target_length, image=ImageInput() if manifest.has_pictures else None)
    dataset = AudioDataset(manifest, wanted, on_bad_audio="skip", max_bad_audio=len(manifest))
    clips = min(args.clips, len(manifest))
    indices = np.sort(np.random.default_rng(1).choice(len(manifest), clips, replace=False)).tolist()
    # The loader first: it reads every file twice, so that the stages find them in memory as its timed pass does.
    loader = measure_loader(dataset, indices, args.batch, args.workers)
    stages = measure_stages(dataset, indices, args.batch)
    worker = measure_worker(dataset, indices, args.batch)
    print(f"{clips} clips, {stages['skipped']} unreadable; clips per second of one worker, files cached:")
    print(", ".join(f"{stage} {rate:,.4g}" for stage, rate in stages.items() if stage != "skipped"))
    places = ", ".join(f"task.features={place} {rate:,.4g}" for place, rate in worker.items())
    print(f"augmented clips per second of a worker's processor time: {places}")
    print(f"data loader with {args.workers} workers: {loader:,.4g} clips per second")
    given = {name: vars(args)[name] for name in ("target_length", "batch", "workers")}
    rates = {"clips_per_second_per_worker": stages, "loader_clips_per_second": loader}
    return {"manifest": str(args.data), "clips": clips, **given, **rates, "worker_clips_per_processor_second": worker}
