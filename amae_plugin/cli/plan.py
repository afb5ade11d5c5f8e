"""``amae plan``: what training a recipe would take on a number of GPUs, and how that was computed."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amae_plugin.benchmark.plan import GPUS, Cluster, Estimate, Workload, batch_that_fits, clips_per_second
from amae_plugin.benchmark.step import StepSpec, count_flops
from amae_plugin.cli.arguments import above_zero, positive
from amae_plugin.data.log_mel import LogMel
from amae_plugin.errors import UserError
from amae_plugin.models.registry import find_system
from amae_plugin.recipes import model_section, open_recipe

_DESCRIPTION = """
Estimates time, communication, processors, storage and memory of a pretraining recipe on GPUs that are not here; every
line says how. The arithmetic of a step is counted, on this machine's CPU; the rest follows from the makers' numbers and
from assumptions, which are to be replaced by what `amae benchmark` measures on the machine in question.
"""

_UTILISATION = 0.4
_DECODE_RATE = 123.0
_FLAC = 0.6
"""Assumed size of a FLAC file over that of its 16-bit samples."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan``."""
    parser = subparsers.add_parser(
        "plan", help="what training a recipe would take on a number of GPUs", description=_DESCRIPTION
    )
    parser.add_argument("--recipe", required=True, help="of pretraining: name in --config-dir, or a file")
    parser.add_argument("--config-dir", type=Path, default=Path("config"), metavar="DIR", help="recipes (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument(
        "--nodes", nargs="+", type=positive, default=[1], metavar="N", help="an estimate for each number (%(default)s)"
    )
    parser.add_argument("--gpus-per-node", type=positive, default=8, metavar="G", help="(%(default)s)")
    parser.add_argument("--gpu", choices=GPUS, default="h100-sxm", help="(%(default)s)")
    parser.add_argument(
        "--network", type=above_zero, metavar="GBIT", help="Gbit/s one way from a node (an adapter a GPU, as in a DGX)"
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--utilisation", type=above_zero, metavar="SHARE", help=f"of the GPU's peak: an assumption ({_UTILISATION})"
    )
    speed.add_argument(
        "--train-rate", type=above_zero, metavar="CLIPS", help="a second on one GPU, as `amae benchmark` measures it"
    )
    parser.add_argument(
        "--decode-rate",
        type=above_zero,
        default=_DECODE_RATE,
        metavar="CLIPS",
        help="a second of one core, as `amae benchmark --data` measures it (%(default)g)",
    )
    parser.add_argument("--clips", type=positive, default=2_000_000, help="of the corpus (%(default)s: AudioSet-2M)")
    parser.add_argument(
        "--clip-seconds", type=above_zero, default=10.0, metavar="S", help="length of a clip (%(default)g)"
    )
    parser.add_argument(
        "--clip-bytes", type=above_zero, metavar="BYTES", help=f"of a file ({_FLAC} of 16-bit samples at 16 kHz)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.utilisation is not None and args.utilisation > 1:
        raise UserError(f"--utilisation {args.utilisation:g}: a share of the GPU's peak is at most 1")
    recipe = _read(args)
    # All that can be wrong is found before the arithmetic is counted, which takes seconds.
    fits = {nodes: recipe.batch_of_gpu(nodes * args.gpus_per_node) for nodes in args.nodes}
    try:
        with torch.device("meta"):
            model = find_system(recipe.settings).model(recipe.settings)
    except ValueError as error:
        raise UserError(f"{args.recipe}: model: {error}") from None
    print("counting the arithmetic of a step", file=sys.stderr)
    spec = StepSpec(recipe.settings, "fp32", recipe.batch, threads=1, steps=0, device="cpu")
    workload = Workload(
        flops_per_clip=count_flops(spec) / recipe.batch,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        clips_per_update=recipe.clips_per_update,
        updates=recipe.updates,
    )
    clip_bytes = args.clip_bytes or args.clip_seconds * LogMel().sample_rate * 2 * _FLAC
    gpu = GPUS[args.gpu]
    rate = args.train_rate or clips_per_second(gpu, args.utilisation or _UTILISATION, workload.flops_per_clip)
    _print_workload(args, recipe, workload, clip_bytes)
    for nodes in args.nodes:
        network = 1e9 * args.network if args.network else args.gpus_per_node * gpu.infiniband_bits_per_second
        cluster = Cluster(gpu, nodes, args.gpus_per_node, network)
        _print_estimate(args, recipe, Estimate(workload, cluster, rate, args.decode_rate, clip_bytes), fits[nodes])
    return 0


@dataclass(frozen=True)
class _Recipe:
    """What is taken from a recipe.

    Attributes:
        settings: the model section, ``input_length`` being the frames of a clip.
        frames: of a clip, as the model gets it.
        batch_key: the setting that says how much fits a device at a time.
        limit: what it says, in ``unit``.
        update_key: the setting of the global batch.
        per_update: what it says, in ``unit``.
        unit: ``"clips"`` or ``"frames"``.
        updates: of the run.
        updates_how: in words.
    """

    settings: dict[str, Any]
    frames: int
    batch_key: str
    limit: int
    update_key: str
    per_update: int
    unit: str
    updates: int
    updates_how: str

    @property
    def clips_per_update(self) -> float:
        return self.per_update / self._unit_per_clip

    @property
    def batch(self) -> int:
        """Clips that fit a device at a time."""
        return max(1, self.limit // self._unit_per_clip)

    @property
    def _unit_per_clip(self) -> int:
        return self.frames if self.unit == "frames" else 1

    def batch_of_gpu(self, gpus: int) -> int:
        """What a GPU computes at a time, in ``unit``.

        Raises:
            UserError: the GPUs cannot have equal shares of an update.
        """
        if self.per_update % gpus:
            raise UserError(
                f"{self.update_key}={self.per_update} is not a multiple of {gpus} GPUs; choose one that is: "
                f"--set {self.update_key}=..."
            )
        return batch_that_fits(self.per_update // gpus, self.limit)


def _read(args: argparse.Namespace) -> _Recipe:
    from omegaconf import OmegaConf

    with open_recipe(args.recipe, args.config_dir, args.set) as config:
        settings = model_section(config)
        find_system(settings)

        def value(key: str) -> Any:
            return OmegaConf.select(config, key)

        in_frames = value("task.frames_per_update") is not None
        update_key = "task.frames_per_update" if in_frames else "task.clips_per_update"
        batch_key = "dataset.max_tokens" if in_frames else "dataset.batch_size"
        cropped = value("task.batch_length") not in (None, "fixed")
        for key in (update_key, batch_key, *(["task.length_multiple"] if cropped else [])):
            if not isinstance(value(key), int) or value(key) < 1:
                raise UserError(f"{args.recipe}: {key} must be a whole number from 1 on, not {value(key)}")
        frames = settings["input_length"]
        if cropped:
            frames = _whole_patches(args.clip_seconds, frames, value("task.length_multiple"))
        per_update = value(update_key)
        # What a recipe computes from its manifest is computed from --clips here.
        written = OmegaConf.to_container(config.optimization, resolve=False)
        from_manifest = str(written.get("max_update")).startswith("${amae.updates:")
        max_update = None if from_manifest else value("optimization.max_update")
        max_epoch = value("optimization.max_epoch")
    clips_per_update = per_update / frames if in_frames else per_update
    limits = []
    if max_update:
        epochs = max_update * clips_per_update / args.clips
        limits.append((max_update, f"optimization.max_update, {epochs:.3g} epochs of {args.clips:,} clips"))
    if max_epoch:
        per_epoch = math.ceil(args.clips / clips_per_update)
        how = f"{max_epoch} epochs (optimization.max_epoch) of {args.clips:,} / {clips_per_update:,.4g}, rounded up"
        limits.append((max_epoch * per_epoch, how))
    if not limits:
        raise UserError(
            f"{args.recipe}: neither optimization.max_epoch nor optimization.max_update is a number; --set one of them"
        )
    updates, updates_how = min(limits)
    return _Recipe(
        settings={**settings, "input_length": frames},
        frames=frames,
        batch_key=batch_key,
        limit=value(batch_key),
        update_key=update_key,
        per_update=per_update,
        unit="frames" if in_frames else "clips",
        updates=updates,
        updates_how=updates_how,
    )


def _whole_patches(seconds: float, target_length: int, multiple: int) -> int:
    """Frames of a batch of clips of that length, cropped to whole patches."""
    features = LogMel()
    samples = round(seconds * features.sample_rate)
    frames = max(1, 1 + (samples - features.window_samples) // features.shift_samples)
    return max(1, min(frames, target_length) // multiple) * multiple


def _print_workload(args: argparse.Namespace, recipe: _Recipe, workload: Workload, clip_bytes: float) -> None:
    clips = f"{workload.clips_per_update:,.4g} clips"
    of_frames = f"{recipe.update_key}={recipe.per_update:,}" + (
        f" / {recipe.frames} frames a clip" if recipe.unit == "frames" else ""
    )
    size = f"{args.clip_seconds:g} s of 16-bit samples at 16 kHz, FLAC assumed to take {_FLAC} of them"
    print(f"{args.recipe}, clips of {recipe.frames} frames")
    _line("parameters", f"{workload.parameters / 1e6:,.4g} M", "that are trained")
    _line("step", f"{workload.flops_per_clip / 1e9:,.4g} GFLOP/clip", "counted: matrix products, forward and backward")
    _line("update", clips, of_frames)
    _line("updates", f"{workload.updates:,}", recipe.updates_how)
    _line("gradients", _bytes(workload.gradient_bytes), "4 bytes (fp32) a parameter, exchanged once an update")
    state = "16 bytes a parameter: weights, gradients, Adam's two moments; no activations"
    _line("state", _bytes(workload.state_bytes), state)
    if not recipe.settings.get("bf16"):
        _line("precision", "bfloat16", "--set model.bf16=true; the recipe as it is computes in fp32")
    _line("clip", _bytes(clip_bytes), "--clip-bytes" if args.clip_bytes else size)


def _print_estimate(args: argparse.Namespace, recipe: _Recipe, estimate: Estimate, batch: int) -> None:
    cluster, work = estimate.cluster, estimate.workload
    gpu, gpus = cluster.gpu, cluster.gpus
    print(f"\n{cluster.nodes} x {cluster.gpus_per_node} {gpu.title}")
    at_a_time = f"{recipe.batch_key}={batch}"
    if batch != recipe.limit:
        at_a_time = f"needs {at_a_time}, since the recipe's {recipe.limit} does not divide that"
    _line(
        "share of a GPU", f"{recipe.per_update // gpus:,} {recipe.unit}", f"{recipe.per_update:,} / {gpus}; {at_a_time}"
    )
    peak = f"{gpu.peak_flops / 1e12:,.4g} TFLOP/s (dense bfloat16)"
    if args.train_rate:
        how = f"--train-rate, {estimate.utilisation:.1%} of the maker's {peak}"
    else:
        said = "--utilisation" if args.utilisation else "assumed"
        how = f"{estimate.utilisation:.1%} ({said}) of the maker's {peak} / {work.flops_per_clip / 1e9:,.4g} GFLOP"
    _line("speed of a GPU", f"{_number(estimate.clips_per_second_per_gpu)} clips/s", how)
    _line(
        "speed of all", f"{_number(estimate.clips_per_second)} clips/s", f"{gpus} times that, if none waits for clips"
    )
    _line(
        "computation", _ms(estimate.compute_seconds), f"of an update: {estimate.clips_per_gpu:,.4g} clips at that speed"
    )
    ring = f"2 x {gpus - 1}/{gpus} x {_bytes(work.gradient_bytes)}"
    if cluster.gpus_per_node > 1:
        rate = f"{_bytes(cluster.nvlink_bytes_per_second)}/s"
        _line("NVLink", _ms(estimate.nvlink_seconds), f"ring all-reduce, {ring} / {rate}, the maker's, one way")
    if cluster.nodes > 1:
        said = "--network" if args.network else "the maker's InfiniBand"
        rate = f"{_bytes(cluster.network_bytes_per_second)}/s"
        _line("network", _ms(estimate.network_seconds), f"between nodes, {ring} / {rate}, {said}, one way")
    hours = f"{work.updates:,} updates"
    if gpus > 1:
        ratio = estimate.exchange_seconds / estimate.compute_seconds
        _line("exchange", f"{ratio:.1%}", "of the computation's time, by the slowest link")
        hours += ", with all or none of the exchange hidden"
    _line("training", _duration(*estimate.seconds), f"{hours}; validation comes on top")
    decoding = f"{_number(estimate.clips_per_second_per_gpu)} clips/s / {args.decode_rate:g} of a core"
    if args.decode_rate == _DECODE_RATE:
        decoding += " (README.md: measured on clips of ten seconds)"
    _line("decoding", f"{estimate.cores_per_gpu:,.3g} cores/GPU", decoding)
    storage = f"{_number(estimate.clips_per_second)} clips/s x {_bytes(estimate.clip_bytes)}"
    _line("reading", f"{_bytes(estimate.storage_bytes_per_second)}/s", f"by all nodes: {storage}")
    memory = f"{_bytes(work.state_bytes)} of state / {_bytes(gpu.memory_bytes)}, the maker's"
    _line("memory", f"{work.state_bytes / gpu.memory_bytes:.1%}", memory)


def _line(name: str, value: str, how: str) -> None:
    print(f"  {name:<15} {value:>17}  {how}")


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _duration(least: float, most: float) -> str:
    """A range of seconds, in the largest unit of which it is one at least."""
    unit, name = next(((unit, name) for unit, name in ((3600, "h"), (60, "min")) if most >= unit), (1, "s"))
    ends = dict.fromkeys(f"{seconds / unit:,.3g}" for seconds in (least, most))
    return f"{' to '.join(ends)} {name}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.4g} ms"


def _bytes(number: float) -> str:
    """A number of bytes in decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:,.4g} {name}"
    return f"{number:,.4g} B"
