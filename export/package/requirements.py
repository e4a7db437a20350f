"""What a board's Python installs beside JetPack's own TensorRT: the runtime's dependencies and what builds engines.

Pinned, and no torch. The pins are those that the tests ran with (``constraints.txt``; a test compares them), but for
two:

* NumPy 1.26 on JetPack 6. The bindings of TensorRT 10.3 were compiled with a pybind11 that knows NumPy 1 only (they
  import ``numpy.core.multiarray``; those of 10.16 also ``numpy._core``). The runtime hands them no arrays, but
  other code on the board may.
* cuda-bindings, the part of cuda-python that is needed, of the board's CUDA major version. There is no 12.6 of it
  for this processor; CUDA's minor versions are compatible within a major one.
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
    "3.10": {"numpy": "1.26.4", "pillow": "12.3.0", "typer": "0.29.1"},
    "3.12": {"numpy": "2.4.6", "pillow": "13.0.0", "typer": "0.29.2"},
}
_CUDA_BINDINGS = {"12": "12.9.10", "13": "13.2.0"}


def requirements(target: Target) -> dict[str, str]:
    """Return name -> version of what ``requirements.txt`` of a Jetson's package lists."""
    assert target.python is not None and target.cuda is not None, "a Jetson has both"
    cuda = _CUDA_BINDINGS[target.cuda.split(".", maxsplit=1)[0]]
    return dict(sorted({**_PINS, **_BY_PYTHON[target.python], "cuda-bindings": cuda}.items()))
