"""The next id of greedy decoding, said by the language graph itself: it alone leaves the device, not the logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.ids import Ids

_MOST = float(np.finfo(np.float32).max)


def next_id(g: GraphBuilder, logits: ir.Value, vocabulary: int, forbidden: Ids) -> None:
    """Declare ``next_id`` int64 [batch]: of float32 logits [batch, vocabulary] the largest that is not forbidden.

    ::

        logits ─► what is no number becomes the most, what is forbidden the least ─┬─► ReduceMax ─► top
                                                                                   └──► Equal(top) ─► smallest place

    Not ArgMax: which of equals cuDNN's and TensorRT's take is not promised; here it is the smallest, as NumPy's. With
    ``vocabulary`` the graph says that no number is the largest, and whoever runs it looks at the logits.
    """
    allowed = np.ones(vocabulary, np.bool_)
    for first, last in forbidden.ranges:
        allowed[first : last + 1] = False
    most, least = g.constant(_MOST, "float32"), g.constant(-_MOST, "float32")
    with g.scope("next_id"):
        numbers = g.op("Where", g.op("LessOrEqual", logits, most), logits, most)
        if not allowed.all():
            numbers = g.op("Where", g.constant(allowed, "bool"), numbers, least)
        top = g.op("ReduceMax", numbers, g.constant([1]), keepdims=1)
        hit = g.op("And", g.op("Equal", numbers, top), g.op("Less", g.op("Abs", top), most))
        # float32 counts exactly to 2^24, above any vocabulary, and every runtime reduces it.
        places = g.constant(np.arange(vocabulary), "float32")
        place = g.op("Where", hit, places, g.constant(vocabulary, "float32"))
        found = g.cast(g.op("ReduceMin", place, g.constant([1]), keepdims=0), "int64")
    g.output(found, "next_id", "int64", ["batch"])
