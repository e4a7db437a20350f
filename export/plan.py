"""What one export will do, settled and checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.precision import PRECISIONS, check_precision
from divprune_edge.manifest import Precision, Preprocessing
from divprune_edge.models.budget import check_keep, keep_from_prune
from divprune_edge.models.llava import LlavaSpec, WeightNames, find_weights, read_llava
from divprune_edge.models.preprocessing import read_preprocessing
from divprune_edge.models.prompt import PromptFacts, read_prompt
from divprune_edge.models.selectors import Selector, find_selector

DEFAULT_PRUNE = "0.9"


@dataclass(frozen=True)
class Plan:
    """A checkpoint and the decisions about it. Everything the user can get wrong has been checked."""

    checkpoint: Checkpoint
    spec: LlavaSpec
    names: WeightNames
    preprocessing: Preprocessing
    prompt: PromptFacts
    precision: Precision
    selector: Selector
    keep: int

    @property
    def dtype(self) -> str:
        """Element type of weights, activations and cache."""
        return PRECISIONS[self.precision]

    @property
    def embedding_rows(self) -> int:
        """V of the token table."""
        return self.checkpoint.rows(f"{self.names.decoder}embed_tokens.weight")

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.checkpoint.rows(self.names.head)

    @cached_property
    def weight_bytes(self) -> int:
        """Size in bytes of all exported weights in the chosen precision."""
        shapes = self.names.parameters(self.spec, self.embedding_rows, self.vocabulary)
        return sum(int(np.prod(shape)) for shape in shapes.values()) * np.dtype(self.dtype).itemsize


def budget(keep: int | None, prune: str | None, candidates: int) -> int:
    """Return K from ``--keep`` or ``--prune`` (0.9 where neither is given).

    Raises:
        UserError: a budget out of range.
    """
    if keep is not None:
        return check_keep(keep, candidates)
    return keep_from_prune(DEFAULT_PRUNE if prune is None else prune, candidates)


def plan_llava(
    checkpoint: Checkpoint, *, selector: str, keep: int | None, prune: str | None, precision: str
) -> Plan:
    """Read a LLaVA-1.5 checkpoint and settle the export.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit, before any work.
    """
    check_precision(precision)
    chosen = find_selector(selector)
    spec = read_llava(checkpoint.config)
    keep = budget(keep, prune, spec.tokens)
    preprocessing = read_preprocessing(checkpoint.files, spec.vision.image_size)
    names = find_weights(checkpoint.tensors, _tied(checkpoint))
    checkpoint.check(
        names.parameters(
            spec, checkpoint.rows(f"{names.decoder}embed_tokens.weight"), checkpoint.rows(names.head)
        )
    )
    prompt = read_prompt(
        checkpoint.files, checkpoint.config, spec.image_token_id, checkpoint.rows(names.head)
    )
    return Plan(checkpoint, spec, names, preprocessing, prompt, precision, chosen, keep)  # type: ignore[arg-type]


def _tied(checkpoint: Checkpoint) -> bool:
    text = checkpoint.config.get("text_config") or {}
    return bool(checkpoint.config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
