"""Run on a real TensorRT-RTX: its registry, our loader and the plugin's creator, and what reaches TensorRT's log.

``rtx_registry.py global|builder|runtime PLUGIN_FOLDER``, by the registry's owner; prints one line for each thing that
was seen to work.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tensorrt_rtx as trt
from creator import REFUSED, check_creator, collect
from rtx_log import API, Log

from divprune_edge.errors import DivpruneError
from divprune_edge.plugins.loader import PLUGIN, Library, find_library, register

WORDS = "MaxMinDiversity: node 'selector' needs the attribute k, one positive integer."

owner, folder = sys.argv[1], Path(sys.argv[2])
log = Log()
maker = trt.Runtime(log) if owner == "runtime" else trt.Builder(log)
registry = trt.get_plugin_registry() if owner == "global" else maker.get_plugin_registry()
library = find_library(folder)


def refusal(version: str, library: Library) -> str:
    try:
        register(registry, version, library)
    except DivpruneError as error:
        return str(error)
    raise AssertionError("it was accepted")


if library.record.tensorrt is None:
    pretended = Library(library.path, dataclasses.replace(library.record, tensorrt=API))
    assert "did not accept the plugin library" in refusal(API, pretended)
    assert "getCreators" in log.errors()
    print("registry: refuses a library without the wrapper")
    sys.exit()

assert f"built for TensorRT {library.record.tensorrt}, but TensorRT {trt.__version__} is" in refusal(
    trt.__version__, library
)
assert registry.get_creator(*PLUGIN) is None
print("loader: does not take TensorRT-RTX for a TensorRT 11")

log.errors()
register(registry, API, library)
register(registry, API, library)
assert "exists already" not in log.errors()
assert registry.load_library(str(library.path)) is None
assert "plugin creator of MaxMinDiversity exists already" in log.errors()
print("loader: registers once, as the registry wants it")

creator = registry.get_creator(*PLUGIN)
check_creator(trt, creator)
print("creator: makes plugins in both phases")

for fields in REFUSED.values():
    log.errors()
    assert creator.create_plugin("selector", collect(trt, fields), trt.TensorRTPhase.BUILD) is None
    assert log.errors() == WORDS
print("log: has the plugin's own words for each refusal")
