from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.benchmark.plan import (
    GPU,
    Cluster,
    Estimate,
    Workload,
    batch_that_fits,
    clips_per_second,
    ring_seconds,
)

DEVICE = GPU(
    "round", peak_flops=100e12, memory_bytes=10e9, nvlink_bytes_per_second=200e9, infiniband_bits_per_second=8e9
)
WORK = Workload(flops_per_clip=50e9, parameters=250_000_000, clips_per_update=160, updates=36_000)


def estimate(nodes: int, gpus_per_node: int) -> Estimate:
    cluster = Cluster(DEVICE, nodes, gpus_per_node, network_bits_per_second=40e9)
    return Estimate(WORK, cluster, clips_per_second(DEVICE, 0.5, WORK.flops_per_clip), 100.0, 200_000.0)


def test_a_workload_in_bytes() -> None:
    assert (WORK.gradient_bytes, WORK.state_bytes) == (1_000_000_000, 4_000_000_000)


def test_one_gpu_exchanges_nothing() -> None:
    one = estimate(1, 1)
    assert one.clips_per_second_per_gpu == 1000  # 0.5 x 100e12 / 50e9
    assert one.utilisation == 0.5
    assert one.compute_seconds == 0.16
    assert one.exchange_seconds == 0
    assert one.seconds == (5760, 5760)  # 36,000 x 0.16
    assert one.cores_per_gpu == 10
    assert one.storage_bytes_per_second == 200e6


def test_a_node_exchanges_over_nvlink_alone() -> None:
    node = estimate(1, 4)
    assert node.clips_per_gpu == 40
    assert node.compute_seconds == 0.04
    assert node.nvlink_seconds == pytest.approx(0.015)  # 2 x 3/4 x 1 GB / 100 GB/s
    assert node.network_seconds == 0
    assert node.seconds == pytest.approx((1440, 1980))  # 36,000 x 0.04, and x 0.055
    assert node.storage_bytes_per_second == 800e6


def test_nodes_are_as_fast_as_the_network_between_them() -> None:
    nodes = estimate(2, 4)
    assert nodes.compute_seconds == 0.02
    assert nodes.nvlink_seconds == pytest.approx(0.0175)  # 2 x 7/8 x 1 GB / 100 GB/s
    assert nodes.network_seconds == pytest.approx(0.35)  # 2 x 7/8 x 1 GB / 5 GB/s
    assert nodes.exchange_seconds == nodes.network_seconds
    assert nodes.seconds == pytest.approx((12_600, 13_320))  # the exchange takes longer than what could hide it
    assert estimate(2, 1).nvlink_seconds == 0


@given(st.integers(1, 64), st.floats(1, 1e12), st.floats(1, 1e12))
def test_a_ring_takes_no_longer_than_twice_the_data(devices: int, data: float, rate: float) -> None:
    seconds = ring_seconds(data, devices, rate)
    assert 0 <= seconds < 2 * data / rate
    assert math.isclose(seconds * devices, 2 * (devices - 1) * data / rate)


@given(st.integers(1, 2048), st.integers(1, 256))
def test_a_batch_divides_the_share_and_is_the_largest_that_fits(share: int, limit: int) -> None:
    batch = batch_that_fits(share, limit)
    assert share % batch == 0
    assert batch <= limit
    assert all(share % larger for larger in range(batch + 1, min(share, limit) + 1))
