"""What an engine depends on. A plan is only good for the graph, the software and the GPU that it was built with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from divprune_edge.errors import either
from divprune_edge.manifest import Manifest, Strict
from divprune_edge.models.profiles import EngineLimits
from divprune_edge.models.tensorrt import EDITIONS, Name
from divprune_edge.runtime.engines.facts import DeviceFacts

DIGITS = 16


class Facts(Strict):
    """Everything that the engines in one folder depend on.

    Attributes:
        onnx: engine -> sha256 over the graph that it was built from, with its external data.
        edition: of TensorRT.
        tensorrt: version, all parts of it.
        cuda: version that the driver offers, major and minor; None where the driver finishes engines itself.
        sms: compute capabilities, times ten, of the GPUs that they are for.
        plugin: sha256 of the plugin library; None where no selector here needs it.
        limits: shapes that the language model was built for.
    """

    onnx: dict[str, str]
    edition: Name
    tensorrt: str
    cuda: str | None
    sms: tuple[int, ...]
    plugin: str | None
    limits: EngineLimits


def fingerprint(facts: Facts) -> str:
    """Return 16 hexadecimal digits that any change of ``facts`` changes."""
    # The number of images is in that of visual tokens: engines that were built before it was stated keep their name.
    return digest(facts.model_dump_json(exclude={"limits": {"images"}}))[:DIGITS]


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def graph_digest(manifest: Manifest, file: str, data: tuple[str, ...] = ()) -> str:
    """Return one sha256 for a graph and its external data, made from those that the manifest states."""
    return digest("\n".join(f"{manifest.files[name].sha256} {name}" for name in (file, *sorted(data))))


def differences(built: Facts, here: DeviceFacts, graphs: Mapping[str, str]) -> list[str]:
    """Return what differs between the engines' facts and this device, each as ``built with A, this is B``.

    Args:
        built: the stored facts.
        here: this device.
        graphs: engine -> sha256 of its graph now; of the engines that count.
    """
    library = f"{EDITIONS[built.edition].title} {built.tensorrt}"
    found = [
        f"were built with {before}, but this is {now}"
        for same, before, now in (
            (set(here.sms) <= set(built.sms), sm_names(built.sms), sm_names(here.sms)),
            (library == here.library, library, here.library),
            (built.cuda == here.cuda, f"CUDA {built.cuda}", f"CUDA {here.cuda}"),
        )
        if not same
    ]
    for engine, now in graphs.items():
        before = built.onnx.get(engine)
        if before is not None and before != now:
            found.append(
                f"were built from another graph of '{engine}' (sha256 {before[:12]}…, now {now[:12]}…)"
            )
    return found


def sm_names(sms: Iterable[int]) -> str:
    """Return ``sm_80, sm_86 or sm_89``."""
    return either(f"sm_{sm}" for sm in sms)
