"""Appending rows to KV caches on a GPU: plain calls, odd sizes, and replays of a graph at other positions."""

from __future__ import annotations

from typing import Any

import pytest

from divprune_edge.plugins import abi, torch_op

torch = pytest.importorskip("torch")

LLAVA = (64, 32, 1, 512, 256)
SHAPES = [LLAVA, (64, 32, 128, 512, 256), (6, 4, 3, 17, 40), (2, 1, 1, 1, 4), (48, 4, 1, 2048, 128)]


def up(size: int) -> int:
    return -(-size // 256) * 256


def sizes_of(tensors: int, heads: int, rows: int, capacity: int, row_bytes: int) -> abi.Append:
    strides = up(heads * capacity * row_bytes), up(heads * rows * row_bytes)
    return abi.Append(tensors, heads, rows, capacity, row_bytes, 0, *strides)


def random_bytes(count: int) -> Any:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, device="cuda")


def view(buffer: Any, sizes: abi.Append, stride: int, rows: int) -> Any:
    """See a buffer as [tensors, heads, rows, row_bytes]."""
    used = buffer.view(sizes.tensors, stride)[:, : sizes.heads * rows * sizes.row_bytes]
    return used.reshape(sizes.tensors, sizes.heads, rows, sizes.row_bytes)


def wanted(cache: Any, new: Any, sizes: abi.Append, position: int) -> Any:
    result = cache.clone()
    rows = view(new, sizes, sizes.rows_stride, sizes.rows)
    used = sizes.heads * sizes.capacity * sizes.row_bytes
    whole = view(cache, sizes, sizes.cache_stride, sizes.capacity).clone()
    whole[:, :, position : position + sizes.rows] = rows
    result.view(sizes.tensors, sizes.cache_stride)[:, :used] = whole.reshape(sizes.tensors, used)
    return result


def append(sizes: abi.Append, new: Any, cache: Any, position: Any) -> None:
    library = torch_op.library()
    stream = torch.cuda.current_stream().cuda_stream
    status = library.divprune_append_rows(
        sizes, new.data_ptr(), cache.data_ptr(), position.data_ptr(), stream
    )
    abi.check(library, status)


def case(shape: tuple[int, ...]) -> tuple[abi.Append, Any, Any, Any]:
    sizes = sizes_of(*shape)
    new, cache = (random_bytes(sizes.tensors * stride) for stride in (sizes.rows_stride, sizes.cache_stride))
    return sizes, new, cache, torch.zeros(1, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_land_where_the_position_says(shape: tuple[int, ...]) -> None:
    sizes, new, cache, position = case(shape)
    for at in {0, (sizes.capacity - sizes.rows) // 2, sizes.capacity - sizes.rows}:
        position.fill_(at)
        expected = wanted(cache, new, sizes, at)
        append(sizes, new, cache, position)
        assert torch.equal(cache, expected)


def test_sanitizer_positions_outside_write_nothing() -> None:
    sizes, new, cache, position = case((6, 4, 3, 17, 40))
    before = cache.clone()
    for at in (-1, 17, 2**62, -(2**62)):
        position.fill_(at)
        append(sizes, new, cache, position)
        assert torch.equal(cache, before)


def test_a_captured_graph_appends_at_other_positions() -> None:
    sizes, new, cache, position = case(LLAVA)
    append(sizes, new, cache, position)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append(sizes, new, cache, position)
    for at in (0, 7, 511):
        new.copy_(random_bytes(new.numel()))
        position.fill_(at)
        expected = wanted(cache, new, sizes, at)
        graph.replay()
        assert torch.equal(cache, expected)
