"""What training a recipe would take on a number of GPUs: arithmetic, nothing of it measured here.

Units throughout: bytes, bits, seconds, clips and FLOP, without prefixes; a multiply-add is two FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass

_FP32_BYTES = 4
_COPIES_OF_WEIGHTS = 4  # weights, gradients, and Adam's two moments


@dataclass(frozen=True)
class GPU:
    """A GPU in its maker's numbers.

    Attributes:
        title: its name.
        peak_flops: dense bfloat16 matrix products, FLOP/s.
        memory_bytes: its memory.
        nvlink_bytes_per_second: to the other GPUs of its node, both directions together.
        infiniband_bits_per_second: one way, of the adapter that each GPU has in its maker's machine of eight.
    """

    title: str
    peak_flops: float
    memory_bytes: float
    nvlink_bytes_per_second: float
    infiniband_bits_per_second: float


GPUS = {
    "a100-sxm": GPU("A100 SXM", 312e12, 80e9, 600e9, 200e9),
    "h100-sxm": GPU("H100 SXM", 989e12, 80e9, 900e9, 400e9),
    "h200-sxm": GPU("H200 SXM", 989e12, 141e9, 900e9, 400e9),
    "b200": GPU("B200", 2250e12, 180e9, 1800e9, 400e9),
}
"""The data sheets of NVIDIA's GPUs, and of its DGX machines with them."""


@dataclass(frozen=True)
class Workload:
    """What a recipe asks for.

    Attributes:
        flops_per_clip: of a training step, per clip.
        parameters: that are trained.
        clips_per_update: the global batch, on average.
        updates: of the whole run.
    """

    flops_per_clip: float
    parameters: int
    clips_per_update: float
    updates: int

    @property
    def gradient_bytes(self) -> int:
        """Of the gradients that the GPUs exchange in each update, in fp32."""
        return _FP32_BYTES * self.parameters

    @property
    def state_bytes(self) -> int:
        """On each GPU, without activations: weights, gradients and Adam's two moments, all in fp32."""
        return _COPIES_OF_WEIGHTS * _FP32_BYTES * self.parameters


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs.

    Attributes:
        gpu: the model.
        nodes: how many.
        gpus_per_node: in each.
        network_bits_per_second: one way, from a node to the others.
    """

    gpu: GPU
    nodes: int
    gpus_per_node: int
    network_bits_per_second: float

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def nvlink_bytes_per_second(self) -> float:
        """From a GPU to the others of its node, one way."""
        return self.gpu.nvlink_bytes_per_second / 2

    @property
    def network_bytes_per_second(self) -> float:
        """From a node to the others, one way."""
        return self.network_bits_per_second / 8


@dataclass(frozen=True)
class Estimate:
    """A workload on a cluster.

    Attributes:
        workload: what is computed.
        cluster: where.
        clips_per_second_per_gpu: that a GPU trains on, without waiting for clips or for other GPUs.
        clips_per_second_per_core: that a core decodes, augments and turns into log-mel.
        clip_bytes: of a clip in storage.
    """

    workload: Workload
    cluster: Cluster
    clips_per_second_per_gpu: float
    clips_per_second_per_core: float
    clip_bytes: float

    @property
    def utilisation(self) -> float:
        """Share of the GPU's peak."""
        return self.clips_per_second_per_gpu * self.workload.flops_per_clip / self.cluster.gpu.peak_flops

    @property
    def clips_per_second(self) -> float:
        """Of all GPUs."""
        return self.cluster.gpus * self.clips_per_second_per_gpu

    @property
    def clips_per_gpu(self) -> float:
        """A GPU's share of an update."""
        return self.workload.clips_per_update / self.cluster.gpus

    @property
    def compute_seconds(self) -> float:
        """Of an update."""
        return self.clips_per_gpu / self.clips_per_second_per_gpu

    @property
    def nvlink_seconds(self) -> float:
        """Of an update: the gradients over NVLink; 0 where a node has one GPU."""
        return self._ring(self.cluster.nvlink_bytes_per_second) if self.cluster.gpus_per_node > 1 else 0.0

    @property
    def network_seconds(self) -> float:
        """Of an update: the gradients between nodes; 0 where there is one."""
        return self._ring(self.cluster.network_bytes_per_second) if self.cluster.nodes > 1 else 0.0

    @property
    def exchange_seconds(self) -> float:
        """Of an update: a ring through all GPUs is as fast as its slowest link."""
        return max(self.nvlink_seconds, self.network_seconds)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of the run: with the exchange hidden behind the computation as far as it can be, and with none of it."""
        compute, exchange = self.compute_seconds, self.exchange_seconds
        return self.workload.updates * max(compute, exchange), self.workload.updates * (compute + exchange)

    @property
    def cores_per_gpu(self) -> float:
        """That keep one GPU in clips."""
        return self.clips_per_second_per_gpu / self.clips_per_second_per_core

    @property
    def storage_bytes_per_second(self) -> float:
        """That all nodes together read."""
        return self.clips_per_second * self.clip_bytes

    def _ring(self, bytes_per_second: float) -> float:
        return ring_seconds(self.workload.gradient_bytes, self.cluster.gpus, bytes_per_second)


def clips_per_second(gpu: GPU, utilisation: float, flops_per_clip: float) -> float:
    """That a GPU trains on at a share of its peak."""
    return utilisation * gpu.peak_flops / flops_per_clip


def ring_seconds(data_bytes: float, devices: int, bytes_per_second: float) -> float:
    """A ring all-reduce: each device passes on (N - 1) / N of the data twice, to add it up and to hand out the sum.

    Args:
        data_bytes: that each of the devices has.
        devices: in the ring.
        bytes_per_second: one way, from one device to the next.
    """
    return 2 * (devices - 1) / devices * data_bytes / bytes_per_second


def batch_that_fits(share: int, limit: int) -> int:
    """The largest part of a device's share of an update that divides it and is within the limit of what fits."""
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)
