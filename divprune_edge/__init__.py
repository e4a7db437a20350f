"""From a vision-language checkpoint to ONNX graphs that answer questions about images.

``from divprune_edge import Pipeline`` is the Python API; ``divprune-edge --help`` is the command line.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from divprune_edge.version import __version__

if TYPE_CHECKING:
    from divprune_edge.errors import UserError as UserError
    from divprune_edge.errors import UserTypeError as UserTypeError
    from divprune_edge.processing.sources import Video as Video
    from divprune_edge.runtime.pipeline import Pipeline as Pipeline

# ONNX Runtime's builds report sessions and an id of the machine to their maker, unless this is said before they start.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Pipeline", "UserError", "UserTypeError", "Video", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: ``import divprune_edge`` itself stays free."""
    if name == "Pipeline":
        from divprune_edge.runtime.pipeline import Pipeline

        return Pipeline
    if name == "Video":
        from divprune_edge.processing.sources import Video

        return Video
    if name in ("UserError", "UserTypeError"):
        from divprune_edge import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'divprune_edge' has no attribute {name!r}")
