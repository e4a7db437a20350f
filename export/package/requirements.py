"""What a board's Python installs beside JetPack's own TensorRT: the runtime's dependencies and what builds engines.

Pinned, and no torch. The pins are those that the tests ran with (``constraints.txt``; a test compares them), but for
two:

* NumPy 1.26 on JetPack 6. The bindings of TensorRT 10.3 were compiled with a pybind11 that knows NumPy 1 only (they
  import ``numpy.core.multiarray``; those of 10.16 also ``numpy._core``). The runtime hands them no arrays, but
  other code on the board may.
* What gives Python CUDA. On JetPack 6 cuda-python 12.6, the toolkit's own version, whose ``cuda.bindings`` call the
  driver alone. cuda-bindings from 12.8 on bring a CUDA runtime that is newer than the board's driver and made for
  servers, which public reports show it to refuse (``cudaErrorInsufficientDriver``).
"""

from __future__ import annotations

from divprune_edge.models.targets import Target

_PINS = {
    "huggingface-hub": "2.4.0",
    "jinja2": "3.1.6",
    "markupsafe": "3.0.4",
    "polygraphy": "0.53.6",
    "pydantic": "2.14.3",
    "pydantic-core": "2.50.4",
    "rich": "15.0.0",
    "tokenizers": "0.23.3",
}
_BY_PYTHON = {
    "3.10": {"filelock": "4.1.0", "numpy": "1.26.4", "pillow": "12.3.0", "typer": "0.29.1"},
    "3.12": {"filelock": "4.3.1", "numpy": "2.4.6", "pillow": "13.0.0", "typer": "0.29.2"},
}
_CUDA = {"12.6": ("cuda-python", "12.6.2.post1"), "13.2": ("cuda-bindings", "13.2.0")}


def requirements(target: Target) -> dict[str, str]:
    """Return name -> version of what ``requirements.txt`` of a Jetson's package lists."""
    assert target.python is not None and target.cuda is not None, "a Jetson has both"
    return dict(sorted([*_PINS.items(), *_BY_PYTHON[target.python].items(), _CUDA[target.cuda]]))
