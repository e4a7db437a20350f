"""What trtexec exports as JSON, as typed records: runs (``--exportTimes``), layer times, and layers.

The forms are those of samples/common/sampleReporting.cpp of TensorRT 10.3 to 11.1. Nothing in these files is escaped,
and a run without layers has figures that are not numbers: what does not parse is told in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from divprune_edge.errors import UserError
from divprune_edge.strict_json import is_file, read_json

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_ONNX_LAYER = "[ONNX Layer: "
MOST_BYTES = 256 << 20
"""Of one file."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Run(_Record):
    """One inference in milliseconds. Host: ``start_enqueue`` to ``end_enqueue``. GPU: transfers and compute."""

    start_enqueue: float = Field(alias="startEnqMs", allow_inf_nan=False)
    end_enqueue: float = Field(alias="endEnqMs", allow_inf_nan=False)
    to_device: Milliseconds = Field(alias="h2dMs")
    compute: Milliseconds = Field(alias="computeMs")
    to_host: Milliseconds = Field(alias="d2hMs")
    latency: Milliseconds = Field(alias="latencyMs")

    @property
    def enqueue(self) -> float:
        """What the host took to queue the work."""
        return max(0.0, self.end_enqueue - self.start_enqueue)


class LayerTime(_Record):
    """One layer over all runs of the profile: sum, mean and median in milliseconds."""

    name: str
    total: Milliseconds = Field(alias="timeMs")
    average: Milliseconds = Field(alias="averageMs")
    median: Milliseconds = Field(alias="medianMs")


class LayerProfile(_Record):
    """The layers of an engine in order; ``count`` runs, those of the warm-up among them."""

    count: Annotated[int, Field(gt=0)]
    layers: tuple[LayerTime, ...]

    @property
    def median_sum(self) -> float:
        """Sum of the layers' medians in milliseconds."""
        return sum(layer.median for layer in self.layers)


def _metadata(text: str) -> str:
    return text if _ONNX_LAYER in text else ""


class LayerInfo(_Record):
    """A layer as the engine describes it. ``metadata`` names the ONNX nodes it was made of, where they were kept."""

    name: str = Field(alias="Name")
    kind: str = Field(default="", alias="LayerType")
    metadata: Annotated[str, AfterValidator(_metadata)] = Field(default="", alias="Metadata")

    @property
    def onnx_nodes(self) -> tuple[str, ...]:
        """Names of the ONNX nodes in the metadata."""
        return tuple(part.split("]")[0] for part in self.metadata.split(_ONNX_LAYER)[1:])


_Model = TypeVar("_Model", bound=_Record)


def read_times(path: Path) -> tuple[Run, ...]:
    """Read ``--exportTimes``: at least one run, without those of the warm-up.

    Raises:
        UserError: the file is not there, is not JSON, or has another form.
    """
    runs = tuple(_check(Run, entry, path) for entry in _entries(_load(path), path))
    if not runs:
        raise UserError(f"'{path}' has no runs in it: measure again.", code="measurements-invalid")
    return runs


def read_profile(path: Path) -> LayerProfile:
    """Read ``--exportProfile``; errors as :func:`read_times`."""
    first, *layers = _entries(_load(path), path) or [None]
    if not isinstance(first, dict) or "count" not in first:
        raise UserError(
            f"'{path}' does not begin with a count of runs: it is not from trtexec's --exportProfile.",
            code="measurements-invalid",
        )
    return _check(LayerProfile, {**first, "layers": layers}, path)


def read_layers(path: Path) -> tuple[LayerInfo, ...]:
    """Read ``--exportLayerInfo``: layers with details, or names alone; errors as :func:`read_times`."""
    data = _load(path)
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list):
        raise UserError(
            f"'{path}' has no list 'Layers': it is not from trtexec's --exportLayerInfo.",
            code="measurements-invalid",
        )
    named = ({"Name": entry} if isinstance(entry, str) else entry for entry in layers)
    return tuple(_check(LayerInfo, entry, path) for entry in named)


def _load(path: Path) -> Any:
    if not is_file(path):
        raise UserError(
            f"There is no '{path}': run the commands of 'python -m runtime trtexec' first.",
            code="measurements-missing",
        )
    # TensorRT separates names in metadata by control characters, as they are.
    return read_json(path, code="measurements-invalid", advice="measure again", most=MOST_BYTES, lenient=True)


def _entries(data: Any, path: Path) -> list[Any]:
    if not isinstance(data, list):
        raise UserError(
            f"'{path}' holds no list, as trtexec's files of times and profiles do: measure again.",
            code="measurements-invalid",
        )
    return data


def _check(model: type[_Model], entry: Any, path: Path) -> _Model:
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "an entry"
        raise UserError(
            f"'{path}' does not fit at '{where}': {first['msg']}; measure again.", code="measurements-invalid"
        ) from None


def by_name(layers: Iterable[LayerInfo]) -> dict[str, LayerInfo]:
    """Return name -> layer."""
    return {layer.name: layer for layer in layers}
