"""A bundle to a model repository: one model for each graph, and one that answers over them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import GraphInfo, SelectorInfo
from divprune_edge.models.dialects import DIALECTS, option
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.triton.graphs import ASSEMBLE, ENCODER, LANGUAGE, model_name
from divprune_edge.scratch import scratch

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
CODE = '"""Written by `python -m runtime triton`; Triton\'s Python must have divprune-edge installed."""\n\n'
CODE += "from divprune_edge.runtime.triton.model import TritonPythonModel  # noqa: F401\n"


@dataclass(frozen=True)
class Port:
    """An input or output of a model; -1 in ``dims`` is any size."""

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False

    def text(self) -> str:
        """Return it as Triton writes it."""
        dims = ", ".join(map(str, self.dims))
        more = " optional: true" if self.optional else ""
        return f"  {{ name: {json.dumps(self.name)} data_type: {self.type} dims: [ {dims} ]{more} }}"


INPUTS = (
    Port("image", "TYPE_STRING", (-1,), optional=True),
    Port("question", "TYPE_STRING", (1,)),
    Port("selector", "TYPE_STRING", (1,), optional=True),
    Port("max_tokens", "TYPE_INT32", (1,), optional=True),
    Port("temperature", "TYPE_FP32", (1,), optional=True),
    Port("top_p", "TYPE_FP32", (1,), optional=True),
    Port("seed", "TYPE_INT64", (1,), optional=True),
)
OUTPUTS = (
    Port("text", "TYPE_STRING", (1,)),
    Port("finish_reason", "TYPE_STRING", (1,)),
    Port("kept_indices", "TYPE_INT64", (-1,)),
    Port("prompt_tokens", "TYPE_INT64", (1,)),
    Port("tokens", "TYPE_INT64", (1,)),
)


def write_repository(
    bundle: Bundle,
    folder: Path,
    name: str,
    *,
    gpu: bool = False,
    instances: int = 1,
    place: str | None = None,
) -> list[str]:
    """Write the repository as ``folder``, which must not be there, and return the models' names.

    Args:
        bundle: whose graphs; files are linked where the file system lets them be, and copied elsewhere.
        folder: of the repository.
        name: of the model that answers; those of the graphs begin with it.
        gpu: the graphs run on a GPU.
        instances: questions that are answered at a time.
        place: where Triton finds the bundle, whose manifest and tokenizer it reads; None: where it is now.

    Raises:
        UserError: the bundle's dialect is another one, it has a schedule, the name cannot be a model's, or the folder
            cannot be written.
    """
    language = bundle.manifest.language_model
    if not DIALECTS[language.dialect].grows:
        raise UserError(
            f"The bundle's language model is in dialect '{language.dialect}', whose cache Triton cannot hand from step "
            f"to step: export with {option(lambda one: one.grows)}.",
            code="triton-dialect",
        )
    if language.schedule is not None:
        raise UserError(
            f"The language model is a chain of graphs ('{language.schedule.method}'), and a repository has one: "
            "export without --schedule.",
            code="triton-schedule",
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UserError(
            f"'{name}' cannot be a model's name: expected up to 64 letters, digits, '-', '_' and '.'.",
            code="triton-name",
        )
    if folder.exists():
        raise UserError(f"'{folder}' is there already: choose another --output.", code="output-exists")
    graphs = _graphs(bundle)
    try:
        with scratch(folder.absolute().parent, folder.name, busy=f"'{folder}' is being written.") as work:
            made = work / "repository"
            for graph, info in graphs.items():
                _write_graph(bundle, made / model_name(name, graph), info, gpu=gpu)
            _write_answering(made / name, place or str(bundle.path.resolve()), instances)
            made.rename(folder)
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written ({error.strerror or error}): choose another --output.",
            code="output-unwritable",
        ) from None
    return [*(model_name(name, graph) for graph in graphs), name]


def _graphs(bundle: Bundle) -> dict[str, GraphInfo]:
    manifest = bundle.manifest
    found: dict[str, GraphInfo] = {ENCODER: manifest.vision_encoder}
    if manifest.assemble is not None:
        found[ASSEMBLE] = manifest.assemble
    selectors: Sequence[SelectorInfo] = manifest.selectors
    return found | {one.id: one for one in selectors} | {LANGUAGE: manifest.language_model}


def _write_graph(bundle: Bundle, folder: Path, info: GraphInfo, *, gpu: bool) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    graph = Path(info.file)
    for file in (info.file, *info.data):
        # External data lies where the graph's file says, which is beside it.
        target = version / Path(file).relative_to(graph.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(bundle.file(file), target)
        except OSError:
            shutil.copyfile(bundle.file(file), target)
    ports = [
        [Port(one.name, TYPES[one.dtype], _dims(one.shape)) for one in side]
        for side in (info.inputs, info.outputs)
    ]
    text = _config(folder.name, "onnxruntime", *ports, instances=1, gpu=gpu)
    (folder / "config.pbtxt").write_text(f'{text}default_model_filename: "{graph.name}"\n', encoding="utf-8")


def _write_answering(folder: Path, bundle: str, instances: int) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(CODE, encoding="utf-8")
    text = _config(folder.name, "python", INPUTS, OUTPUTS, instances=instances, gpu=False)
    text += "model_transaction_policy { decoupled: true }\n"
    text += f'parameters [ {{ key: "bundle" value: {{ string_value: {json.dumps(bundle)} }} }} ]\n'
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _config(
    name: str, backend: str, inputs: Iterable[Port], outputs: Iterable[Port], *, instances: int, gpu: bool
) -> str:
    sides = [",\n".join(port.text() for port in side) for side in (inputs, outputs)]
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    return (
        f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 0\n'
        f"input [\n{sides[0]}\n]\noutput [\n{sides[1]}\n]\n"
        f"instance_group [ {{ count: {instances} kind: {kind} }} ]\n"
    )


def _dims(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)
