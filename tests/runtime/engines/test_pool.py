"""Memory that is used again."""

from __future__ import annotations

import gc

import numpy as np
from fake_device import FakeDevice

from divprune_edge.runtime.engines.pool import Pool


def test_a_place_goes_to_the_next_of_its_size() -> None:
    device = FakeDevice()
    pool = Pool(device)
    first, second = pool.take((3, 7), np.float32), pool.take((3, 7), np.float32)
    assert first.nbytes == 84
    assert first.address != second.address
    place = first.address
    del first
    gc.collect()
    other = pool.take((11,), np.int64)
    assert other.address == place, "256 bytes are 256 bytes"
    assert pool.take((300,), np.uint8).address not in (place, second.address)
    assert device.counts["allocations"] == 3


def test_what_is_reserved_is_not_missing() -> None:
    device = FakeDevice()
    pool = Pool(device)
    wanted = [((100,), np.float32), ((10,), np.uint8), ((2,), np.bool_)]
    assert pool.missing(wanted) == 512 + 256 + 256
    pool.reserve(wanted)
    assert pool.missing(wanted) == 0
    assert pool.missing([*wanted, ((1,), np.bool_)]) == 256
    held = [pool.take(shape, dtype) for shape, dtype in wanted]
    assert device.counts["allocations"] == 3
    assert len({tensor.address for tensor in held}) == 3
