"""Which list serves which TensorRT, and what the changelog adds to it."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.export.check.tables import table_for
from divprune_edge.models.targets import TARGETS


@pytest.mark.parametrize(
    ("version", "listed", "additions"),
    [
        ("10.1", "10.1", ()),
        ("10.3", "10.1", ("10.3",)),
        ("10.3.0", "10.1", ("10.3",)),
        ("10.14", "10.1", ("10.3", "10.4", "10.5", "10.8", "10.12", "10.14")),
        ("10.15", "10.15", ()),
        ("10.16", "10.15", ()),
        ("11.4", "10.15", ("11.0",)),
    ],
)
def test_which_list_serves_which_version(version: str, listed: str, additions: tuple[str, ...]) -> None:
    table = table_for(version)
    assert (table.listed, table.additions) == (listed, additions)
    assert f"list of TensorRT {listed} (onnx/onnx-tensorrt, docs/operators.md at" in table.provenance


def test_every_target_has_a_list() -> None:
    for target in TARGETS.values():
        if target.tensorrt and target.backend == "tensorrt":  # TensorRT-RTX is asked itself
            table = table_for(target.tensorrt)
            # int4 weights are why opset 21 is used where the list ends at 20.
            assert target.opset <= table.opsets[1]


def test_what_decides_the_dialects() -> None:
    old, new = table_for("10.3"), table_for("10.16")
    for operator in ("Attention", "TensorScatter", "RMSNormalization", "RotaryEmbedding"):
        assert operator not in old.operators
        assert operator in new.operators
    for table in (old, new):
        assert "MatMulInteger" not in table.operators
        assert "int4" in table.operators["DequantizeLinear"]
        assert "int64" not in table.operators["CumSum"]
        assert "int64" not in table.operators["Clip"]
        assert "int64" in table.operators["Max"]
        assert [name for name, types in table.operators.items() if "uint8" in types] == ["Cast", "CastLike"]
    assert (old.opsets, new.opsets) == ((9, 20), (9, 24))


def test_lifted_restrictions_stay_lifted() -> None:
    assert table_for("10.1").lifts == frozenset()
    assert "Slice axes" in table_for("10.3").lifts
    assert {"Slice axes", "function names"} <= table_for("10.16").lifts


def test_other_versions_are_refused() -> None:
    with refused("tensorrt-too-old", "10.0", "10.1"):
        table_for("10.0")
    with refused("tensorrt-version-invalid", "new"):
        table_for("new")
