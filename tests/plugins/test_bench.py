"""The selector's benchmark runs, on whatever is here."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from plugins_emulation import EMULATOR, compile_cpp

pytest.importorskip("torch")
from bench.gpu_timing import CHAIN, CHAIN_VECTORS, chain_rows, chain_threads

CHAIN_HOST = """
#include "emulator.h"
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
#define fmaxf std::fmax
CHAIN
extern "C" void run(const float* rows, int stride, int steps, unsigned* result, unsigned threads) {
    emulator::run_grid(dim3(1), dim3(threads), 0, 1, [&] { chain(rows, stride, steps, result); });
}
"""


def test_a_tiny_run(tmp_path: Path) -> None:
    output = tmp_path / "selector.json"
    result = run_module("bench.selector", "--tiny", "--seconds", "0", "--json", str(output))
    assert result.returncode == 0, result.stderr
    results = json.loads(output.read_text())
    (row,) = results["rows"]
    assert row["size"] == "40->8 x 64"
    if results["gpu"] is None:
        assert result.stdout.startswith("No CUDA GPU: the kernel was not measured.")
        assert {"ONNX Runtime", "NumPy reference", "PyTorch loop"} <= set(row["us"])
    else:
        assert {"kernel", "PyTorch loop"} <= set(row["us"])
        assert row["launches"] == 2


@pytest.mark.parametrize("vectors", CHAIN_VECTORS)
def test_the_chain_of_the_floor_goes_from_row_to_row(tmp_path: Path, vectors: int) -> None:
    """Emulated: each step depends on the row before, whatever the number of threads."""
    source = tmp_path / "chain.cpp"
    source.write_text(CHAIN_HOST.replace("CHAIN", CHAIN.replace("VECTORS", str(vectors))))
    flags = ["-shared", "-fPIC", "-O1", "-Wno-clobbered", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    library = compile_cpp(
        tmp_path / "chain.so",
        [source, *EMULATOR.glob("*.cpp")],
        *flags,
        "-D__CUDA_ARCH__=800",
        f"-I{EMULATOR}",
    )
    run = ctypes.CDLL(str(library)).run
    for candidates in (31, 576):
        threads = chain_threads(candidates, vectors)
        rows = chain_rows(candidates, 4 * vectors * threads)
        seen, result = [0], ctypes.c_uint()
        for _ in range(candidates):
            seen.append(int(rows[seen[-1]].max().view(np.uint32) & 0xFFFF))
        assert len(set(seen)) == candidates
        for steps in (1, 7):
            run(ctypes.c_void_p(rows.ctypes.data), rows.shape[1], steps, ctypes.byref(result), threads)
            assert result.value == seen[steps]
