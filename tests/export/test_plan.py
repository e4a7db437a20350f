"""What a plan says of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TEXT
from exporting import plan_of

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.models.selectors import find_selector


def test_facts_of_a_plan(checkpoint: Callable[[str], Path]) -> None:
    plan = plan_of(checkpoint("padded vocabulary"), keep=None, prune="0.5")
    assert plan.keep == 12
    assert plan.selector is find_selector("divprune")
    assert plan.embedding_rows == plan.vocabulary == TEXT["vocab_size"] + 13
    assert not plan.names.tied


@pytest.mark.parametrize("name", ["plain", "tied embeddings", "bfloat16 weights"])
def test_the_size_is_that_of_the_weights(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Every needed weight, once, in the precision of the bundle."""
    single, half = plan_of(checkpoint(name)), plan_of(checkpoint(name), precision="fp16")
    assert single.weight_bytes == 2 * half.weight_bytes
    with Checkpoint(checkpoint(name), "again") as stored:
        used = single.names.parameters(single.spec, single.embedding_rows, single.vocabulary)
        assert single.weight_bytes == 4 * sum(int(np.prod(stored.tensors[key].shape)) for key in used)
        # The last tower layer and CLIP's pooled output are not needed by feature layer -2.
        unused = {key for key in stored.tensors if key not in used}
        assert unused
        assert all("encoder.layers.2." in key or "post_layernorm" in key for key in unused)
