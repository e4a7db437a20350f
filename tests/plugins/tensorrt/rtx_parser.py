"""Run on a real TensorRT-RTX: parse a graph, with the plugin library registered if it is named.

``rtx_parser.py GRAPH [PLUGIN_FOLDER]`` prints TensorRT's log and last what the parser made of the graph.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import tensorrt_rtx as trt
from rtx_log import API, Log

from divprune_edge.plugins.loader import find_library, register

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
log = Log(show=True)
builder = trt.Builder(log)
network = builder.create_network(0)
if len(sys.argv) > 2:
    register(trt.get_plugin_registry(), API, find_library(Path(sys.argv[2])))
parsed = trt.OnnxParser(network, log).parse(Path(sys.argv[1]).read_bytes())
outputs = [network.get_output(i) for i in range(network.num_outputs)]
print("parsed" if parsed else "refused", [(o.name, o.dtype.name, tuple(o.shape)) for o in outputs])
