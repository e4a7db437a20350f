"""TensorRT's real Python bindings over stub libraries, TensorRT-RTX's as they are, and what their type stubs say."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugins_emulation import ROOT, compile_cpp, need_rtx

STUB = ROOT / "tests" / "plugins" / "tensorrt" / "stub.cpp"
SONAMES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
RTX = "RTX"


@dataclass(frozen=True)
class Bindings:
    """The environment in which ``import tensorrt``, or ``tensorrt_rtx``, gives the bindings."""

    version: str
    environment: dict[str, str]
    folder: Path
    module: str = "tensorrt_bindings.tensorrt"

    def run(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these bindings; skip the test where they are for another Python."""
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            env=os.environ | self.environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0 and "No module named 'tensorrt_bindings" in result.stderr + result.stdout:
            pytest.skip(f"the bindings {self.version} are for another Python")
        return result

    def type_stubs(self) -> Path:
        """Return a folder with stubs of a module ``tensorrt``, written from the bindings' own signatures."""
        out = self.folder / "stubs"
        main = "import sys; from mypy.stubgen import main; main(sys.argv[1:])"
        command = ["-c", main, "--inspect-mode", "-m", self.module, "-o", out]
        result = self.run(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        package, name = self.module.split(".")
        made = out / package / f"{name}.pyi"
        lines = made.read_text(encoding="utf-8").splitlines()
        made.write_text("\n".join(map(mended, lines)) + "\n", encoding="utf-8")
        made.with_name("__init__.pyi").write_text("", encoding="utf-8")
        (out / "tensorrt").mkdir()
        text = f"from {self.module} import *\n__version__: str\n"
        (out / "tensorrt" / "__init__.pyi").write_text(text, encoding="utf-8")
        return out


def mended(line: str) -> str:
    """Return a line of a stub; one whose signature is none in Python (C++ has its own rules) takes anything."""
    if not line.lstrip().startswith("def "):
        return line
    try:
        ast.parse(line.strip())
    except SyntaxError:
        return f"{line[: line.index('(')]}(self, *args, **kwargs): ..."
    return line


def open_bindings(version: str, folder: Path) -> Bindings:
    """Make stub libraries for the bindings of ``make bindings``; skip the test where these are missing.

    TensorRT-RTX is all there, and needs none.
    """
    if version == RTX:
        need_rtx()
        environment = {"POLYGRAPHY_USE_TENSORRT_RTX": "1", "PYTHONPATH": str(ROOT)}
        return Bindings(RTX, environment, folder, "tensorrt_rtx_bindings.tensorrt_rtx")
    bindings = ROOT / "build" / "bindings" / version
    if not bindings.is_dir() or platform.machine() != "x86_64":
        pytest.skip(f"no bindings in {bindings.relative_to(ROOT)} (make bindings)")
    major = version.split(".", maxsplit=1)[0]
    for name in SONAMES:
        soname = f"lib{name}.so.{major}"
        compile_cpp(folder / soname, [STUB], "-shared", "-fPIC", f"-Wl,-soname,{soname}")
    # What the package `tensorrt` does on a machine that has it.
    alias = folder / "alias" / "tensorrt"
    alias.mkdir(parents=True)
    text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (alias / "__init__.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join(map(str, (alias.parent, bindings, ROOT)))
    return Bindings(version, {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}, folder)


Methods = dict[str, list[ast.arguments] | None]
"""Attribute of a class -> the signatures that it can be called with; None for one that is no method."""


def classes_of(stubs: Path) -> dict[str, Methods]:
    """Return what the stubs say of each class, and under the empty name of the module."""
    (stub,) = stubs.glob("*_bindings/tensorrt*.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    found = {"": members_of(tree.body)}
    found |= {node.name: members_of(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}
    return found


def members_of(body: list[ast.stmt]) -> Methods:
    members: Methods = {"__version__": None}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
                members[node.name] = None
            else:
                members[node.name] = [*(members.get(node.name) or []), node.args]
        elif isinstance(node, ast.ClassDef):
            members[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            members[node.target.id] = None
    return members


def fits(call: ast.Call, signature: ast.arguments) -> bool:
    """Whether a call has the arguments that a method of a class (with ``self``) takes."""
    names = [argument.arg for argument in signature.args][1:]
    if signature.vararg is not None:
        return True
    required = len(names) - len(signature.defaults)
    given = [keyword.arg for keyword in call.keywords]
    places = names[: len(call.args)]
    return (
        len(call.args) <= len(names)
        and all(name in names and name not in places for name in given)
        and all(name in [*places, *given] for name in names[:required])
    )
