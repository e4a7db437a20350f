"""Asking every question of a set with every method, image by image, so that all see the same conditions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from divprune_edge.models.selectors import find_selector
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.budgets import Budgets, coverage_radius
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding, new_writer, write
from divprune_edge.runtime.lab.evaluation.coverage import smallest_distance
from divprune_edge.runtime.lab.evaluation.dataset import ImageQuestions
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import Record
from divprune_edge.runtime.lab.evaluation.scoring import is_right
from divprune_edge.runtime.lab.rows import ValidRows, rows_of
from divprune_edge.runtime.vision import Candidates, Vision, VisualTokens


class Runner:
    """One backend with the sessions of all methods; every question is a sequence of its own, prefilled in full.

    Args:
        bundle: the opened bundle.
        methods: what will be asked for.
        backend: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: CPU threads; None takes all cores.
        max_tokens: longest answer.
    """

    def __init__(
        self,
        bundle: Bundle,
        methods: Sequence[EvaluatedMethod],
        backend: str = "cpu",
        threads: int | None = None,
        max_tokens: int = 32,
    ) -> None:
        self._manifest = bundle.manifest
        self._backend = open_backend(bundle, backend, threads)
        self._vision = Vision(bundle, self._backend)
        self._prompt = bundle.prompt_encoder()
        self._decoding = Decoding(max_tokens=max_tokens)
        self._pruning = [method.pruning for method in methods]
        for pruning in self._pruning:
            for one in pruning.selectors if isinstance(pruning, Budgets) else [pruning]:
                self._backend.load(one)

    @property
    def backend(self) -> str:
        """What runs the graphs."""
        return self._backend.name

    def ask(
        self, image: ImageQuestions, methods: Sequence[EvaluatedMethod], decoding: Decoding | None = None
    ) -> list[Record]:
        """Ask every question about ``image`` with every method, greedily or as ``decoding`` says.

        The encoder runs once; its time is part of every answer's.

        Raises:
            UserError: the image cannot be used.
        """
        started = time.perf_counter()
        read = self._vision.read([image.open()])
        preprocessed = time.perf_counter()
        candidates = self._vision.encode(read, self._pruning)
        seen = time.perf_counter()
        before = (seen - started) * 1000
        rows = rows_of(self._backend, candidates, token=self._manifest.vision_encoder.looked_at)
        records = []
        for method in methods:
            clock = time.perf_counter()
            visual = self._select(candidates, rows, method)
            select_ms = (time.perf_counter() - clock) * 1000
            timings = {"preprocess": (preprocessed - started) * 1000, "vision": (seen - preprocessed) * 1000}
            records.append(
                Record(
                    image=image.name,
                    asked=image.digest,
                    method=method.id,
                    answers=[],
                    right=[],
                    ttft_ms=[],
                    total_ms=[],
                    timings_ms={**timings, "select": select_ms},
                    coverage=coverage_radius(rows.looked_at, visual.kept_indices),
                    smallest=smallest_distance(rows.looked_at, visual.kept_indices),
                    visual_tokens=len(visual.rows),
                    candidates=len(rows.tokens),
                )
            )
            for question in image.questions:
                text, prefill_ms, decode_ms = self._answer(visual, question.text, decoding or self._decoding)
                records[-1].answers.append(text)
                records[-1].right.append(is_right(text, question.answers))
                records[-1].ttft_ms.append(before + select_ms + prefill_ms)
                records[-1].total_ms.append(before + select_ms + prefill_ms + decode_ms)
        return records

    def _select(self, candidates: Candidates, rows: ValidRows, method: EvaluatedMethod) -> VisualTokens:
        if not method.is_reference:
            return self._vision.select(candidates, method.pruning)
        kept = np.sort(np.concatenate(rows.picked(find_selector(method.name).reference, method.keep)))
        # As many as a graph hands on, of which the last do not count where a group has fewer rows.
        tokens = np.zeros((1, len(rows.groups) * method.keep, rows.tokens.shape[1]), rows.tokens.dtype)
        tokens[0, : len(kept)] = rows.tokens[kept]
        image = self._vision.placed(candidates.images[0], np.arange(len(kept)), kept)
        return VisualTokens(self._backend.to_device(tokens), tokens.shape[1], (image,))

    def _answer(self, visual: VisualTokens, question: str, decoding: Decoding) -> tuple[str, float, float]:
        prompt = self._prompt.encode_seen([Turn("user", question, images=1)], visual.images)
        writer = new_writer(self._manifest, self._prompt.tokenizer.model, prompt, decoding)
        session = self._backend.session()
        write(session, {session.add(visual.tokens): writer})
        result = writer.result()
        return result.text, result.prefill_ms, result.decode_ms
