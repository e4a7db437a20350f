"""The C interface (``csrc/max_min.h``, ``csrc/append_rows.h``) as ctypes sees it."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.plugins.record import ABI_VERSION

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
PRODUCTS = {"tuned": 0, "mma": 1, "wgmma": 2}
"""How 16-bit tokens are multiplied: as the tuning table says, as on every GPU, or by Hopper's warpgroups."""
CUDA_ERROR = 9


class Problem(ctypes.Structure):
    """``divprune_problem``: the sizes of one selection; ``matrix_budget`` in bytes, 0 for the default."""

    _fields_ = (
        ("batch", c_int32),
        ("candidates", c_int32),
        ("width", c_int32),
        ("keep", c_int32),
        ("dtype", c_int32),
        ("product", c_int32),
        ("matrix_budget", c_uint64),
    )


class Spread(ctypes.Structure):
    """``divprune_spread``: how a selection is spread over a GPU."""

    _fields_ = (
        *((name, c_int32) for name in ("tile", "columns", "tiles", "parts", "shards", "threads", "workers")),
        ("product", c_int32),
        ("cycles", c_int64),
    )

    tile: int
    columns: int
    tiles: int
    parts: int
    shards: int
    threads: int
    workers: int
    product: int
    cycles: int


class Append(ctypes.Structure):
    """``divprune_append``: the sizes of one call that appends rows to caches; strides in bytes."""

    _fields_ = (
        ("tensors", c_int32),
        ("heads", c_int32),
        ("rows", c_int32),
        ("capacity", c_int32),
        ("row_bytes", c_int32),
        ("reserved", c_int32),
        ("cache_stride", c_uint64),
        ("rows_stride", c_uint64),
    )


_PROBLEM = POINTER(Problem)
_PROTOTYPES: dict[str, tuple[type, list[type]]] = {
    "divprune_abi_version": (c_int, []),
    "divprune_version": (c_char_p, []),
    "divprune_status_message": (c_char_p, [c_int]),
    "divprune_cuda_message": (c_char_p, []),
    "divprune_workspace_bytes": (c_int, [_PROBLEM, POINTER(c_uint64)]),
    "divprune_workspace_bound": (c_int, [_PROBLEM, POINTER(c_uint64)]),
    "divprune_launch_count": (c_int, [_PROBLEM, POINTER(c_int32)]),
    "divprune_plan": (c_int, [_PROBLEM, c_int32, c_int32, POINTER(Spread)]),
    "divprune_max_min": (c_int, [_PROBLEM, *[c_void_p] * 5, c_uint64, c_void_p]),
    "divprune_min_sum": (c_int, [_PROBLEM, *[c_void_p] * 6, c_uint64, c_void_p]),
    "divprune_distances": (c_int, [_PROBLEM, *[c_void_p] * 3, c_uint64, c_void_p]),
    "divprune_pick": (c_int, [_PROBLEM, *[c_void_p] * 5, c_uint64, c_void_p]),
    "divprune_append_rows": (c_int, [POINTER(Append), *[c_void_p] * 4]),
}


def load(path: Path) -> ctypes.CDLL:
    """Load a library and declare its functions.

    Raises:
        UserError: it cannot be loaded, lacks a function, or has another interface version.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UserError(
            f"'{path}' cannot be loaded ({error}): build it with 'python -m plugins build'.",
            code="plugin-unloadable",
        ) from error
    if library.divprune_abi_version() != ABI_VERSION:
        raise UserError(
            f"'{path}' has interface version {library.divprune_abi_version()}, expected {ABI_VERSION}: build it "
            "again with 'python -m plugins build'.",
            code="plugin-version-mismatch",
        )
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Turn the status of a call into an error.

    Raises:
        UserError: the arguments do not fit.
        DivpruneError: CUDA failed.
    """
    if status == 0:
        return
    message = library.divprune_status_message(status).decode()
    if status == CUDA_ERROR:
        raise DivpruneError(
            f"A kernel failed on the GPU: {library.divprune_cuda_message().decode()}.", code="kernel-failed"
        )
    raise UserError(message, code="kernel-arguments-invalid")


def workspace_bytes(library: ctypes.CDLL, problem: Problem) -> int:
    """Return the bytes of workspace that ``problem`` needs."""
    size = c_uint64()
    check(library, library.divprune_workspace_bytes(problem, size))
    return size.value


def workspace_bound(library: ctypes.CDLL, problem: Problem) -> int:
    """Return the bytes of workspace that ``problem`` and every smaller one of its width and type need."""
    size = c_uint64()
    check(library, library.divprune_workspace_bound(problem, size))
    return size.value


def launch_count(library: ctypes.CDLL, problem: Problem) -> int:
    """Return the number of kernels that ``problem`` starts."""
    count = c_int32()
    check(library, library.divprune_launch_count(problem, count))
    return count.value


def plan(library: ctypes.CDLL, problem: Problem, architecture: int, multiprocessors: int) -> Spread:
    """Return how ``problem`` is spread over a GPU of this compute capability, without the dot."""
    spread = Spread()
    check(library, library.divprune_plan(problem, architecture, multiprocessors, spread))
    return spread
