"""What an engine depends on. A plan is only good for the graph, the software and the GPU that it was built with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from divprune_edge.manifest import Manifest
from divprune_edge.runtime.engines.profiles import Limits

DIGITS = 16


class Facts(BaseModel):
    """Everything that the engines in one folder depend on.

    Attributes:
        onnx: engine -> sha256 over the graph that it was built from, with its external data.
        tensorrt: version, all parts of it.
        cuda: version that the driver offers, major and minor.
        sm: the GPU's compute capability times ten.
        plugin: sha256 of the plugin library; None where no selector here needs it.
        limits: shapes that the language model was built for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    onnx: dict[str, str]
    tensorrt: str
    cuda: str
    sm: int
    plugin: str | None
    limits: Limits


def fingerprint(facts: Facts) -> str:
    """Return 16 hexadecimal digits that any change of ``facts`` changes."""
    return digest(facts.model_dump_json())[:DIGITS]


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def graph_digest(manifest: Manifest, file: str, data: tuple[str, ...] = ()) -> str:
    """Return one sha256 for a graph and its external data, made from those that the manifest states."""
    return digest("\n".join(f"{manifest.files[name].sha256} {name}" for name in (file, *sorted(data))))


def differences(built: Facts, here: Mapping[str, object]) -> list[str]:
    """Return what differs between the engines' facts and this device, each as ``built with A, this is B``.

    Args:
        built: the stored facts.
        here: some fields of :class:`Facts` -> their values now; of ``onnx`` only the engines given are compared.
    """
    found = []
    for name, title in (("sm", "sm_{}"), ("tensorrt", "TensorRT {}"), ("cuda", "CUDA {}")):
        before, now = getattr(built, name), here[name]
        if before != now:
            found.append(f"were built with {title.format(before)}, but this is {title.format(now)}")
    graphs = here["onnx"]
    assert isinstance(graphs, dict)
    for engine, now in graphs.items():
        before = built.onnx.get(engine)
        if before is not None and before != now:
            found.append(
                f"were built from another graph of '{engine}' (sha256 {before[:12]}…, now {str(now)[:12]}…)"
            )
    return found
