"""Run on TensorRT's real Python bindings over stub libraries: what the plugin and its loader use of them.

``surface.py BINDINGS [PLUGIN_FOLDER]``; prints one line for each thing that was seen to work.
"""

from __future__ import annotations

import inspect
import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt

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

fields = []
for dtype, kind in ((np.int32, trt.PluginFieldType.INT32), (np.int64, trt.PluginFieldType.INT64)):
    field = trt.PluginField("k", np.array([58], dtype), kind)
    collection = trt.PluginFieldCollection([field])
    assert (len(collection), collection[0].name, collection[0].type) == (1, "k", kind)
    fields.append(collection)
print("fields: k as int32 and int64")

if len(sys.argv) > 2:
    from pathlib import Path

    registry = trt.get_plugin_registry()
    assert registry.get_creator(*PLUGIN) is None
    library = find_library(Path(sys.argv[2]))
    register(registry, trt.__version__, library)
    register(registry, trt.__version__, library)
    creator = registry.get_creator(*PLUGIN)
    assert isinstance(creator, trt.IPluginCreatorV3One)
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == PLUGIN
    assert [field.name for field in creator.field_names] == ["k"]
    print("loader: the library registers, once")
    for collection in fields:
        plugin = creator.create_plugin("selector", collection, trt.TensorRTPhase.BUILD)
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
        assert isinstance(
            plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME), trt.IPluginV3OneRuntime
        )
        # What TensorRT does when it reads a plan.
        assert creator.create_plugin("selector", collection, trt.TensorRTPhase.RUNTIME) is not None
    empty = trt.PluginFieldCollection([])
    assert creator.create_plugin("selector", empty, trt.TensorRTPhase.BUILD) is None
    print("creator: makes plugins in both phases, and refuses a node without k")

print(f"TensorRT {trt.__version__}")
