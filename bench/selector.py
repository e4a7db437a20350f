"""The selector's forms against each other, in one run and one table.

On a GPU: the kernel as CUDA graph replays, a PyTorch loop, ONNX Runtime's CUDA provider if it is there, with the
function in the file and with our operator, and the floor that the GPU's measured rates allow. Without a GPU it says so
and measures the forms that run on the CPU; those figures say nothing about the kernel. ``--tiny`` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.selector_forms import FUNCTION, OPERATOR, SIZES, Run, Size, cpu_forms, onnx_session, torch_loop
from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.plugins.loader import Library, find_operators

TINY = (Size(40, 8, 64),)


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    arguments = _arguments()
    sizes = TINY if arguments.tiny else SIZES[: arguments.sizes]
    if arguments.tiny:
        arguments.seconds = min(arguments.seconds, 0.2)
    measure = _measure_gpu if _has_gpu() else _measure_cpu
    results: dict[str, Any] = {}
    for results in measure(sizes, arguments):
        if arguments.json:  # after each size: a later one may be too slow, or hang
            write_whole(arguments.json, json.dumps(results, indent=2) + "\n")
    _show(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="only the first so many sizes")
    parser.add_argument("--repeats", type=int, default=200, help="graph replays on a GPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each form and size on the CPU")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="on a GPU"
    )
    parser.add_argument(
        "--product",
        choices=("tuned", "mma", "wgmma"),
        default="tuned",
        help="how 16-bit tokens are multiplied on a GPU (default: as the tuning table has it)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT,TEXT",
        help="on the CPU, only forms whose name contains one of these: the threads of others spin between their turns",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _measure_cpu(sizes: tuple[Size, ...], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    rows = []
    for size in sizes:
        tokens = np.random.default_rng(0).standard_normal((size.candidates, size.width), np.float32)
        wanted = arguments.only.split(",")
        forms = {name: run for name, run in cpu_forms(size, tokens).items() if any(w in name for w in wanted)}
        times = _interleaved(forms, arguments.seconds * len(forms))
        row: dict[str, Any] = {"size": str(size), "us": times}
        if {FUNCTION, OPERATOR} <= times.keys():
            row["speedup"] = times[FUNCTION] / times[OPERATOR]
        rows.append(row)
        yield {
            "gpu": None,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "dtype": "float32",
            "rows": rows,
        }


def _interleaved(forms: dict[str, Run], seconds: float) -> dict[str, float]:
    """Run the forms in turn until the time is up, at least three rounds after a first; median microseconds."""
    samples: dict[str, list[float]] = {name: [] for name in forms}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 4 or time.perf_counter() < end:
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            if rounds:
                samples[name].append(1e6 * (time.perf_counter() - start))
        rounds += 1
    return {name: median(values) for name, values in samples.items()}


def _measure_gpu(sizes: tuple[Size, ...], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    from bench.gpu_timing import Rates, event_us, kernel_us, replay_us, rotation
    from divprune_edge.plugins import abi, torch_op

    dtype = getattr(torch, arguments.dtype)
    torch.backends.cuda.matmul.allow_tf32 = False
    rates = Rates(dtype, arguments.repeats)
    rows = []
    for size in sizes:
        inputs = rotation(size, dtype)
        select = partial(torch_op.max_min_diversity, product=arguments.product)
        kernel = [_bind(select, tokens, size.keep) for tokens in inputs]
        loop = [_bind(torch_loop, tokens[0], size.keep) for tokens in inputs]
        times = {
            "kernel": median(replay_us(kernel, arguments.repeats)),
            "PyTorch loop": median(event_us(loop[:4], max(8, arguments.repeats // 10))),
        }
        operators = find_operators()
        served = operators if operators and operators.record.cuda else None
        # ONNX Runtime has the product of the table.
        onnx_forms: dict[str, Library | None] = {}
        if arguments.product == "tuned":
            onnx_forms["ONNX Runtime CUDA"] = None
            if served is not None:
                onnx_forms[f"{OPERATOR}, CUDA"] = served
        for name, library in onnx_forms.items():
            onnx = _onnx_cuda(size, inputs[0], arguments.dtype, library)
            if onnx is not None:
                times[name] = median(event_us([onnx], max(8, arguments.repeats // 10)))
        floor = rates.floor(size, arguments.repeats)
        problem = abi.Problem(1, size.candidates, size.width, size.keep, abi.DTYPES[arguments.dtype], 0, 0)
        kernels, launches = kernel_us(kernel[0], 20)
        rows.append(
            {
                "size": str(size),
                "us": times,
                "kernels_us": kernels,
                "launches": launches,
                "launches_stated": abi.launch_count(torch_op.library(), problem),
                "floor_us": {
                    "memory": floor.memory,
                    "arithmetic": floor.arithmetic,
                    "chain": floor.chain,
                    "total": floor.total,
                },
                "over_floor": times["kernel"] / floor.total,
                "speedup": times["PyTorch loop"] / times["kernel"],
            }
        )
        yield {
            "gpu": torch.cuda.get_device_name(0),
            "dtype": arguments.dtype,
            "product": arguments.product,
            "repeats": arguments.repeats,
            "copy_gb_per_s": rates.bytes_per_us / 1e3,
            "matmul_tflops": rates.flops_per_us / 1e6,
            "rows": rows,
        }


def _bind(function: Callable[..., Any], *arguments: Any) -> Run:
    return lambda: function(*arguments)


def _onnx_cuda(size: Size, tokens: Any, dtype: str, operators: Library | None) -> Run | None:
    """The selector's graph on ONNX Runtime's CUDA provider, bound to device memory; None where it cannot run."""
    import onnxruntime as ort
    import torch

    if "CUDAExecutionProvider" not in ort.get_available_providers() or dtype == "bfloat16":
        return None
    try:
        session = onnx_session(size, dtype, "CUDAExecutionProvider", operators)
    except (RuntimeError, UserError):
        return None
    binding = session.io_binding()
    valid = torch.ones(1, size.candidates, dtype=torch.bool, device="cuda")
    for name, tensor, element in (("visual_tokens", tokens, np.dtype(dtype)), ("valid", valid, np.bool_)):
        binding.bind_input(name, "cuda", 0, element, tuple(tensor.shape), tensor.data_ptr())
    for name in ("kept_tokens", "kept_indices"):
        binding.bind_output(name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def _show(results: dict[str, Any]) -> None:
    if results["gpu"] is None:
        print(
            f"No CUDA GPU: the kernel was not measured. {results['processor']}, {results['threads']} threads, "
            f"{results['dtype']}; milliseconds, median."
        )
        names = list(results["rows"][0]["us"])
        compared = "speedup" in results["rows"][0]
        last = [f"{OPERATOR} faster"] if compared else []
        print(f"{'N->K x D':>20} " + " ".join(f"{name:>16}" for name in [*names, *last]))
        for row in results["rows"]:
            cells = [f"{row['us'][name] / 1e3:.2f}" for name in names]
            cells += [f"{row['speedup']:.2f}x"] if compared else []
            print(f"{row['size']:>20} " + " ".join(f"{cell:>16}" for cell in cells))
        return
    print(
        f"{results['gpu']}, {results['dtype']}, product {results['product']}, median of {results['repeats']} graph "
        f"replays; copy {results['copy_gb_per_s']:.0f} GB/s, matmul {results['matmul_tflops']:.0f} TFLOP/s"
    )
    names = list(results["rows"][0]["us"])
    columns = [f"{name} us" for name in names] + ["launches", "floor us", "over floor", "speed-up"]
    print(f"{'N->K x D':>20} " + " ".join(f"{name:>20}" for name in columns))
    for row in results["rows"]:
        cells = [f"{row['us'].get(name, float('nan')):.1f}" for name in names]
        cells += [str(row["launches"]), f"{row['floor_us']['total']:.1f}"]
        cells += [f"{row['over_floor']:.2f}x", f"{row['speedup']:.1f}x"]
        print(f"{row['size']:>20} " + " ".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
