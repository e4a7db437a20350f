"""The device layer of backend ``tensorrt`` on a GPU: memory, copies, graphs, and the kernel between them."""

from __future__ import annotations

import numpy as np
import pytest

from divprune_edge.plugins.abi import Append
from divprune_edge.runtime.engines.cuda import CudaDevice

pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice()


def test_copies_there_and_back(device: CudaDevice) -> None:
    memory, there, back = device.allocate(4096), device.pinned(4096), device.pinned(4096)
    assert memory.address % 256 == 0
    there.array[:] = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    device.upload(memory.address, there.address, 4096)
    device.download(back.address, memory.address, 4096)
    device.synchronize()
    assert np.array_equal(there.array, back.array)
    device.clear(memory.address + 256, 512)
    device.download(back.address, memory.address, 4096)
    device.synchronize()
    assert not back.array[256:768].any()
    assert np.array_equal(back.array[768:], there.array[768:])
    assert device.free_bytes() > 0
    assert device.name


def test_pieces_of_ordinary_memory(device: CudaDevice) -> None:
    """The rows of a cache, which is larger than they are."""
    memory = device.allocate(8 * 64)
    device.clear(memory.address, memory.nbytes)
    rows = np.arange(8 * 24, dtype=np.uint8).reshape(8, 24)
    device.upload_pieces(memory.address, 64, rows.ctypes.data, 24, 24, 8)
    back, whole = np.zeros_like(rows), np.zeros((8, 64), np.uint8)
    device.download_pieces(back.ctypes.data, 24, memory.address, 64, 24, 8)
    device.download(whole.ctypes.data, memory.address, 512)
    device.synchronize()
    assert np.array_equal(back, rows)
    assert np.array_equal(whole[:, :24], rows)
    assert not whole[:, 24:].any()


def test_pieces_within_the_device(device: CudaDevice) -> None:
    """The first values of rows, laid together."""
    wide, narrow = device.allocate(8 * 64), device.allocate(8 * 24)
    rows, back = (
        np.arange(8 * 64, dtype=np.uint16).reshape(8, 64).astype(np.uint8),
        np.zeros((8, 24), np.uint8),
    )
    device.upload(wide.address, rows.ctypes.data, rows.nbytes)
    device.copy_pieces(narrow.address, 24, wide.address, 64, 24, 8)
    device.download(back.ctypes.data, narrow.address, back.nbytes)
    device.synchronize()
    assert np.array_equal(back, rows[:, :24])


def test_a_graph_of_copies_and_the_kernel(device: CudaDevice) -> None:
    """What a decode step is, without the engine: position up, rows appended, cache down."""
    sizes = Append(2, 2, 1, 8, 32, 0, 512, 256)
    cache, rows, position = device.allocate(1024), device.allocate(512), device.allocate(256)
    at, back, new = device.pinned(8), device.pinned(1024), device.pinned(512)
    device.clear(cache.address, 1024)
    at.array[:], new.array[:] = 0, 0

    def step() -> None:
        device.upload(position.address, at.address, 8)
        device.upload(rows.address, new.address, 512)
        device.append_rows(sizes, rows.address, cache.address, position.address)
        device.download(back.address, cache.address, 1024)

    step()
    device.synchronize()
    graph = device.capture(step)
    expected = np.zeros((2, 2, 8, 32), np.uint8)
    for row in (0, 3, 7):
        values = np.random.default_rng(row).integers(0, 256, (2, 256), dtype=np.uint8)
        new.array[:] = values.reshape(-1)
        at.array.view(np.int64)[0] = row
        expected[:, :, row] = values[:, :64].reshape(2, 2, 32)
        device.launch(graph)
        device.synchronize()
        assert np.array_equal(back.array.reshape(expected.shape), expected)
