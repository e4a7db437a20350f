"""What is compared: the bundle's selectors at their budgets, and always the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import UNPRUNED, SelectorInfo
from divprune_edge.models.selectors import find_selector
from divprune_edge.runtime.budgets import AUTO, Budgets, budgets_of
from divprune_edge.runtime.bundle import Bundle

BASELINES = ("random", "uniform")


@dataclass(frozen=True)
class EvaluatedMethod:
    """One selector at one budget.

    ``graph`` is None for the unpruned model, and for a baseline that the bundle has no graph of: that one runs as
    its NumPy reference, which costs more time than a graph would. With ``budgets`` it takes one of these image by
    image; ``keep`` is the largest then.
    """

    name: str
    keep: int
    graph: SelectorInfo | None
    budgets: Budgets | None = None

    @property
    def id(self) -> str:
        """``divprune-58``, ``divprune-auto@0.1`` with the coverage radius that is enough, or ``none``."""
        if self.budgets is not None:
            return f"{self.name}-{AUTO}@{self.budgets.radius:g}"
        return UNPRUNED if self.name == UNPRUNED else f"{self.name}-{self.keep}"

    @property
    def is_reference(self) -> bool:
        """Whether the NumPy reference stands in for a graph."""
        return self.pruning is None and self.name != UNPRUNED

    @property
    def pruning(self) -> SelectorInfo | Budgets | None:
        """What prunes, None where nothing of the bundle does."""
        return self.graph or self.budgets


def choose_methods(
    bundle: Bundle,
    names: Sequence[str] | None = None,
    budgets: Sequence[int] | None = None,
    radius: float | None = None,
) -> list[EvaluatedMethod]:
    """Return the unpruned model, then for each budget the chosen selectors and both baselines.

    The unpruned model is missing where a cache of fixed capacity has no room for all visual tokens.

    Args:
        bundle: holds the selectors' graphs.
        names: algorithms; None takes all that the bundle has.
        budgets: K; None takes all that the bundle has.
        radius: adds, for each selector that the bundle has several budgets of, the choice among these image by image,
            by this coverage radius.

    Raises:
        UserError: the bundle has no selector of that name and budget; the message has the command that adds it.
    """
    tokens = bundle.manifest.candidates
    there = {(entry.name, entry.keep): entry for entry in bundle.manifest.selectors if entry.keep < tokens}
    kept = sorted(set(budgets) if budgets is not None else {keep for _, keep in there}, reverse=True)
    for keep in kept:
        if not 1 <= keep < tokens:
            raise UserError(
                f"A budget of {keep} visual tokens was asked for, expected 1 to {tokens - 1}.",
                code="keep-out-of-range",
            )
    chosen = list(dict.fromkeys(names if names is not None else (name for name, _ in there)))
    for name in chosen:
        find_selector(name)
    for keep in kept:
        if names is None and not any((name, keep) in there for name in chosen):
            raise UserError(
                f"The bundle has no selector that keeps {keep} visual tokens: it has "
                f"{', '.join(f'{name}-{k}' for name, k in there) or 'none'}; add one with 'python -m export selector "
                f"{bundle.path} --keep {keep}'.",
                code="selector-not-in-bundle",
            )
    full = bundle.manifest.visual_tokens(None)
    methods = (
        [EvaluatedMethod(UNPRUNED, full, None)] if full < bundle.manifest.language_model.positions else []
    )
    for keep in kept:
        for name in dict.fromkeys([*chosen, *BASELINES]):
            graph = there.get((name, keep))
            if graph is None and name not in BASELINES:
                if names is None:
                    continue
                have = [f"{name}-{k}" for name, k in there]
                raise UserError(
                    f"The bundle has no selector '{name}-{keep}'{did_you_mean(f'{name}-{keep}', have)}: add it with "
                    f"'python -m export selector {bundle.path} --selector {name} --keep {keep}'.",
                    code="selector-not-in-bundle",
                )
            methods.append(EvaluatedMethod(name, keep, graph))
    if radius is not None:
        several = [name for name in chosen if sum(name == other for other, _ in there) > 1]
        for name in several or chosen[:1]:
            choice = budgets_of(bundle, name, radius)
            methods.append(EvaluatedMethod(name, choice.keep, None, choice))
    return methods
