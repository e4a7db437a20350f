"""Run on TensorRT's real Python bindings over stub libraries: what the plugin and its loader use of them.

``surface.py [PLUGIN_FOLDER]``, with a module ``tensorrt`` that is the bindings on the path; prints one line for each
thing that was seen to work.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import tensorrt as trt
from creator import TAKEN, check_creator, collect

from divprune_edge.plugins.loader import PLUGIN, find_library, register


def signature(function: object) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


assert "plugin_path: str" in signature(trt.IPluginRegistry.load_library)
assert "type: str, version: str, plugin_namespace: str" in signature(trt.IPluginRegistry.get_creator)
print("registry: load_library and get_creator")

for name in ("FLOAT", "HALF", "BF16", "BOOL", "INT64"):
    assert hasattr(trt, name.lower()) or hasattr(trt.DataType, name)
assert hasattr(trt.TensorFormat, "LINEAR")
print("types: float, half, bf16, bool, int64; linear format")

for fields in TAKEN.values():
    assert [field.name for field in collect(trt, fields)] == [name for name, _ in fields]
print("fields: k as int32 and int64")

if len(sys.argv) > 1:
    registry = trt.get_plugin_registry()
    register(registry, trt.__version__, find_library(Path(sys.argv[1])))
    check_creator(trt, registry.get_creator(*PLUGIN))
    print("creator: registers through the loader, makes plugins in both phases, refuses what is no k")

print(f"TensorRT {trt.__version__}")
