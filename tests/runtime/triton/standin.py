"""What Triton's Python backend offers a model, over a repository whose graphs ONNX Runtime runs.

It is as strict as a server with these configs would be, and where that is not known, stricter: every tensor of a
request and of a response is held against ``config.pbtxt``, no graph is fed an empty one, all are asked for on the host.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import ROOT

NUMPY = {
    "TYPE_FP32": np.float32,
    "TYPE_FP16": np.float16,
    "TYPE_INT64": np.int64,
    "TYPE_INT32": np.int32,
    "TYPE_UINT8": np.uint8,
    "TYPE_BOOL": np.bool_,
    "TYPE_STRING": np.object_,
}
Arrays = dict[str, np.ndarray]


@cache
def protobuf() -> Any:
    """Return Triton's own messages."""
    found = sorted(ROOT.glob("build/tritonclient/*/tritonclient/grpc/model_config_pb2.py"))
    if not found:
        pytest.skip("unproven: Triton's configs by its own protobuf, without it ('make bindings')")
    spec = importlib.util.spec_from_file_location("model_config_pb2", found[-1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), protobuf().ModelConfig())


def check(ports: Any, arrays: Arrays, *, whole: bool) -> None:
    """Hold tensors against a side of a config."""
    known = {port.name: port for port in ports}
    assert set(arrays) <= set(known), set(arrays) - set(known)
    if whole:
        assert {name for name, port in known.items() if not getattr(port, "optional", False)} <= set(arrays)
    kinds = protobuf().DataType
    for name, array in arrays.items():
        port = known[name]
        assert array.dtype == NUMPY[kinds.Name(port.data_type)], name
        assert len(array.shape) == len(port.dims), name
        assert all(want in (-1, has) for want, has in zip(port.dims, array.shape, strict=True)), name


class Tensor:
    """As Triton's: an array that belongs to it, and is lent."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, tensor: Any) -> Tensor:
        return cls(name, np.from_dlpack(tensor))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        lent = self._array.view()
        lent.flags.writeable = False
        return lent

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self._error = output_tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


@dataclass
class Sender:
    """What a decoupled model answers to."""

    responses: list[InferenceResponse] = field(default_factory=list)
    ended: bool = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.ended
        if response is not None:
            self.responses.append(response)
        self.ended = flags == 1


class Request:
    """One that a client sends."""

    def __init__(self, tensors: Arrays) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in tensors.items()}
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


class Server:
    """A repository, with its graphs open; ``asked`` counts their runs."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.configs = {folder.name: config_of(folder) for folder in repository.iterdir()}
        self.asked: dict[str, int] = {}
        self.refuses = ""
        self._sessions: dict[str, ort.InferenceSession] = {}

    def run(self, name: str, inputs: Arrays, outputs: list[str]) -> Arrays:
        config = self.configs[name]
        check(config.input, inputs, whole=True)
        assert all(array.size for array in inputs.values()), "an empty tensor"
        if name not in self._sessions:
            file = self.repository / name / "1" / config.default_model_filename
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self._sessions[name] = ort.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        self.asked[name] = self.asked.get(name, 0) + 1
        found = dict(zip(outputs, self._sessions[name].run(outputs, inputs), strict=True))
        check(config.output, found, whole=False)
        return found

    def module(self) -> ModuleType:
        """Return ``triton_python_backend_utils``."""
        server = self

        class InferenceRequest:
            def __init__(
                self,
                model_name: str,
                requested_output_names: list[str],
                inputs: list[Tensor],
                preferred_memory: Any,
            ) -> None:
                assert preferred_memory == ("memory", 0)
                self._asked = model_name, requested_output_names, inputs

            def exec(self) -> InferenceResponse:
                name, outputs, inputs = self._asked
                if name == server.refuses:
                    return InferenceResponse(error=TritonError("no such model"))
                found = server.run(name, {one.name(): one.as_numpy() for one in inputs}, outputs)
                return InferenceResponse(
                    [Tensor(name, np.ascontiguousarray(array)) for name, array in found.items()]
                )

        module = ModuleType("triton_python_backend_utils")
        module.Tensor, module.TritonError = Tensor, TritonError  # type: ignore[attr-defined]
        module.InferenceRequest, module.InferenceResponse = InferenceRequest, InferenceResponse  # type: ignore[attr-defined]
        module.PreferredMemory = lambda kind: ("memory", kind)  # type: ignore[attr-defined]
        module.TRITONSERVER_MEMORY_CPU, module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 0, 1  # type: ignore[attr-defined]

        def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
            return request.tensors.get(name)

        def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor:
            return next(one for one in response.tensors if one.name() == name)

        module.get_input_tensor_by_name = get_input_tensor_by_name  # type: ignore[attr-defined]
        module.get_output_tensor_by_name = get_output_tensor_by_name  # type: ignore[attr-defined]
        return module


class Answering:
    """The model that answers, as Triton starts it from its repository."""

    def __init__(self, server: Server, patch: pytest.MonkeyPatch) -> None:
        self._server = server
        (self._name,) = (name for name, config in server.configs.items() if config.backend == "python")
        patch.setitem(sys.modules, "triton_python_backend_utils", server.module())
        self.config = server.configs[self._name]
        file = server.repository / self._name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location("model", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._model = module.TritonPythonModel()
        parameters = {
            name: {"string_value": one.string_value} for name, one in self.config.parameters.items()
        }
        self._model.initialize({"model_config": json.dumps({"name": self._name, "parameters": parameters})})

    def ask(self, **tensors: Any) -> tuple[list[str], Arrays]:
        """Return the pieces of an answer, and the last response's tensors; or raise what the error says."""
        arrays = {name: np.asarray(value) for name, value in tensors.items()}
        check(self.config.input, arrays, whole=True)
        request = Request(arrays)
        assert self._model.execute([request]) is None and request.sender.ended
        last: Arrays = {}
        pieces = []
        for response in request.sender.responses:
            if response.has_error():
                error = response.error()
                assert error is not None
                raise RuntimeError(error.message())
            last = {one.name(): one.as_numpy() for one in response.tensors}
            check(self.config.output, last, whole=True)
            pieces.append(last["text"][0].decode())
        return pieces, last


def texts(*values: str | bytes) -> np.ndarray:
    return np.array([value.encode() if isinstance(value, str) else value for value in values], np.object_)
