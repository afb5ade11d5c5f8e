"""One optimizer step of a model: its time, memory and arithmetic, and the machine's rate at matrix products."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from amae_plugin.benchmark.candidates import system_of
from amae_plugin.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

_WARM_UP_STEPS = 2
_MASK_REPEATS = 10
_MATRIX_SECONDS = 1.0
_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepSpec:
    """What is measured.

    Attributes:
        settings: a recipe's model section, its interpolations resolved, with ``input_length`` and ``num_mel_bins``.
        precision: ``"fp32"`` or ``"bf16"`` (weights and optimizer stay in fp32).
        batch: clips a step.
        threads: of the CPU.
        steps: how many are timed, after the warm-up.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    """

    settings: Mapping[str, Any]
    precision: str
    batch: int
    threads: int
    steps: int
    device: str


def alone(function: Callable[[StepSpec], Result], spec: StepSpec) -> Result:
    """Call a function of this module in a fresh process, so that the peak memory it finds is its own.

    Raises:
        UserError: the process was ended, most likely for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, spec).result()
        except BrokenProcessPool:
            raise UserError(
                f"the measurement in {spec.precision} was ended by the system, most likely for want of memory; "
                f"try a --batch below {spec.batch}"
            ) from None


def measure_step(spec: StepSpec) -> dict[str, float | int | None]:
    """Time and memory of forward pass, loss, backward pass and AdamW.

    Returns:
        ``seconds`` (median of the timed steps), ``cpu_seconds`` (median of the processor time of all threads, which
        other programs disturb less), ``clips_per_second``, ``warm_up_seconds`` (compilation and first steps),
        ``peak_bytes`` (of the whole process, or of the GPU's allocations), ``mask_seconds`` (of the masks of a batch;
        None where they are not made apart) and ``matrix_flops_per_second`` (:func:`matrix_rate`).
    """
    torch.manual_seed(0)
    torch.set_num_threads(spec.threads)
    device = torch.device(spec.device)
    system = system_of(spec.settings)
    model: Any = system.build({**spec.settings, "bf16": spec.precision == "bf16"}).to(device).train()
    if spec.settings.get("compile"):
        model.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=system.fused_optimizer or None)
    inputs = tuple(tensor.to(device) for tensor in system.inputs(spec.settings, spec.batch))

    def step() -> None:
        system.loss(model, *inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    name = f"{spec.settings['_name']} {spec.precision}"
    with tqdm(total=_WARM_UP_STEPS + spec.steps, desc=f"{name}: steps", unit="step", file=sys.stderr) as progress:
        warm_up = []
        for _ in range(_WARM_UP_STEPS):
            warm_up.append(_timed(step, device)[0])
            progress.update()
        times = []
        for _ in range(spec.steps):
            times.append(_timed(step, device))
            progress.update()
    seconds = statistics.median(wall for wall, _ in times)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident_bytes()
    make_mask = system.mask
    masks = (
        []
        if make_mask is None
        else [_timed(lambda: make_mask(model, *inputs), device)[0] for _ in range(_MASK_REPEATS)]
    )
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(cpu for _, cpu in times),
        "clips_per_second": spec.batch / seconds,
        "warm_up_seconds": sum(warm_up),
        "peak_bytes": peak,
        "mask_seconds": statistics.median(masks) if masks else None,
        "matrix_flops_per_second": matrix_rate(device, PRECISIONS[spec.precision]),
    }


def count_flops(spec: StepSpec) -> int:
    """Floating-point operations of the matrix products of one step, a multiply-add counted as two.

    Counted as the model runs, uncompiled: compiled code may compute some of them again to save memory, which is no
    use to anybody. What does not depend on the batch (relative-position biases) is counted once, and blocks that
    MAE-AST would skip at random are counted all.
    """
    one, two = (_count_flops(spec, batch) for batch in (1, 2))
    return one + (spec.batch - 1) * (two - one)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product, the best of those that a second allows."""
    size = _MATRIX_SIZE[device.type]
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    _timed(lambda: one @ other, device)  # the first one sets the library up
    times = [_timed(lambda: one @ other, device)[0]]
    while sum(times) < _MATRIX_SECONDS:
        times.append(_timed(lambda: one @ other, device)[0])
    return 2 * size**3 / min(times)


def _count_flops(spec: StepSpec, batch: int) -> int:
    system = system_of(spec.settings)
    # Without dropout in it, attention is matrix products that the counter sees; their number is the same.
    model = system.build({**spec.settings, "bf16": False, "layerdrop": 0.0, "attention_dropout": 0.0}).train()
    inputs = system.inputs(spec.settings, batch)
    # The counter does not know the CPU's fused attention; as matrix products it is the same arithmetic.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        system.loss(model, *inputs).backward()
    return counter.get_total_flops()


def _timed(function: Callable[[], Tensor | object], device: torch.device) -> tuple[float, float]:
    """Wall-clock and processor seconds of a call, the device's work included."""
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
