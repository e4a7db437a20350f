"""Every FAKE of TensorRT is held to the real bindings: what it has, they have, and take in the same calls.

That of CUDA is held to CUDA's in test_bindings.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from enum import Enum
from types import SimpleNamespace

import fake_cuda
import pytest
from bindings import RTX, Bindings, Methods, classes_of, fits, open_bindings
from plugins_emulation import ROOT, need_rtx

pytestmark = pytest.mark.xdist_group("tensorrt")
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106", RTX)
FAKES = {
    "FakeTensorRt": "",
    "Runtime": "Runtime",
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
    "PluginRegistry": "IPluginRegistry",
    "PluginCreator": "IPluginCreatorV3One",
}
"""Class of ``fake_cuda`` -> what it stands for; the empty name is the module."""
RTX_FAKES = {"RuntimeConfig": "IRuntimeConfig", "RuntimeCache": "IRuntimeCache"}
RTX_ALONE = {"CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "create_runtime_config"}
"""What only TensorRT-RTX has, of classes that both have."""
SHIM = {"CudaEngine": "ICudaEngine", "EngineInspector": "EngineInspector", "Network": "INetworkDefinition"}
SHIM |= {"PluginLayer": "ILayer"}


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return open_bindings(request.param, tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def classes(bindings: Bindings) -> dict[str, Methods]:
    return classes_of(bindings.type_stubs())


def shim_classes() -> Iterator[tuple[type, str]]:
    """Yield what ``fake_tensorrt`` defines with what it stands for."""
    need_rtx()
    import fake_tensorrt

    module = fake_tensorrt.make_module(fake_tensorrt.World())
    own = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    assert set(own) == {"Builder", "OnnxParser", "Runtime"}
    yield from ((value, name) for name, value in own.items())
    yield from ((getattr(fake_tensorrt, name), kind) for name, kind in SHIM.items())


def parted(fake: type, kind: str, classes: dict[str, Methods]) -> list[str]:
    """Return where a fake parts from the class (or module) that it stands for."""
    members = classes.get(kind)
    if members is None:
        return [f"there is no {kind}"]
    found = []
    for name, value in vars(fake).items():
        if name.startswith("_"):
            continue
        if name not in members and not (not kind and name in classes):
            found.append(f"{kind or 'tensorrt'} has no {name}")
        elif isinstance(value, SimpleNamespace) or (isinstance(value, type) and not issubclass(value, Enum)):
            nested = vars(value) if isinstance(value, SimpleNamespace) else {}
            found += [f"{name} has no {one}" for one in nested if one not in classes[name]]
        elif callable(value) and not isinstance(value, type):
            signatures = members.get(name) or classes.get(name, {}).get("__init__") or []
            arguments = list(inspect.signature(value).parameters)[1:]
            call = ast.Call(ast.Name("f"), [ast.Name(one) for one in arguments], [])
            if not any(fits(call, one) for one in signatures):
                found.append(f"{kind or 'tensorrt'}.{name} takes no call with ({', '.join(arguments)})")
    return found


def test_fakes_are_like_the_bindings(classes: dict[str, Methods], bindings: Bindings) -> None:
    fakes = [(getattr(fake_cuda, name), kind) for name, kind in FAKES.items()]
    if bindings.version == RTX:
        fakes += [(getattr(fake_cuda, name), kind) for name, kind in RTX_FAKES.items()]
        fakes += shim_classes()
    found = [problem for fake, kind in fakes for problem in parted(fake, kind, classes)]
    allowed = [] if bindings.version == RTX else RTX_ALONE
    assert [problem for problem in found if problem.split()[-1] not in allowed] == []


def test_members_of_enums_are_there(classes: dict[str, Methods], bindings: Bindings) -> None:
    wanted = {
        "TensorLocation": {"DEVICE", "HOST"},
        "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
        "CudaGraphStrategy": {"DISABLED"},
        "DynamicShapesKernelSpecializationStrategy": {"LAZY", "EAGER"},
    }
    own = {one.name for one in fake_cuda.Strategy}
    assert own == set().union(*wanted.values()) - wanted["TensorLocation"]
    for name, members in wanted.items():
        if bindings.version == RTX or name not in RTX_ALONE:
            assert members <= set(classes[name]), name


class Wrong:
    """A fake that has parted from an execution context."""

    def set_input_shape(self, name: str) -> bool:
        return True

    def enqueue_v2(self, stream: int) -> bool:
        return True

    @property
    def device_memory_size(self) -> int:
        return 0


def test_a_fake_that_has_parted_is_found(classes: dict[str, Methods]) -> None:
    assert parted(Wrong, "IExecutionContext", classes) == [
        "IExecutionContext.set_input_shape takes no call with (name)",
        "IExecutionContext has no enqueue_v2",
        "IExecutionContext has no device_memory_size",
    ]
    assert parted(Wrong, "IExecutionContxt", classes) == ["there is no IExecutionContxt"]


def test_every_fake_is_held_to_them() -> None:
    """A class that is added to the stand-ins must be added above."""
    for module, own, held in (
        (
            "fake_cuda",
            {"cudaError_t", "Kind", "Strategy", "OtherCreator", "FakeRuntime"},
            {**FAKES, **RTX_FAKES},
        ),
        ("fake_tensorrt", {"Built", "World"}, SHIM),
    ):
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
        assert {node.name for node in tree.body if isinstance(node, ast.ClassDef)} - own == set(held), module
