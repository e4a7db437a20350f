"""What the records of precisions say, against the formats that write them and TensorRT's own lists of operators."""

from __future__ import annotations

from typing import get_args

import pytest

from divprune_edge.export.check.tables import LISTS, table_for
from divprune_edge.export.formats import find_format
from divprune_edge.manifest import Precision
from divprune_edge.models.precisions import PRECISIONS, PrecisionFacts

every = pytest.mark.parametrize("facts", PRECISIONS.values(), ids=lambda facts: facts.name)


def test_every_precision_of_a_manifest_has_a_record() -> None:
    assert tuple(PRECISIONS) == get_args(Precision)


@every
def test_a_format_stores_what_its_record_says(facts: PrecisionFacts) -> None:
    for half, dtype in ((False, facts.activations), (True, facts.on_gpus)):
        assert find_format(facts.name, 64, half=half).dtype == dtype
    stored = find_format(facts.name, 64, half=True).stored_bytes((128, 256))
    # The record leaves out the scales of int8, one for each row.
    assert facts.stored_bytes(128 * 256, 0, 64) == stored - (128 * 4 if facts.name == "int8" else 0)


@every
def test_tensorrt_refuses_products_that_its_lists_lack(facts: PrecisionFacts) -> None:
    for version in LISTS:
        assert ("tensorrt" in facts.refusals) == (facts.product not in table_for(version).operators)
