"""The language model's logits against transformers', fed with the same pruned embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.verify.comparison import Tolerance, at_most, for_the_record, none_of, relative_error
from divprune_edge.export.verify.graphs import LanguageGraph
from divprune_edge.export.verify.oracle import ExpectedAnswer, Oracle
from divprune_edge.export.verify.weights import GraphFile
from divprune_edge.manifest import Check

Array = npt.NDArray[Any]

STEPS = 16
"""Decode steps after the prefill."""
_OF_TWO = 64
"""Most visual tokens of each image where a prompt has two: what is compared is where the second one's rows are."""


@dataclass(frozen=True)
class PromptCase:
    """A prompt: text ids ``before``, and after each image. ``visual`` are their visual tokens [images, K, D]."""

    name: str
    before: Array
    visual: Array
    after: tuple[Array, ...]

    @property
    def table(self) -> Array:
        """Visual tokens [rows, D]; never empty, even where no id refers to them."""
        rows: Array = self.visual.reshape(-1, self.visual.shape[-1])
        return rows if len(rows) else np.zeros((1, rows.shape[1]), rows.dtype)

    def ids(self, rows: int) -> Array:
        """Return int64 [length] of the token table with ``rows`` vocabulary rows."""
        images = rows + np.arange(self.visual[..., 0].size).reshape(self.visual.shape[:2])
        return self._put_together(self.before, images, self.after)

    def embeddings(self, oracle: Oracle) -> Array:
        """Return float32 [length, …]: transformers' own embedding of the text around the rows of the visual tokens.

        What is stacked behind a token is zero for text.
        """
        rows = self.visual.astype(np.float32)

        def embed(text: Array) -> Array:
            found = oracle.embed(text)
            return np.pad(found, ((0, 0), (0, rows.shape[-1] - found.shape[-1])))

        return self._put_together(embed(self.before), rows, [embed(text) for text in self.after])

    def positions(self, axes: int, more: int) -> Array | None:
        """Return int64 [axes, length + more]; None for one position each, without a gap.

        The tokens of an image lie on a grid five wide, at one time; text goes on after its largest position.
        """
        if axes == 1:
            return None
        parts, at = [], 0
        for i, text in enumerate([self.before, *self.after]):
            if i:
                places = np.arange(self.visual.shape[1])
                parts.append(at + np.stack([0 * places, places // 5, places % 5]))
                at = int(parts[-1].max(initial=at - 1)) + 1
            parts.append(np.tile(at + np.arange(len(text)), (axes, 1)))
            at += len(text)
        parts.append(np.tile(at + np.arange(more), (axes, 1)))
        return np.concatenate(parts, axis=1)

    def _put_together(self, before: Array, images: Array, after: Sequence[Array]) -> Array:
        pairs = zip(images, after, strict=True)
        return np.concatenate([before, *(part for pair in pairs for part in pair)])


def check_language(
    plan: ExportPlan,
    graph: LanguageGraph,
    oracle: Oracle,
    kept: Array,
    tolerance: Tolerance,
    report: Callable[[str], None],
) -> list[Check]:
    """Compare prefill, decode, chunks and a ragged batch on visual tokens ``kept`` [images, K, D]."""
    rows = plan.embedding_rows
    cases = sample_prompts(plan, kept)
    graph.forbidden = plan.prompt.entry.forbidden_ids.ranges
    answers, found = [], []
    for case in cases:
        report(f"prompt '{case.name}'")
        answers.append(_answer(plan, oracle, case))
        found.append(_follow(plan, graph, case, answers[-1].tokens))
    prefill = [relative_error(f[0], a.logits[0]) for f, a in zip(found, answers, strict=True)]
    steps = [
        _worst([relative_error(f[s], a.logits[s]) for f, a in zip(found, answers, strict=True)])
        for s in range(1, STEPS + 1)
    ]
    report("chunked prefill")
    ids = cases[0].ids(rows)
    cuts = sorted({len(cases[0].before) + 1, len(ids) // 2, len(ids) - 1} - {0, len(ids)})
    chunked = relative_error(_follow(plan, graph, cases[0], answers[0].tokens, cuts), answers[0].logits)
    report("batch of different lengths")
    batch = relative_error(*_ragged(plan, graph, cases, answers))
    each = " ".join(f"{error:.1e}" for error in steps)
    unit, limit = "relative", tolerance.error
    names = ", ".join(f"'{case.name}' {error:.1e}" for case, error in zip(cases, prefill, strict=True))
    return [
        at_most("language", "prefill", _worst(prefill), limit, unit=unit, detail=names),
        at_most("language", f"{STEPS} decode steps", _worst(steps), limit, unit=unit, detail=each),
        at_most(
            "language", "chunked prefill", chunked, limit, unit=unit, detail=f"cut before columns {cuts}"
        ),
        at_most("language", "ragged batch", batch, limit, unit=unit, detail=f"{len(cases)} prompts in one"),
        _greedy(found, answers),
        *([_next_ids(graph)] if plan.greedy else []),
    ]


def cost_of_precision(plan: ExportPlan, graph: LanguageGraph, oracle: Oracle, kept: Array) -> list[Check]:
    """Compare a quantised graph with the checkpoint's own weights in ``oracle``: no limit, only the record."""
    cases, errors, same, total = sample_prompts(plan, kept), [], 0, 0
    for case in cases:
        answer = _answer(plan, oracle, case)
        found = _follow(plan, graph, case, answer.tokens)
        errors.append(relative_error(found, answer.logits))
        same += int((found.argmax(axis=-1) == answer.logits.argmax(axis=-1)).sum())
        total += len(found)
    detail = f"{same} of {total} most likely tokens are the same"
    return [
        for_the_record("language", "cost of the precision", _worst(errors), unit="relative", detail=detail)
    ]


def check_rope(language: GraphFile, oracle: Oracle, context: int, dtype: str) -> Check:
    """Compare the graph's rotary tables with transformers' at every position of the context.

    An angle is a float32 product of position and frequency, and frequencies may differ in the last bit: the
    bound grows with the position. 16-bit tables add their own rounding.
    """
    limit = context * 2.0**-22 + (2.0**-11 if dtype == "float16" else 1e-6)
    errors = []
    for part, wanted in zip(("cos", "sin"), oracle.rope_tables(context), strict=True):
        found = language.read(f"rope.{part}").astype(np.float32)
        same_shape = found.shape == wanted.shape
        errors.append(float(np.abs(found - wanted).max()) if same_shape else float("inf"))
    return at_most(
        "language", "rotary tables", _worst(errors), limit, unit="absolute", detail=f"{context} positions"
    )


def sample_prompts(plan: ExportPlan, kept: Array) -> list[PromptCase]:
    """Return a question about an image, one of random tokens, one about two images, and a text without an image."""
    random = np.random.default_rng(5)
    forbidden = set(plan.prompt.entry.forbidden_ids)
    usable = np.array([i for i in range(min(plan.embedding_rows, plan.vocabulary)) if i not in forbidden])
    before, after = (
        _tokenise(plan, text, usable) for text in ("USER: ", "\nWhat is in the picture? ASSISTANT:")
    )
    head, tail = random.choice(usable, 21), random.choice(usable, 16)
    tail[:2] = usable[0], usable[-1]  # the ends of the table
    # A context smaller than the budget allows still lets the arithmetic be compared.
    room = max(plan.least_positions - STEPS - max(len(before) + len(after), len(head) + len(tail)), 0)
    kept = kept[:, :room]
    between = random.choice(usable, 3)
    two = kept[[0, 1 % len(kept)], : min(_OF_TWO, max(room - len(between), 0) // 2)]
    return [
        PromptCase("question", before, kept[:1], (after,)),
        PromptCase("random tokens", head, kept[[1 % len(kept)]], (tail,)),
        PromptCase("two images", before, two, (between, after)),
        PromptCase("no image", random.choice(usable, 12), kept[:0], ()),
    ]


def _tokenise(plan: ExportPlan, text: str, usable: Array) -> Array:
    """Return the text's ids; those without an embedding row (none, in a sound checkpoint) are left out."""
    from divprune_edge.processing.tokenizer import PromptTokenizer

    tokenizer = PromptTokenizer(plan.prompt.tokenizer, plan.prompt.entry.bos_token)
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    ids = ids[np.isin(ids, usable)]
    return ids if len(ids) else usable[:1]


def _answer(plan: ExportPlan, oracle: Oracle, case: PromptCase) -> ExpectedAnswer:
    return oracle.answer(
        case.embeddings(oracle), STEPS, case.positions(plan.spec.decoder.rope.axes, STEPS), plan.spec.stacked
    )


def _follow(
    plan: ExportPlan,
    graph: LanguageGraph,
    case: PromptCase,
    forced: Array,
    cuts: list[int] | None = None,
) -> Array:
    """Return float32 [STEPS + 1, V]; the reference's tokens are fed, whatever the graph would have said."""
    ids, places = case.ids(plan.embedding_rows)[None], case.positions(plan.spec.decoder.rope.axes, STEPS)
    positions = None if places is None else places[:, None]
    mask = np.ones(ids.shape, bool)
    logits: Array = graph.follow(ids, case.table[None], mask, forced[None], cuts or [], positions)[0]
    return logits


def _ragged(
    plan: ExportPlan, graph: LanguageGraph, cases: list[PromptCase], answers: list[ExpectedAnswer]
) -> tuple[Array, Array]:
    """All prompts in one batch, padded on the left: (found, wanted), each [batch, STEPS + 1, V]."""
    prompts = [case.ids(plan.embedding_rows) for case in cases]
    length, most = max(map(len, prompts)), max(len(case.table) for case in cases)
    ids = np.stack([np.pad(prompt, (length - len(prompt), 0)) for prompt in prompts])
    mask = np.stack([np.arange(length) >= length - len(prompt) for prompt in prompts])
    visual = np.stack([np.pad(case.table, ((0, most - len(case.table)), (0, 0))) for case in cases])
    places = [case.positions(plan.spec.decoder.rope.axes, STEPS) for case in cases]
    whole = length + STEPS
    padded = [np.pad(p, ((0, 0), (whole - p.shape[1], 0))) for p in places if p is not None]
    positions = np.stack(padded, axis=1) if padded else None
    forced = np.stack([answer.tokens for answer in answers])
    found = graph.follow(ids, visual, mask, forced, positions=positions)
    return found, np.stack([answer.logits for answer in answers])


def _greedy(found: list[Array], answers: list[ExpectedAnswer]) -> Check:
    """Another token counts where the reference's top-2 margin exceeds twice the logits error of that step."""
    counted, other, total = [], 0, 0
    for f, answer in zip(found, answers, strict=True):
        for step, (logits, wanted) in enumerate(zip(f, answer.logits, strict=True)):
            total += 1
            if logits.shape == wanted.shape and logits.argmax() == wanted.argmax():
                continue
            other += 1
            runner_up, best = np.partition(wanted, -2)[-2:]
            error = np.abs(logits - wanted).max() if logits.shape == wanted.shape else float("nan")
            if not best - runner_up <= 2 * error:
                counted.append(f"step {step}: {int(logits.argmax())} instead of {int(wanted.argmax())}")
    check = none_of("language", "greedy tokens", counted, total, "tokens")
    return (
        check if counted else check.model_copy(update={"detail": f"{total - other} of {total} are the same"})
    )


def _next_ids(graph: LanguageGraph) -> Check:
    """The id that the graph says, of each run so far, against the largest of its own logits that may be sampled."""
    wrong = [f"{said} instead of {wanted}" for said, wanted in graph.said if said != wanted]
    return none_of("language", "next ids", wrong, len(graph.said), "tokens")


def _worst(errors: list[float]) -> float:
    """The largest error; not-a-number outranks every number, as ``max`` would not have it."""
    return float(np.max(errors))
