"""The plugin's creator as any TensorRT's Python bindings show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.plugins.loader import PLUGIN

Field = tuple[str, npt.NDArray[Any]]
K = ("k", np.array([58], np.int32))
OTHER = ("other", np.array([3], np.int32))
# TensorRT's PluginField holds the address of an array and nothing else: these arrays live as long as the module.
TAKEN: dict[str, list[Field]] = {
    "int32, as ONNX's integers arrive": [K],
    "int64": [("k", np.array([58], np.int64))],
    "the first of two": [K, ("k", np.array([0], np.int32))],
    "beside another attribute": [OTHER, K],
}
REFUSED: dict[str, list[Field]] = {
    "none": [],
    "another attribute": [OTHER],
    "zero": [("k", np.array([0], np.int32))],
    "negative": [("k", np.array([-3], np.int32))],
    "no int32": [("k", np.array([1 << 40], np.int64))],
    "a float": [("k", np.array([58], np.float32))],
    "two numbers": [("k", np.array([3, 4], np.int32))],
}


def collect(trt: Any, fields: list[Field]) -> Any:
    kinds = trt.PluginFieldType.__members__
    collection = [trt.PluginField(name, array, kinds[array.dtype.name.upper()]) for name, array in fields]
    return trt.PluginFieldCollection(collection)


def check_creator(trt: Any, creator: Any) -> None:
    """Check its names and fields, that it makes plugins in both phases, and what it refuses."""
    assert isinstance(creator, trt.IPluginCreatorV3One)
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == PLUGIN
    kinds = trt.PluginFieldType.__members__
    assert [(field.name, field.type) for field in creator.field_names] == [("k", kinds["INT32"])]
    # RUNTIME is what TensorRT says when it reads a plan.
    for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME):
        for title, fields in TAKEN.items():
            plugin = creator.create_plugin("selector", collect(trt, fields), phase)
            assert plugin is not None, title
        for title, fields in REFUSED.items():
            assert creator.create_plugin("selector", collect(trt, fields), phase) is None, title
    if trt.__version__.startswith("10.3."):
        return  # These bindings show nothing of a plugin that is written in C++.
    core, build, runtime = map(plugin.get_capability_interface, trt.PluginCapabilityType.__members__.values())
    assert isinstance(core, trt.IPluginV3OneCore)
    assert (core.plugin_name, core.plugin_version, core.plugin_namespace) == PLUGIN
    assert isinstance(build, trt.IPluginV3OneBuild)
    assert build.num_outputs == 2
    assert isinstance(runtime, trt.IPluginV3OneRuntime)
