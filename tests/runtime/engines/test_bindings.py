"""Every call of TensorRT and CUDA that the engines make, on the real Python bindings of several versions.

Neither can run here, but their bindings say what they have: TensorRT's on stub libraries that have only their entry
points, CUDA's without a driver. ``make bindings`` fetches them; without, these tests skip themselves and say so.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bindings import RTX, Bindings, classes_of, fits, open_bindings
from fake_cuda import FakeRuntime
from plugins_emulation import ROOT

pytestmark = pytest.mark.xdist_group("tensorrt")
HERE = Path(__file__).resolve().parent
ENGINES = ROOT / "runtime" / "engines"
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106", RTX)
CUDA_VERSIONS = ("12.6.2.post1", "12.9.10", "13.2.0")

OBJECTS = {"_tensorrt": "", "tensorrt": "", "trt": "", "_runtime": "Runtime", "runtime": "Runtime"}
OBJECTS |= {"engine": "ICudaEngine", "_engine": "ICudaEngine", "inspector": "EngineInspector"}
OBJECTS |= {"context": "IExecutionContext", "_context": "IExecutionContext"}
OBJECTS |= {"runtime_config": "IRuntimeConfig", "runtime_cache": "IRuntimeCache"}
OBJECTS |= {"builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser"}
"""What a name in the modules that call TensorRT stands for: a class of it, or the module."""

PROBE = """
import tensorrt as trt

def wrong(builder: trt.Builder, engine: trt.ICudaEngine, context: trt.IExecutionContext) -> None:
    builder.create_netwrk()
    builder.create_network("strong")
    trt.BuilderFlag.TF33
    engine.create_engine_inspector().get_engine_information()
    context.set_input_shape(1)
"""
PROBE_ERRORS = 5


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return open_bindings(request.param, tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def stubs(bindings: Bindings) -> Path:
    return bindings.type_stubs()


def test_what_runs_without_a_gpu(bindings: Bindings) -> None:
    result = bindings.run(HERE / "surface.py")
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    version = "-RTX 1.7.1.116" if bindings.version == RTX else f" {bindings.version}"
    assert result.stdout.splitlines()[-1] == f"TensorRT{version}"


def test_the_builder_fits_the_types(bindings: Bindings, stubs: Path, tmp_path: Path) -> None:
    """mypy on the module that builds, against the signatures of the bindings; and on a probe that must fail."""
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    builder = tmp_path / "builder.py"
    builder.write_text((ENGINES / "compile.py").read_text(encoding="utf-8"), encoding="utf-8")
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--no-error-summary"]
    options += [
        "--allow-subclassing-any",
        "--allow-untyped-calls",
        "--cache-dir",
        os.devnull,
        "--no-color-output",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "builder.py", "probe.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    # The stubs themselves are not written as strictly as this.
    assert len([line for line in errors if line.startswith("probe.py")]) >= PROBE_ERRORS, result.stdout
    assert [line for line in errors if line.startswith("builder.py")] == [], result.stderr


def uses_in(source: str) -> Iterator[tuple[str, str, ast.Call | None, int]]:
    """Yield (class, attribute, the call if it is one, line) of each use of an object of TensorRT."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        chain = chain_of(node.value)
        if chain and chain[-1] in OBJECTS and chain[:-1] in ([], ["self"]):
            yield OBJECTS[chain[-1]], node.attr, calls.get(id(node)), node.lineno
        elif len(chain) >= 2 and OBJECTS.get(chain[-2]) == "" and chain[:-2] in ([], ["self"]):
            yield chain[-1], node.attr, calls.get(id(node)), node.lineno


def chain_of(node: ast.expr) -> list[str]:
    """Return the names of ``a.b.c``; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = chain_of(node.value)
        return [*before, node.attr] if before else []
    return []


def problems(source: str, stubs: Path) -> list[str]:
    """Return what the bindings do not have, or cannot be called like that."""
    classes = classes_of(stubs)
    found = []
    for kind, attribute, call, line in uses_in(source):
        members = classes.get(kind)
        if members is None:
            found.append(f"line {line}: no class {kind}")
        elif attribute not in members and attribute not in classes:
            found.append(f"line {line}: {kind or 'tensorrt'} has no {attribute}")
        elif call is not None and kind and not any(fits(call, one) for one in members[attribute] or []):
            found.append(f"line {line}: {kind}.{attribute} cannot be called like that")
    return found


USES = {"compile.py": 10, "plan.py": 10, "log.py": 2, "finish.py": 10}
"""Module -> more uses of TensorRT than this."""


@pytest.mark.parametrize("module", USES)
def test_every_name_is_there(stubs: Path, bindings: Bindings, module: str) -> None:
    source = (ENGINES / module).read_text(encoding="utf-8")
    assert len(list(uses_in(source))) > USES[module], "the walk finds what the module uses"
    if module == "finish.py" and bindings.version != RTX:
        assert problems(source, stubs), "finishing is TensorRT-RTX's alone"
    else:
        assert problems(source, stubs) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("self._tensorrt.Runtme(1)", "tensorrt has no Runtme"),
        ("trt.LayerType.PLUGIN_V9", "LayerType has no PLUGIN_V9"),
        (
            "self._context.set_input_shape('x')",
            "IExecutionContext.set_input_shape cannot be called like that",
        ),
        ("context.execute_async_v3(1, 2)", "IExecutionContext.execute_async_v3 cannot be called like that"),
        (
            "context.execute_async_v3(stream=1)",
            "IExecutionContext.execute_async_v3 cannot be called like that",
        ),
        ("engine.device_memory", "ICudaEngine has no device_memory"),
    ],
)
def test_a_name_that_is_not_there_is_found(stubs: Path, line: str, problem: str) -> None:
    assert problems(line, stubs) == [f"line 1: {problem}"]


def test_all_modules_with_tensorrt_are_looked_at() -> None:
    """A module that begins to use TensorRT must be added above."""
    using = {
        path.name
        for path in [*ENGINES.glob("*.py"), *(ROOT / "runtime" / "backends").glob("*.py")]
        if any(kind or attribute != "__version__" for kind, attribute, *_ in uses_of_tensorrt(path))
    }
    assert using == set(USES)


def uses_of_tensorrt(path: Path) -> list[tuple[str, str, ast.Call | None, int]]:
    source = path.read_text(encoding="utf-8")
    if not any(words in source for words in ("import tensorrt", ".load()", "tensorrt: Any")):
        return []
    return list(uses_in(source))


CUDA_CHECK = """
import json, sys
from cuda.bindings import runtime
import cuda.bindings
found = {}
for name in json.load(sys.stdin):
    value = runtime
    for part in name.split("."):
        value = getattr(value, part, None)
    found[name] = None if value is None else (getattr(value, "__doc__", None) or "").splitlines()[:1]
print(json.dumps({"version": cuda.bindings.__version__, "found": found}))
"""


def cuda_uses(source: str) -> dict[str, set[int | None]]:
    """Return each name of CUDA's runtime -> with how many arguments it is called; None for a use without a call."""
    uses: dict[str, set[int | None]] = {}
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name = cuda_name(node)
            if name:
                uses.setdefault(name, set()).add(None)
        if isinstance(node, ast.Call):
            # Directly, or handed with its arguments to the method that calls it and checks the status.
            through = isinstance(node.func, ast.Attribute) and node.func.attr in ("_call", "_open")
            function, arguments = (node.args[1], node.args[2:]) if through else (node.func, node.args)
            name = cuda_name(function)
            if name and not any(isinstance(one, ast.Starred) for one in arguments):
                uses.setdefault(name, set()).add(len(arguments))
    return uses


def cuda_name(node: ast.expr) -> str | None:
    chain = chain_of(node)
    at = next((i for i, part in enumerate(chain) if part.startswith("cuda") and part[4:5].isupper()), None)
    return ".".join(chain[at:]) if at is not None else None


def arity(signature: str) -> int:
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    return len([part for part in inside.split(",") if part.strip()])


@pytest.mark.parametrize("version", CUDA_VERSIONS)
def test_every_name_of_cuda_is_there(version: str) -> None:
    folder = ROOT / "build" / "cuda-bindings" / version
    if not folder.is_dir():
        pytest.skip(f"no bindings in {folder.relative_to(ROOT)} (make bindings)")
    uses: dict[str, set[int | None]] = {}
    for module in ("facts.py", "cuda.py"):
        for name, counts in cuda_uses((ENGINES / module).read_text(encoding="utf-8")).items():
            uses.setdefault(name, set()).update(counts)
    assert len(uses) > 20
    fakes = [name for name in vars(FakeRuntime) if name.startswith("cuda")]
    result = subprocess.run(
        [sys.executable, "-c", CUDA_CHECK],
        input=json.dumps([*uses, *fakes, "cudaNoSuchThing"]),
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in result.stderr:
        pytest.skip(f"the bindings in {folder.relative_to(ROOT)} are for another Python")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["version"] == version
    missing = [name for name, found in answer["found"].items() if found is None]
    assert missing == ["cudaNoSuchThing"]
    called = {name: counts - {None} for name, counts in uses.items() if counts - {None}}
    assert called
    for name in fakes:
        # Beside the functions it has what a call is given.
        value = getattr(FakeRuntime, name)
        if callable(value) and not isinstance(value, type):
            called.setdefault(name, set()).add(len(inspect.signature(value).parameters) - 1)
    for name, counts in called.items():
        (signature,) = answer["found"][name]
        assert counts == {arity(signature)}, signature
