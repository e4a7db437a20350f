"""How parts of a checkpoint are found by the prefixes of their weights' names, of which several are in the wild."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from divprune_edge.errors import UserError
from divprune_edge.models.families.family import WeightNames


@dataclass(frozen=True)
class CheckpointPart:
    """A part of a checkpoint: what a sentence calls it, a weight that it always has, and its prefixes in the wild."""

    title: str
    probe: str
    prefixes: tuple[str, ...]

    def find(self, names: Collection[str], family: str) -> str:
        """Return its prefix: the first with which a checkpoint has the weight ``probe``.

        Raises:
            UserError: it has none; the sentence says what would be a checkpoint of the ``family``.
        """
        for prefix in self.prefixes:
            if prefix + self.probe in names:
                return prefix
        raise UserError(
            f"The checkpoint has no weights of the {self.title} (looked for '{self.prefixes[0]}{self.probe}' and "
            f"{len(self.prefixes) - 1} other spellings): a shard is missing or this is not a {family} checkpoint.",
            code="weights-incomplete",
        )


@dataclass(frozen=True)
class Naming:
    """How the checkpoints of a family name their weights.

    Attributes:
        family: what a sentence calls it.
        encoder: the encoder's parts, by their names in the graph.
        decoder: prefixes of the decoder's weights.
        heads: names of the output head.
    """

    family: str
    encoder: Mapping[str, CheckpointPart]
    decoder: tuple[str, ...]
    heads: tuple[str, ...]

    def find(self, names: Collection[str], tied: bool) -> WeightNames:
        """Return the naming of a checkpoint from the names of its tensors.

        Args:
            names: all tensor names.
            tied: whether the config ties the output head to the embedding, for checkpoints that store no head.

        Raises:
            UserError: a part is missing.
        """
        decoder = CheckpointPart("language model", "embed_tokens.weight", self.decoder).find(
            names, self.family
        )
        head = next((name for name in self.heads if name in names), None)
        if head is None and not tied:
            raise UserError(
                "The checkpoint has no lm_head.weight and its config does not tie the output head to the "
                "embedding (tie_word_embeddings): a shard is missing, download the checkpoint again.",
                code="weights-incomplete",
            )
        encoder = {name: part.find(names, self.family) for name, part in self.encoder.items()}
        return WeightNames(encoder, decoder, head or f"{decoder}embed_tokens.weight")

    def canonical(self, name: str) -> str | None:
        """Return one name for all spellings of a weight's or module's; None where it is in no part.

        ``language_model.model.norm.weight`` and ``model.language_model.norm.weight`` are both
        ``decoder.norm.weight``; the output head is ``head.weight``.
        """
        if name.removesuffix(".weight") in [head.removesuffix(".weight") for head in self.heads]:
            return "head.weight" if name.endswith(".weight") else "head"
        parts = {part: facts.prefixes for part, facts in self.encoder.items()} | {"decoder": self.decoder}
        found = [
            (prefix, part)
            for part, prefixes in parts.items()
            for prefix in prefixes
            if name.startswith(prefix)
        ]
        if not found:
            return None
        prefix, part = max(found, key=lambda one: len(one[0]))
        return f"{part}.{name[len(prefix) :]}"
