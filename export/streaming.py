"""Writing gigabytes: while one weight goes to disk, the next is computed and what is written already is hashed.

Both are one thread each, so at most two weights are in memory, and the file is hashed while the system still holds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

_CHUNK = 4 * 2**20


@contextmanager
def computed_ahead(model: ir.Model) -> Iterator[None]:
    """Compute each lazy weight of the main graph while the one before it is used; they are used in graph order."""
    values = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)]
    lazy = [value.const_value for value in values]
    with ThreadPoolExecutor(max_workers=1) as pool:
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


class _Ahead:
    """Results of functions, each begun when the one before it is taken."""

    def __init__(self, pool: ThreadPoolExecutor, functions: list[Callable[[], ir.TensorProtocol]]) -> None:
        self._pool = pool
        self._functions = functions
        self._begun: tuple[int, Future[ir.TensorProtocol]] | None = None

    def taker(self, index: int) -> Callable[[], ir.TensorProtocol]:
        """Return a function that returns what the function ``index`` does."""

        def take() -> ir.TensorProtocol:
            begun, self._begun = self._begun, None
            expected = begun is not None and begun[0] == index
            result = begun[1].result() if begun is not None and expected else self._functions[index]()
            if index + 1 < len(self._functions):
                self._begun = index + 1, self._pool.submit(self._functions[index + 1])
            return result

        return take


class FollowingHash:
    """The sha256 of a file that is being written from front to back; a context that ends with the writing."""

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
        if self._last is None or self._last.done():
            self._last = self._pool.submit(self._advance, offset)

    def finish(self) -> str:
        """Return the hash in hexadecimal, once the file is complete."""
        self._pool.submit(self._advance, self._path.stat().st_size).result()
        return self._digest.hexdigest()

    def _advance(self, offset: int) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb", buffering=0) as stream:
            stream.seek(self._read)
            # What the writer still holds back is missing here and comes with the next call.
            while self._read < offset and (data := stream.read(min(_CHUNK, offset - self._read))):
                self._digest.update(data)
                self._read += len(data)
