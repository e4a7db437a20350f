"""A bundle whose graphs are loaded: prompts, positions, prefixes and answers, however its questions come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
from divprune_edge.runtime.vision import Indices, Pruning, Vision, VisualTokens


class LoadedBundle:
    """What questions alone, in conversations and in batches are answered with.

    Args:
        bundle: an opened bundle.
        pruning: a selector of it, several of its budgets, or None.
        backend: what runs its graphs.
        on_progress: told of long work.

    Attributes:
        bundle, pruning, backend: as given; the graphs are loaded.
        vision: images to visual tokens.
        prompts: conversations to ids, and these to their places once it is known what was kept.
        warm_up_ms: what a first answer took that was made in advance; None: none was.

    Raises:
        UserError: a graph cannot be loaded, or the template or tokenizer used.
    """

    def __init__(self, bundle: Bundle, pruning: Pruning, backend: Backend, on_progress: OnProgress) -> None:
        self.bundle, self.pruning, self.backend = bundle, pruning, backend
        self.vision = Vision(bundle, backend, on_progress)
        self.prompts = bundle.prompt_encoder()
        for one in pruning.selectors if isinstance(pruning, Budgets) else [pruning]:
            backend.load(one)
        # Shared by all copies: what comes before the first image does not depend on it.
        self._prefix: dict[tuple[int, ...], CacheRows] = {}
        self.warm_up_ms: float | None = None

    @property
    def selector(self) -> SelectorInfo | None:
        """What prunes, None where nothing does; of several budgets the largest."""
        return self.pruning.largest if isinstance(self.pruning, Budgets) else self.pruning

    @property
    def visual_tokens(self) -> int:
        """K: visual tokens that the language model sees of an image, at most."""
        return self.bundle.manifest.visual_tokens(self.selector)

    def encode_prompt(
        self, turns: Sequence[Turn], images: Sequence[ImageInput], raw: bool = False
    ) -> PromptIds:
        """Return the ids of a conversation, with the most visual tokens that may be kept of its images.

        Args:
            turns: the last one is the user's.
            images: of all turns, in order.
            raw: the last turn's text is the whole prompt.

        Raises:
            UserError: as :meth:`~divprune_edge.processing.prompt.PromptEncoder.encode`, or ``encode_raw``.
        """
        counts = [span for image in images for span in self.vision.spans(image, self.pruning)]
        return self.prompts.encode_raw(turns, counts) if raw else self.prompts.encode(turns, counts)

    def writer(self, prompt: PromptIds, options: Decoding, on_text: OnText | None = None) -> Writer:
        """Return what makes the answer to ``prompt``, which is placed; ``on_text`` hears of its text piece by piece.

        Raises:
            UserError: a stop id or string that cannot end an answer.
        """
        return new_writer(self.bundle.manifest, self.prompts.tokenizer.model, prompt, options, on_text)

    def answer_of(
        self,
        result: Generation,
        prompt: PromptIds,
        visual: VisualTokens,
        watch: Stopwatch,
        gone: Sequence[Indices] = (),
    ) -> Answer:
        """Return what is told of an answer: with what was kept for its prompt, and the times until now.

        ``gone`` are the prompt's tokens that each cut of a schedule left behind.
        """
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
            backend=self.backend.name,
            kept_from=self._kept_from(prompt, gone),
        )

    def _kept_from(self, prompt: PromptIds, gone: Sequence[Indices]) -> dict[int, Indices]:
        """Return for each cut, by its layer, which visual tokens of the prompt stay, by their number among them."""
        language = self.bundle.manifest.language_model
        visual = np.flatnonzero(np.asarray(prompt.ids) >= language.embedding_rows)
        cuts = language.schedule.cuts if language.schedule is not None else ()
        return {
            cut.before: np.flatnonzero(~np.isin(visual, left)) for cut, left in zip(cuts, gone, strict=True)
        }

    def begin(self, session: LanguageSession, prompt: PromptIds, visual: DeviceTensor) -> int:
        """Return a slot for ``prompt`` that begins with what is kept of the ids before its first image.

        Args:
            session: of this backend.
            prompt: as it is placed.
            visual: [1, rows, D], where the graphs run; what the prompt's visual ids count.

        Raises:
            UserError: all slots are taken.
        """
        return session.add(visual, self._prefix.get(prompt.before_image))

    def remember_prefix(self, prompt: PromptIds, session: LanguageSession, slot: int) -> None:
        """Keep the cache of what comes before the first image: the next conversation begins with it."""
        before = prompt.before_image
        if before and before not in self._prefix:
            self._prefix.clear()
            self._prefix[before] = session.rows(slot, len(before))
