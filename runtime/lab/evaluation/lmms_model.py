"""A bundle as a model of lmms-eval. This file alone imports lmms-eval, and nothing imports it before it is needed.

Registered in ``pyproject.toml`` under the entry points ``lmms_eval.models``, so that lmms-eval's own command runs it:

    lmms-eval --model divprune_edge --model_args bundle=BUNDLE,selector=divprune,keep=58 --tasks pope
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.requests import AnswerMemory, Answers, Request, without_placeholder
from divprune_edge.runtime.lab.evaluation.results import Record
from divprune_edge.runtime.lab.evaluation.runner import Runner


class DivPruneEdge(lmms):
    """One selector of a bundle at one budget; ``generate_until`` with one image per request.

    Args:
        bundle: folder written by ``python -m export``.
        selector: an algorithm or id of the bundle, ``none`` for no pruning; by default the bundle's own.
        keep: K, where the bundle has several budgets of the selector.
        backend: ``cpu`` or ``cuda``.
        threads: CPU threads; None takes all cores.
        max_tokens: longest answer; by default what the task says.
        batch_size: 1.
        max_batch_size: ignored, as ``device``: lmms-eval hands them to every model.
        device: see ``max_batch_size``; ``backend`` says where the graphs run.

    Raises:
        UserError: no such bundle or selector, or another batch size.
    """

    is_simple = True

    def __init__(
        self,
        bundle: str | Path,
        selector: str | None = None,
        keep: int | None = None,
        backend: str = "cpu",
        threads: int | None = None,
        max_tokens: int | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size or 1) != "1":
            raise UserError(
                f"batch_size is {batch_size}, expected 1: the runtime answers one request at a time.",
                code="batch-size-unsupported",
            )
        opened = Bundle.open(Path(bundle))
        entry = opened.selector(selector, keep)
        method = (
            EvaluatedMethod(UNPRUNED, opened.manifest.visual_tokens(None), None)
            if entry is None
            else EvaluatedMethod(entry.name, entry.keep, entry)
        )
        runner = Runner(opened, [method], backend, threads)
        self._use(Answers(runner, [method], AnswerMemory(), max_tokens), method)

    @classmethod
    def over(cls, answers: Answers, method: EvaluatedMethod) -> DivPruneEdge:
        """Return one method of a comparison."""
        model = cls.__new__(cls)
        lmms.__init__(model)
        model._use(answers, method)
        return model

    def _use(self, answers: Answers, method: EvaluatedMethod) -> None:
        self._answers, self._method = answers, method
        self.records: list[Record] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return one answer per request.

        Raises:
            UserError: a request that the runtime cannot answer; the message names the document.
        """
        seen: Counter[str] = Counter()
        converted = []
        for instance in requests:
            converted.append(self._request(instance, seen))
        self.records = self._answers.of(converted, self._method)
        return [record.answers[0] for record in self.records]

    def _request(self, instance: Instance, seen: Counter[str]) -> Request:
        if len(instance.args) != 6:
            self._refuse("requests with tools or several rounds")
        text, settings, to_visual, doc_id, task, split = instance.args

        def visuals() -> Any:
            return to_visual(self.task_dict[task][split][doc_id])

        name = f"{task}/{split}/{doc_id}"
        text = without_placeholder(text, name)
        repetition = seen[name]  # a document asked several times is sampled with another seed each time
        seen[name] += 1
        return Request(f"{name}#{repetition}" if repetition else name, text, settings, visuals, repetition)

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Refuse: the language graph gives the logits of the last token only.

        Raises:
            NotImplementedError: always.
        """
        self._refuse("loglikelihood")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Refuse: every question is a conversation of its own.

        Raises:
            NotImplementedError: always.
        """
        self._refuse("generate_until_multi_round")

    def generate_visual_cot(self, requests: list[Instance]) -> NoReturn:
        """Refuse: the model draws no images.

        Raises:
            NotImplementedError: always.
        """
        self._refuse("generate_visual_cot")

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise NotImplementedError(
            f"The task asks for {what}, expected generate_until with one image per question: choose another task."
        )
