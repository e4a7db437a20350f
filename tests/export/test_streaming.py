"""Computing ahead and hashing behind: the same bytes, few weights in memory, errors where they belong."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.streaming import FollowingHash, computed_ahead
from divprune_edge.export.writer import file_info, write_graph
from divprune_edge.manifest import FileInfo

SIZE = 5000


class Loads:
    """Makes lazy weights and remembers which were computed, by which thread."""

    def __init__(self, failing: int | None = None) -> None:
        self.computed: list[int] = []
        self.threads: set[int] = set()
        self._failing = failing

    def model(self, count: int) -> ir.Model:
        g = GraphBuilder("weights")
        x = g.input("x", "float32", [SIZE])
        for i in range(count):
            x = g.op("Add", x, g.initializer(f"w{i}", self._lazy(i)))
        g.output(x, "y", "float32", [SIZE])
        return g.model(20)

    def _lazy(self, index: int) -> ir.LazyTensor:
        def load() -> ir.TensorProtocol:
            if index == self._failing:
                raise UserError("The weight is damaged.", code="weights-damaged")
            self.computed.append(index)
            self.threads.add(threading.get_ident())
            return ir.Tensor(np.full(SIZE, index, np.float32), name=f"w{index}")

        return ir.LazyTensor(load, ir.DataType.FLOAT, ir.Shape([SIZE]), name=f"w{index}")


def test_weights_are_computed_once_and_in_order(tmp_path: Path) -> None:
    loads = Loads()
    hashed: dict[str, FileInfo] = {}
    graph = write_graph(loads.model(7), tmp_path, "g.onnx", hashed=hashed)
    assert sorted(loads.computed) == list(range(7))
    assert threading.get_ident() in loads.threads and len(loads.threads) > 1
    stored = np.fromfile(tmp_path / "g.data", np.float32).reshape(7, SIZE)
    assert (stored == np.arange(7)[:, None]).all()
    assert graph.data == ("g.data",)
    assert hashed == {"g.data": file_info(tmp_path / "g.data")}


def test_four_weights_ahead_and_no_more() -> None:
    loads = Loads()
    model = loads.model(9)
    with computed_ahead(model):
        tensors = [value.const_value for value in model.graph.initializers.values()]
        assert tensors[0] is not None
        tensors[0].numpy()
    assert set(loads.computed) <= {0, 1, 2, 3, 4}


def test_a_model_can_be_written_again(tmp_path: Path) -> None:
    loads = Loads()
    model = loads.model(7)
    first: dict[str, FileInfo] = {}
    second: dict[str, FileInfo] = {}
    write_graph(model, tmp_path, "first.onnx", hashed=first)
    write_graph(model, tmp_path, "second.onnx", hashed=second)
    assert first["first.data"] == second["second.data"]
    assert all(value.const_value.numpy().size == SIZE for value in model.graph.initializers.values())
    assert sorted(loads.computed) == sorted([*range(7)] * 3)


def test_another_order_is_right_too() -> None:
    model = Loads().model(4)
    with computed_ahead(model):
        tensors = [value.const_value for value in model.graph.initializers.values()]
        seen = [tensor.numpy()[0] for i in (2, 0, 3, 3, 1) if (tensor := tensors[i]) is not None]
    assert seen == [2, 0, 3, 3, 1]


def test_an_error_ahead_reaches_the_writer(tmp_path: Path) -> None:
    with refused("weights-damaged"):
        write_graph(Loads(failing=3).model(5), tmp_path, "g.onnx", hashed={})


@pytest.mark.parametrize("piece", [1, 1000, 3_000_000])
def test_a_hash_follows_a_growing_file(tmp_path: Path, piece: int) -> None:
    content = np.random.default_rng(0).bytes(20 * piece)
    path, unfinished = tmp_path / "file", tmp_path / ".file.x" / "file"
    with FollowingHash(path) as following:
        following.reach(10)  # not there yet
        unfinished.parent.mkdir()
        with unfinished.open("wb") as stream:
            for start in range(0, len(content), piece):
                stream.write(content[start : start + piece])
                following.reach(start + piece)  # some of it may still be in the writer's buffer
        unfinished.rename(path)
        assert following.finish() == hashlib.sha256(content).hexdigest()


def test_a_graph_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lies in a folder of its own until it is whole; most of it has been read by then."""
    ahead: list[float] = []
    finish = FollowingHash.finish

    def finishing(self: FollowingHash) -> str:
        if self._last is not None:
            self._last.result()
        ahead.append(self._read / self._path.stat().st_size)
        return finish(self)

    monkeypatch.setattr(FollowingHash, "finish", finishing)
    reach = FollowingHash.reach

    def reaching(self: FollowingHash, offset: int) -> None:
        reach(self, offset)
        if self._last is not None:
            self._last.result()

    monkeypatch.setattr(FollowingHash, "reach", reaching)
    write_graph(Loads().model(40), tmp_path, "g.onnx", hashed={})
    assert ahead[0] > 0.8


def test_holes_are_zeros(tmp_path: Path) -> None:
    path, unfinished = tmp_path / "file", tmp_path / ".file.x" / "file"
    unfinished.parent.mkdir()
    with FollowingHash(path) as following:
        with unfinished.open("wb") as stream:
            stream.write(b"a")
            following.reach(4096)
            stream.seek(4096)
            stream.write(b"b")
        unfinished.rename(path)
        assert following.finish() == hashlib.sha256(b"a" + bytes(4095) + b"b").hexdigest()


def test_what_was_there_before_is_not_hashed(tmp_path: Path) -> None:
    """A graph is written over an older one: the hash is of the new file from its first byte on."""
    write_graph(Loads().model(40), tmp_path, "g.onnx")
    old = (tmp_path / "g.data").read_bytes()
    (tmp_path / "g.data").write_bytes(bytes(reversed(old)))
    hashed: dict[str, FileInfo] = {}
    write_graph(Loads().model(40), tmp_path, "g.onnx", hashed=hashed)
    assert (tmp_path / "g.data").read_bytes() == old
    assert hashed == {"g.data": file_info(tmp_path / "g.data")}
