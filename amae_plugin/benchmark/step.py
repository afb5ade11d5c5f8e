"""One optimizer step of a model: its time, memory and arithmetic, and the machine's rate at matrix products."""

import functools
import math
import multiprocessing
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from amae_plugin.benchmark.candidates import find_candidate
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.processes import end_with_parent, killed_with_parent, signals_held_back
from amae_plugin.progress import tqdm

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

_WARM_UP_STEPS = 2
_MASK_REPEATS = 10
_READ_AHEAD = 2  # batches that each worker of a DataLoader prepares
_MATRIX_SECONDS = 1.0
_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class StepSpec:
    """A measurement.

    Attributes:
        settings: a recipe's model section, its interpolations resolved, with ``input_length`` and ``num_mel_bins``.
        precision: ``"fp32"`` or ``"bf16"`` (weights and optimizer stay in fp32).
        batch: clips a step.
        threads: CPU threads.
        steps: number of timed steps, after the warm-up.
        device: name of the device.
        profile: file for a profile of one more step; None for none.
        manifest: clips for as many more steps, which a data loader feeds; None for none.
        workers: processes of that loader.
    """

    settings: Mapping[str, Any]
    precision: str
    batch: int
    threads: int
    steps: int
    device: str
    profile: Path | None = None
    manifest: Path | None = None
    workers: int = 0


def measure_in_new_process(spec: StepSpec) -> dict[str, float | int | None]:
    """Call :func:`measure_step` in a new process, so that the peak memory is that of this measurement.

    Raises:
        UserError: the system ended the process, most likely for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_worker) as pool:
        try:
            with signals_held_back():  # a process that is half started is not among the children that are ended
                measured = pool.submit(measure_step, spec)
            return measured.result()
        except BrokenProcessPool:
            reason = f"the system ended the measurement in {spec.precision}, most likely for want of memory"
            raise UserError(f"{reason}; try a --batch below {spec.batch}") from None
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # leaving the block waits for it
            raise


def _prepare_worker() -> None:
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own is one between processes, which stays behind when this one is killed


def measure_step(spec: StepSpec) -> dict[str, float | int | None]:
    """Measure time and memory of forward pass, loss, backward pass and AdamW.

    Returns:
        ``seconds`` (median of the timed steps), ``cpu_seconds`` (median of the processor time of all threads, which
        other programs disturb less), ``clips_per_second``, ``warm_up_seconds`` (compilation and first steps),
        ``fed_clips_per_second`` (of the steps that a data loader feeds; None without them),
        ``peak_bytes`` (the process's memory, or the GPU's allocations), ``mask_seconds`` (time to draw the masks of a
        batch; None if the model cannot draw them separately) and ``matrix_flops_per_second`` (:func:`matrix_rate`).
    """
    torch.manual_seed(0)
    torch.set_num_threads(spec.threads)
    device = torch.device(spec.device)
    candidate = find_candidate(spec.settings)
    model: Any = candidate.build({**spec.settings, "bf16": spec.precision == "bf16"}).to(device).train()
    if candidate.optimized and spec.settings.get("compile"):
        model.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=candidate.optimized or None)
    inputs = tuple(tensor.to(device) for tensor in candidate.inputs(spec.settings, spec.batch))

    def step(*inputs: Tensor) -> None:
        candidate.loss(model, *inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    what = f"{spec.settings['_name']} {spec.precision}: steps"
    steps = tqdm(range(_WARM_UP_STEPS + spec.steps), what, unit="step")
    times = [_timed(lambda: step(*inputs), device) for _ in steps]
    wall, cpu = (statistics.median(column) for column in zip(*times[_WARM_UP_STEPS:]))
    # Nothing that follows is part of the peak.
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident_bytes()
    if spec.profile is not None:
        with torch.profiler.profile() as profiler:  # of the CPU, and of a GPU if there is one
            _timed(lambda: step(*inputs), device)
        profiler.export_chrome_trace(str(spec.profile))
    fed = None if spec.manifest is None else _fed_rate(spec, step, device)
    draw = candidate.mask
    masks = [_timed(lambda: draw(model, *inputs), device)[0] for _ in range(_MASK_REPEATS)] if draw else []
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "clips_per_second": spec.batch / wall,
        "fed_clips_per_second": fed,
        "warm_up_seconds": sum(seconds for seconds, _ in times[:_WARM_UP_STEPS]),
        "peak_bytes": peak,
        "mask_seconds": statistics.median(masks) if masks else None,
        "matrix_flops_per_second": matrix_rate(device, PRECISIONS[spec.precision]),
    }


def _fed_rate(spec: StepSpec, step: Callable[..., None], device: torch.device) -> float:
    """Measure the clips per second of steps that a data loader feeds, once what it has read ahead is used up."""
    assert spec.manifest is not None
    manifest = Manifest.read(spec.manifest).require_clips()
    system = SYSTEMS[find_candidate(spec.settings).sizes]
    wanted = replace(system.input(spec.settings), target_length=spec.settings["input_length"])
    dataset = AudioDataset(manifest, wanted, train=True, on_bad_audio="skip", max_bad_audio=len(manifest))
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**31)
    loader = DataLoader(
        dataset,
        spec.batch,
        sampler=sampler,
        num_workers=spec.workers,
        worker_init_fn=killed_with_parent,
        collate_fn=dataset.collate,
        pin_memory=device.type == "cuda",
    )
    clips, batches = 0, iter(loader)
    ahead = 1 + _READ_AHEAD * spec.workers
    what = f"{spec.settings['_name']} {spec.precision}: fed steps"
    for number in tqdm(range(ahead + spec.steps), what, unit="step"):
        if number == ahead:
            start = time.perf_counter()
        batch = next(batches)
        if batch:  # a clip of it could be decoded
            inputs = [batch[name].to(device, non_blocking=True) for name in ("source", "seed")]
            _timed(functools.partial(step, *inputs), device)
            clips += len(batch["id"]) * (number >= ahead)
    return clips / (time.perf_counter() - start)


def count_flops(spec: StepSpec) -> int:
    """Count the floating-point operations of one step's matrix products and convolutions; a multiply-add is two.

    The uncompiled model is counted: compiled code may repeat some operations to save memory, which is no useful work.
    Work that does not depend on the batch (relative-position biases) is counted once. Blocks that a model skips at
    random are all counted.
    """
    candidate = find_candidate(spec.settings)
    # Attention without dropout is matrix products that the counter sees; their number is the same.
    model = candidate.build({**spec.settings, "bf16": False, "layerdrop": 0.0, "attention_dropout": 0.0}).train()
    counts = []
    for batch in (1, 2):
        inputs = candidate.inputs(spec.settings, batch)
        # The counter does not know the CPU's fused attention; as matrix products it is the same arithmetic.
        formulas = {torch.ops.aten.convolution_backward: _flops_of_gradients}
        counter = FlopCounterMode(display=False, custom_mapping=formulas)
        with sdpa_kernel(SDPBackend.MATH), counter:
            candidate.loss(model, *inputs).backward()
        counts.append(counter.get_total_flops())
    return counts[0] + (spec.batch - 1) * (counts[1] - counts[0])


def _flops_of_gradients(grad: torch.Size, source: torch.Size, weight: torch.Size, *others: Any, **_: object) -> int:
    """Count the backward pass of a convolution from shapes; PyTorch's own formula does not know groups."""
    of_source, of_weight, _of_bias = others[-1]
    return (of_source + of_weight) * 2 * math.prod(weight) * grad[0] * math.prod(grad[2:])


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a large square matrix product: the best of as many as fit a second."""
    size = _MATRIX_SIZE[device.type]
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    _timed(lambda: one @ other, device)  # sets the library up
    times: list[float] = []
    while sum(times) < _MATRIX_SECONDS:
        times.append(_timed(lambda: one @ other, device)[0])
    return 2 * size**3 / min(times)


def _timed(function: Callable[[], Tensor | object], device: torch.device) -> tuple[float, float]:
    """Measure wall-clock and processor seconds of a call, including the device's work."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _peak_resident_bytes() -> int:
    # On Linux ru_maxrss starts from the size of the process that started this one; VmHWM is this program's own.
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
