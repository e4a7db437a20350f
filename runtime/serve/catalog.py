"""The models that a server offers: a bundle with each of its selectors and budgets, by the names that requests say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import UNPRUNED, SelectorInfo
from divprune_edge.runtime.bundle import Bundle

_SHOWN = 8


@dataclass(frozen=True)
class Catalog:
    """What may be asked for.

    Attributes:
        bundle: what answers.
        name: of the bundle with its default selector; with another one, or ``none``, a colon and its id follow.
        created: when it was exported, in seconds since 1970.
        default: what ``name`` alone stands for.
        joins_between_steps: whether sequences may join those that are being decoded.
    """

    bundle: Bundle
    name: str
    created: int
    default: SelectorInfo | None
    joins_between_steps: bool

    @property
    def models(self) -> Mapping[str, SelectorInfo | None]:
        """Name -> selector; None keeps every visual token."""
        manifest = self.bundle.manifest
        named = {f"{self.name}:{selector.id}": selector for selector in manifest.selectors}
        return {self.name: self.default, **named, f"{self.name}:{UNPRUNED}": None}

    def selector(self, model: str | None, selector: str | None, keep: int | None) -> SelectorInfo | None:
        """Return what a request asks for; ``selector`` and ``keep`` say what its ``model`` leaves open.

        Raises:
            UserError: there is no such model or selector, or they contradict each other.
        """
        models = self.models
        if model is not None and model not in models:
            shown = model if len(model) <= 80 else f"{model[:80]}…"
            raise UserError(
                f"There is no model '{shown}'{did_you_mean(model[:200], models)}: this server has {_some([*models])}; "
                "leave 'model' out for the first one.",
                code="model-unknown",
            )
        if selector is None and keep is None:
            return models[model or self.name]
        found = self._found(selector, keep)
        if model not in (None, self.name) and models[model or self.name] != found:
            raise UserError(
                f"Model '{model}' says another selector than the request does: leave one of the two out.",
                code="model-with-selector",
            )
        return found

    @property
    def schedule(self) -> str | None:
        """What prunes inside the language model, where anything does."""
        found = self.bundle.manifest.language_model.schedule
        return None if found is None else found.method

    def check_schedule(self, asked: str | None) -> None:
        """Check that a request asks for what the bundle does.

        Raises:
            UserError: it asks for something else.
        """
        own = self.schedule or UNPRUNED
        if asked not in (None, own):
            raise UserError(
                f"There is no schedule '{asked}' here: this server's is '{own}', which goes without saying.",
                code="schedule-not-in-bundle",
            )

    def _found(self, selector: str | None, keep: int | None) -> SelectorInfo | None:
        try:
            return self.bundle.selector(selector, keep)
        except UserError as error:
            if error.code != "selector-not-in-bundle":
                raise
        # What it says beyond this is for who has the bundle: where that lies, and how to add a selector.
        asked = f" '{selector}'" if selector else ""
        there = [*(one.id for one in self.bundle.manifest.selectors), UNPRUNED]
        near = did_you_mean(selector, there) if selector else ""
        keeping = f" that keeps {keep}" if keep else ""
        raise UserError(
            f"There is no selector{asked}{keeping}{near}: this server has {_some(there)}.",
            code="selector-not-in-bundle",
        )

    def entries(self) -> list[dict[str, Any]]:
        """Return the models as OpenAI lists them, with what each keeps."""
        return [self.entry(name) for name in self.models]

    def entry(self, name: str) -> dict[str, Any]:
        """Return one of them.

        Raises:
            UserError: there is no such model.
        """
        selector = self.selector(name, None, None)
        manifest = self.bundle.manifest
        clips = manifest.preprocessing.clips
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "divprune-edge",
            "divprune": {
                "source": manifest.source.model,
                "family": manifest.family,
                "selector": UNPRUNED if selector is None else selector.id,
                "algorithm": UNPRUNED if selector is None else selector.name,
                "keep": manifest.candidates if selector is None else selector.keep,
                "candidates": manifest.candidates,
                "schedule": self.schedule,
                "default": selector == self.default,
                "frames": 0 if clips is None else clips.frames,
                "context": manifest.language_model.positions,
                "joins": "between steps" if self.joins_between_steps else "between batches",
            },
        }


def _some(names: Sequence[str]) -> str:
    """Return names as a list that stays readable; a bundle may have a hundred selectors."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more, which GET /v1/models lists" if more > 0 else "")
