"""Does a bundle do what PyTorch does? The exported graphs against transformers, in float32.

Nothing here trusts the export: weights are read by transformers itself and compared byte by byte with an own
reader, and the image constants come from the checkpoint's own file. Torch, transformers and ONNX Runtime are
imported only when a check runs.
"""

from __future__ import annotations

from importlib.util import find_spec

from divprune_edge.export.verify.bundle import verify_bundle
from divprune_edge.export.verify.selection import verify_selector

__all__ = ["available", "verify_bundle", "verify_selector"]

_NEEDED = ("torch", "transformers", "onnxruntime")


def available(*, adapter: bool = False) -> str | None:
    """Return None if a bundle can be verified here, else what is missing; an ``adapter`` needs peft."""
    missing = [
        package for package in (*_NEEDED, *(["peft"] if adapter else [])) if find_spec(package) is None
    ]
    if not missing:
        return None
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
