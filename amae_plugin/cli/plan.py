"""Estimate what training a recipe would take on a number of GPUs.

Estimates time, communication, processors, storage and memory of a pretraining recipe on GPUs that are not at hand, and
says how. The arithmetic of a step is counted on this machine's CPU; the rest follows from the makers' numbers and from
assumptions, which `amae benchmark` on the machine in question replaces by measurements.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace

from amae_plugin.cli.arguments import above_zero, add_config_dir, positive
from amae_plugin.errors import UserError

_UTILISATION = 0.2  # assumed; one H200 reached 0.185 with Audio-MAE, at 64 clips a step
_DECODE_RATE = 123.0
_FLAC = 0.6
"""Assumed size of a FLAC file, as a share of its 16-bit samples."""


GPUS = {
    "a100-sxm": ("A100 SXM", 312e12, 80e9, 300e9, 25e9),
    "h100-sxm": ("H100 SXM", 989e12, 80e9, 450e9, 50e9),
    "h200-sxm": ("H200 SXM", 989e12, 141e9, 450e9, 50e9),
    "b200": ("B200", 2250e12, 180e9, 900e9, 50e9),
}
"""Name, FLOP/s of dense bfloat16 products, bytes of memory, and bytes/s one way, over NVLink within a node and over the
GPU's InfiniBand adapter between nodes: the data sheets of NVIDIA's GPUs and of its DGX machines."""

_Lines = Iterator[tuple[str, str, str]]
"""Name, value, and how the value is found."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    recipe = "estimate for this pretraining recipe, a name in --config-dir or a file"
    add("--recipe", required=True, metavar="RECIPE", help=recipe)
    add_config_dir(parser)
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe by these settings")
    add(
        "--nodes",
        nargs="+",
        type=positive,
        default=[1],
        metavar="N",
        help="estimate for each of these numbers of nodes (default: 1)",
    )
    add(
        "--gpus-per-node",
        type=positive,
        default=8,
        metavar="G",
        help="estimate for nodes of this many GPUs (default: %(default)s)",
    )
    add("--gpu", choices=GPUS, default="h100-sxm", help="estimate for GPUs of this kind (default: %(default)s)")
    network = "assume this many Gbit/s one way from a node (default: an adapter a GPU, as in a DGX)"
    add("--network", type=above_zero, metavar="GBIT", help=network)
    speed = parser.add_mutually_exclusive_group().add_argument
    speed(
        "--utilisation",
        type=above_zero,
        metavar="SHARE",
        help=f"assume this share of the GPU's peak (default: {_UTILISATION})",
    )
    speed("--train-rate", type=above_zero, metavar="CLIPS", help="take this rate of one GPU, from `amae benchmark`")
    decoding = "assume this rate of one core, from `amae benchmark --data` (default: %(default)g)"
    add("--decode-rate", type=above_zero, default=_DECODE_RATE, metavar="CLIPS", help=decoding)
    clips = "assume a corpus of this many clips (default: %(default)s, as AudioSet-2M has)"
    add("--clips", type=positive, default=2_000_000, metavar="N", help=clips)
    add(
        "--clip-seconds",
        type=above_zero,
        default=10.0,
        metavar="S",
        help="assume clips of this many seconds (default: %(default)g)",
    )
    size = f"assume files of this size (default: {_FLAC} of 16-bit samples at 16 kHz)"
    add("--clip-bytes", type=above_zero, metavar="BYTES", help=size)


def run(args: argparse.Namespace) -> None:
    """Print an estimate for each number of nodes."""
    if (args.utilisation or 0) > 1:
        raise UserError(f"--utilisation {args.utilisation:g}: a share of the GPU's peak is at most 1")
    work = _read(args)
    _count(args, work)
    _print(f"{args.recipe}, clips of {work.frames} frames", _describe(args, work))
    for nodes in args.nodes:
        _print(f"\n{nodes} x {args.gpus_per_node} {GPUS[args.gpu][0]}", _estimate(args, work, nodes))


def _read(args: argparse.Namespace) -> SimpleNamespace:
    """Read what a recipe asks for; batches are measured in ``work.unit``, of which ``work.per_clip`` are a clip."""
    import numpy as np

    from amae_plugin.recipes import model_section, open_recipe, whole_number
    from amae_plugin.runs.statistics import read_front_end

    work = SimpleNamespace(clip_bytes=args.clip_bytes or args.clip_seconds * 2 * 16_000 * _FLAC)
    # The updates that a recipe computes from its manifest follow from --clips here.
    overrides = [f"++task.clips_per_epoch={args.clips}", *args.set]
    front_end, _ = read_front_end(args.recipe, args.config_dir, overrides)
    with open_recipe(args.recipe, args.config_dir, overrides) as config:
        work.settings = model_section(config)
        work.frames = work.settings["input_length"]
        if config.task.get("batch_length") not in (None, "fixed"):
            # A batch of clips of this length is cropped to whole patches.
            multiple, samples = whole_number(config, "task.length_multiple"), args.clip_seconds * front_end.sample_rate
            frames = int(front_end.frames_in(np.array(round(samples))))
            work.frames = max(1, min(frames, work.frames) // multiple) * multiple
            work.settings["input_length"] = work.frames
        work.unit, work.per_clip, work.limit_key = "clips", 1, "dataset.batch_size"
        if config.task.get("frames_per_update") is not None:
            work.unit, work.per_clip, work.limit_key = "frames", work.frames, "dataset.max_tokens"
        key = work.update_key = f"task.{work.unit}_per_update"
        work.update, work.limit = whole_number(config, key), whole_number(config, work.limit_key)
        work.clips = work.update / work.per_clip
        work.epoch = math.ceil(args.clips / work.clips)
        ends = {"max_epoch": work.epoch, "max_update": 1}
        ends = {name: times * (config.optimization.get(name) or math.inf) for name, times in ends.items()}
    work.end = min(ends, key=ends.__getitem__)
    work.updates = ends[work.end]
    if work.updates == math.inf:
        raise UserError(f"{args.recipe}: neither optimization.max_epoch nor max_update is above 0; --set one of them")
    uneven = [gpus for gpus in (nodes * args.gpus_per_node for nodes in args.nodes) if work.update % gpus]
    if uneven:
        raise UserError(f"{key}={work.update} is not a multiple of {uneven[0]} GPUs; --set {key}=... to one that is")
    return work


def _count(args: argparse.Namespace, work: SimpleNamespace) -> None:
    """Count the arithmetic of a step and the parameters of the model."""
    import torch

    from amae_plugin.benchmark.candidates import find_candidate
    from amae_plugin.benchmark.step import StepSpec, count_flops

    try:
        with torch.device("meta"):
            model = find_candidate(work.settings).build(work.settings)
    except ValueError as error:
        raise UserError(f"{args.recipe}: model: {error}") from None
    print("counting the arithmetic of a step", file=sys.stderr)
    batch = max(1, work.limit // work.per_clip)
    work.flops = count_flops(StepSpec(work.settings, "fp32", batch, threads=1, steps=0, device="cpu")) / batch
    work.weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    work.gradients, work.state = 4 * work.weights, 16 * work.weights


def _describe(args: argparse.Namespace, work: SimpleNamespace) -> _Lines:
    yield "parameters", _si(work.weights), "trained"
    yield "step", _si(work.flops, "FLOP/clip"), "counted: matrix products, forward and backward"
    frames = f" / {work.frames} frames a clip" if work.unit == "frames" else ""
    yield "update", f"{work.clips:,.4g} clips", f"{work.update_key}={work.update:,}{frames}"
    epochs = f"{work.updates / work.epoch:.3g} epochs of {args.clips:,} / {work.clips:,.4g}, rounded up"
    yield "updates", f"{work.updates:,}", f"{epochs} (optimization.{work.end})"
    yield "gradients", _si(work.gradients, "B"), "4 bytes (fp32) a parameter, exchanged once an update"
    adam = "16 bytes a parameter: weights, gradients, Adam's two moments; no activations"
    yield "state", _si(work.state, "B"), adam
    if not work.settings.get("bf16"):
        yield "precision", "bfloat16", "--set model.bf16=true; the recipe as it is computes in fp32"
    assumed = f"{args.clip_seconds:g} s of 16-bit samples at 16 kHz, FLAC assumed to take {_FLAC} of them"
    yield "clip", _si(work.clip_bytes, "B"), "--clip-bytes" if args.clip_bytes else assumed


def _estimate(args: argparse.Namespace, work: SimpleNamespace, nodes: int) -> _Lines:
    gpus = nodes * args.gpus_per_node
    _, peak, memory, nvlink, adapter = GPUS[args.gpu]
    share = work.update // gpus
    batch = batch_that_fits(share, work.limit)
    change = "" if batch == work.limit else f", since the recipe's {work.limit} does not divide that"
    at_a_time = f"{'needs ' if change else ''}{work.limit_key}={batch}{change}"
    yield "share of a GPU", f"{share:,} {work.unit}", f"{work.update:,} / {gpus}; {at_a_time}"

    speed = args.train_rate or (args.utilisation or _UTILISATION) * peak / work.flops
    assumed = "assumed; Audio-MAE reached 18.5% on an H200"
    source = "--train-rate" if args.train_rate else "--utilisation" if args.utilisation else assumed
    used = f"{speed * work.flops / peak:.1%} ({source}) of the maker's {_si(peak, 'FLOP/s')} (dense bfloat16)"
    yield "speed of a GPU", f"{speed:,.1f} clips/s", f"{used} / {_si(work.flops, 'FLOP')}"
    yield "speed of all", f"{gpus * speed:,.1f} clips/s", f"{gpus} times that, if none waits for clips"

    clips = share / work.per_clip
    compute, exchange = clips / speed, 0.0
    yield "computation", _si(compute, "s"), f"an update's {clips:,.4g} clips at that speed"
    network = 1e9 / 8 * args.network if args.network else args.gpus_per_node * adapter
    source = "--network" if args.network else "the maker's InfiniBand"
    links = (("NVLink", args.gpus_per_node, nvlink, "the maker's"), ("network", nodes, network, source))
    for name, ends, rate, said in links:
        if ends > 1:
            seconds = ring_seconds(work.gradients, gpus, rate)
            exchange = max(exchange, seconds)
            ring = f"ring all-reduce, 2 x {gpus - 1}/{gpus} x {_si(work.gradients, 'B')} / {_si(rate, 'B/s')}"
            yield name, _si(seconds, "s"), f"{ring}, {said}, one way"
    if gpus > 1:
        yield "exchange", f"{exchange / compute:.1%}", "of the computation's time, by the slowest link"
    bounds = (work.updates * seconds for seconds in (max(compute, exchange), compute + exchange))
    how = f"{work.updates:,} updates, with all or none of the exchange hidden; validation comes on top"
    yield "training", " to ".join(dict.fromkeys(map(_time, bounds))), how

    measured = " (measured on another machine, on clips of ten seconds)" if args.decode_rate == _DECODE_RATE else ""
    decoding = f"{speed:,.1f} clips/s / {args.decode_rate:g} of a core{measured}"
    yield "decoding", f"{speed / args.decode_rate:,.3g} cores/GPU", decoding
    reading = f"all nodes: {gpus * speed:,.1f} clips/s x {_si(work.clip_bytes, 'B')}"
    yield "reading", _si(gpus * speed * work.clip_bytes, "B/s"), reading
    yield "memory", f"{work.state / memory:.1%}", f"{_si(work.state, 'B')} of state / {_si(memory, 'B')}, the maker's"


def ring_seconds(data: float, devices: int, rate: float) -> float:
    """Time of a ring all-reduce: each device passes on (N - 1) / N of the data twice, to sum it and to share the sum.

    Args:
        data: bytes that each of the devices holds.
        devices: N.
        rate: bytes/s one way, from one device to the next.
    """
    return 2 * (devices - 1) / devices * data / rate


def batch_that_fits(share: int, limit: int) -> int:
    """Find the largest divisor of a device's share of an update that is within the limit of what fits."""
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)


def _print(title: str, lines: _Lines) -> None:
    print(title)
    for name, value, how in lines:
        print(f"  {name:<15} {value:>20}  {how}")


def _si(number: float, unit: str = "") -> str:
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
    scale, prefix = next((entry for entry in prefixes if number >= entry[0]), (1e-3, "m"))
    return f"{number / scale:,.4g} {prefix}{unit}"


def _time(seconds: float) -> str:
    scale, unit = next((entry for entry in ((3600, "h"), (60, "min")) if seconds >= entry[0]), (1, "s"))
    return f"{seconds / scale:,.3g} {unit}"
