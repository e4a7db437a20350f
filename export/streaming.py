"""Writing gigabytes: while one weight goes to disk, the next two are computed and what is written is hashed.

So at most three weights are in memory, and the file is hashed while the system still holds it.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

_CHUNK = 4 * 2**20
# Values and scales of a weight are two, and of these one waits for the other: four are two weights.
_AHEAD = 4


@contextmanager
def computed_ahead(model: ir.Model) -> Iterator[None]:
    """Compute each lazy weight of the main graph while those before it are used; they are used in graph order.

    Afterwards the model has the weights that it had before.
    """
    values = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)]
    lazy = [value.const_value for value in values]
    with ThreadPoolExecutor(max_workers=_AHEAD) as pool:
        ahead = _Ahead(pool, [tensor.raw for tensor in lazy if isinstance(tensor, ir.LazyTensor)])
        for i, (value, tensor) in enumerate(zip(values, lazy, strict=True)):
            assert tensor is not None
            value.const_value = ir.LazyTensor(
                ahead.taker(i), tensor.dtype, ir.Shape(tensor.shape), name=tensor.name or ""
            )
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            for value, tensor in zip(values, lazy, strict=True):
                value.const_value = tensor


class _Ahead:
    """Results of functions; when one is taken, those after it are begun."""

    def __init__(self, pool: ThreadPoolExecutor, functions: list[Callable[[], ir.TensorProtocol]]) -> None:
        self._pool = pool
        self._functions = functions
        self._begun: dict[int, Future[ir.TensorProtocol]] = {}

    def taker(self, index: int) -> Callable[[], ir.TensorProtocol]:
        """Return a function that returns what the function ``index`` does."""

        def take() -> ir.TensorProtocol:
            wanted = range(index + 1, min(index + 1 + _AHEAD, len(self._functions)))
            mine = self._begun.pop(index, None)
            # What was begun for another order is let go.
            self._begun = {i: future for i, future in self._begun.items() if i in wanted}
            result = mine.result() if mine is not None else self._functions[index]()
            for i in wanted:
                if i not in self._begun:
                    self._begun[i] = self._pool.submit(self._functions[i])
            return result

        return take


class FollowingHash:
    """The sha256 of a file that is being written from front to back; a context that ends with the writing.

    Until it is whole, onnx_ir writes it in a folder beside it, ``.NAME.…``; what lies at ``path`` meanwhile is older.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._read = 0
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> FollowingHash:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def reach(self, offset: int) -> None:
        """Hash what lies before ``offset``, in the background; nothing there will change any more."""
        unfinished = self._unfinished()
        # Where it is moved before it is opened, the future keeps the error to itself and finish() goes on.
        if unfinished is not None and (self._last is None or self._last.done()):
            self._last = self._pool.submit(self._advance, unfinished, offset)

    def finish(self) -> str:
        """Return the hash in hexadecimal, once the file is complete."""
        self._pool.submit(self._advance, self._path, self._path.stat().st_size).result()
        return self._digest.hexdigest()

    def _advance(self, path: Path, offset: int) -> None:
        with path.open("rb", buffering=0) as stream:
            stream.seek(self._read)
            # What the writer still holds back is missing here and comes with the next call.
            while self._read < offset and (data := stream.read(min(_CHUNK, offset - self._read))):
                self._digest.update(data)
                self._read += len(data)

    def _unfinished(self) -> Path | None:
        return next(
            self._path.parent.glob(f".{glob.escape(self._path.name)}.*/{glob.escape(self._path.name)}"), None
        )
