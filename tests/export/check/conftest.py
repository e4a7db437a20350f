"""Bundles of the demo checkpoint in every dialect, and single nodes as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from exporting import Bundle, export, plan_of

from divprune_edge.export.add_selector import add_selectors
from divprune_edge.models.demo import CHECKPOINT

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Return the demo's bundle in a dialect and precision, with every selector at 58 tokens."""

    @cache
    def get(dialect: str, precision: str = "fp16", **options: Any) -> Bundle:
        folder = tmp_path_factory.mktemp("demo") / dialect
        plan = plan_of(CHECKPOINT, keep=58, dialect=dialect, precision=precision, signals="all", **options)
        made = export(plan, folder)
        list(add_selectors(folder, "all", "58", force=False, verify=False))
        return made

    return get


@pytest.fixture
def one_node(tmp_path: Path) -> Make:
    """Write a graph of one node: inputs as (name, type, shape), constants by name."""

    def make(
        op: str,
        inputs: Sequence[tuple[str, str, Sequence[int | str]]],
        outputs: Sequence[str] = ("y",),
        constants: Sequence[onnx.TensorProto] = (),
        opset: int = 20,
        order: Sequence[str] = (),
        graph_outputs: bool = True,
        **attributes: Any,
    ) -> Path:
        domain = attributes.pop("domain", "")
        names = list(order) or [name for name, _, _ in inputs] + [tensor.name for tensor in constants]
        node = onnx.helper.make_node(op, names, outputs, name=f"/the/{op}", domain=domain, **attributes)
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(_np(kind)), shape
                )
                for name, kind, shape in inputs
            ],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name]
            if graph_outputs
            else [],
            list(constants),
        )
        imports = [onnx.helper.make_opsetid("", opset)]
        if domain:
            imports.append(onnx.helper.make_opsetid(domain, 1))
        path = tmp_path / f"{op}.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=imports), path)
        return path

    return make


def _np(kind: str) -> Any:
    import numpy as np

    return np.dtype(kind)
