"""A bundle whose graphs are loaded: prompts, positions, prefixes and answers, however its questions come."""

from __future__ import annotations

from collections.abc import Sequence

from divprune_edge.manifest import SelectorInfo
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.layout import PromptIds
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends import Backend, CacheRows, DeviceTensor, LanguageSession
from divprune_edge.runtime.budgets import Budgets
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding, Generation, OnText, Writer, new_writer
from divprune_edge.runtime.progress import OnProgress
from divprune_edge.runtime.stopwatch import Stopwatch
from divprune_edge.runtime.vision import Pruning, Vision, VisualTokens


class LoadedBundle:
    """What questions alone, in conversations and in batches are answered with.

    Args:
        bundle: an opened bundle.
        pruning: a selector of it, several of its budgets, or None.
        backend: its graphs, loaded.
        on_progress: told of long work.
    """

    def __init__(self, bundle: Bundle, pruning: Pruning, backend: Backend, on_progress: OnProgress) -> None:
        self.bundle = bundle
        self._pruning = pruning
        self._backend = backend
        self._vision = Vision(bundle, backend, on_progress)
        self._prompt = bundle.prompt_encoder()
        for one in pruning.selectors if isinstance(pruning, Budgets) else [pruning]:
            backend.load(one)
        # Shared by all copies: what comes before the first image does not depend on it.
        self._prefix: dict[tuple[int, ...], CacheRows] = {}
        self.warm_up_ms: float | None = None

    @property
    def selector(self) -> SelectorInfo | None:
        """What prunes, None where nothing does; of several budgets the largest."""
        return self._pruning.largest if isinstance(self._pruning, Budgets) else self._pruning

    @property
    def visual_tokens(self) -> int:
        """K: visual tokens that the language model sees of an image, at most."""
        return self.bundle.manifest.visual_tokens(self.selector)

    def _encode_prompt(
        self, turns: Sequence[Turn], images: Sequence[ImageInput], raw: bool = False
    ) -> PromptIds:
        """Return the ids of a conversation that brings these images."""
        counts = [span for image in images for span in self._vision.spans(image, self._pruning)]
        return self._prompt.encode_raw(turns, counts) if raw else self._prompt.encode(turns, counts)

    def _writer(self, prompt: PromptIds, options: Decoding, on_text: OnText | None = None) -> Writer:
        """Begin an answer to ``prompt``."""
        return new_writer(self.bundle.manifest, self._prompt.tokenizer.model, prompt, options, on_text)

    def _answer(
        self, result: Generation, prompt: PromptIds, visual: VisualTokens, watch: Stopwatch
    ) -> Answer:
        times = {**watch.stages, "prefill": result.prefill_ms, "decode": result.decode_ms}
        before = {} if self.warm_up_ms is None else {"warm_up": self.warm_up_ms}
        return Answer(
            answer=result.text,
            token_ids=result.token_ids,
            kept_indices=visual.origins,
            prompt_tokens=len(prompt),
            visual_tokens=prompt.visual_tokens,
            image_tokens=tuple(len(image.rows) for image in visual.images),
            timings_ms={**times, "total": watch.total, **before},
            finish_reason=result.finish_reason,
            backend=self._backend.name,
        )

    def _begin(self, session: LanguageSession, prompt: PromptIds, visual: DeviceTensor) -> int:
        """Return a slot for ``prompt`` that begins with what is kept of the ids before its first image."""
        return session.add(visual, self._prefix.get(prompt.before_image))

    def _remember_prefix(self, prompt: PromptIds, session: LanguageSession, slot: int) -> None:
        """Keep the cache of what comes before the first image: the next conversation begins with it."""
        before = prompt.before_image
        if before and before not in self._prefix:
            self._prefix.clear()
            self._prefix[before] = session.rows(slot, len(before))
