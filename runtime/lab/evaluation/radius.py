"""The coverage radius of ``--budget auto``, learnt from an evaluation at several budgets: nothing is asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.lab.evaluation.dataset import Dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import RECORDS, Record


@dataclass(frozen=True)
class Learnt:
    """A coverage radius of one selector, and the visual tokens that an image has with it, on average."""

    name: str
    radius: float
    tokens: float


def learn_from(
    folder: Path,
    methods: Sequence[EvaluatedMethod],
    data: Dataset,
    share: float,
    unpruned: str = "the unpruned model",
) -> list[str]:
    """Return a sentence for each selector with several budgets, from the records that an evaluation left.

    ``unpruned`` is what it is compared with: of a bundle with a schedule no unpruned model.

    Raises:
        UserError: no selector has several budgets, or the unpruned model was not asked.
    """
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()[1:]
    records = [Record(**json.loads(line)) for line in lines]
    names = dict.fromkeys(m.name for m in methods if m.name != UNPRUNED and m.budgets is None)
    several = [name for name in names if sum(m.name == name and m.budgets is None for m in methods) > 1]
    if not several or all(m.name != UNPRUNED for m in methods):
        raise UserError(
            f"--learn-radius needs a selector at several budgets, and {unpruned} beside it: add budgets with "
            "'python -m export selectors', or export with a larger --capacity.",
            code="budget-auto-needs-budgets",
        )
    sentences = []
    for name in several:
        found = learn_radius(records, methods, data, name, share)
        if found is None:
            sentences.append(
                f"{name}: no budget leaves every type of question {share:.0%} of what {unpruned} gets right."
            )
        else:
            sentences.append(
                f"{name}: --budget auto --radius {found.radius:.4g} leaves every type of question {share:.0%} of "
                f"what {unpruned} gets right, with {found.tokens:.1f} visual tokens an image."
            )
    return sentences


def learn_radius(
    records: Sequence[Record], methods: Sequence[EvaluatedMethod], data: Dataset, name: str, share: float
) -> Learnt | None:
    """Return the largest radius up to which every type of question keeps ``share`` of the unpruned model's.

    A radius takes, for each image, the smallest budget of the selector ``name`` whose coverage radius it is not below,
    and the largest where there is none. None: even the largest budget keeps less.
    """
    asked = {image.name: image.digest for image in data.images}
    there = {(r.image, r.method): r for r in records if asked.get(r.image) == r.asked}
    ours = sorted((m for m in methods if m.name == name and m.budgets is None), key=lambda m: m.keep)
    images = [i for i in data.images if all((i.name, m) in there for m in (UNPRUNED, *(m.id for m in ours)))]
    kinds = sorted({question.kind for image in images for question in image.questions})

    def rights(method: str) -> npt.NDArray[np.int64]:
        """[images, kinds]: right answers."""
        table = np.zeros((len(images), len(kinds)), np.int64)
        for i, image in enumerate(images):
            for question, right in zip(image.questions, there[image.name, method].right, strict=True):
                table[i, kinds.index(question.kind)] += right
        return table

    wanted = share * rights(UNPRUNED).sum(axis=0)
    right = np.stack([rights(method.id) for method in ours])
    radii = np.array([[there[image.name, method.id].coverage for image in images] for method in ours])
    tokens = np.array(
        [[there[image.name, m.id].visual_tokens or m.keep for image in images] for m in ours], np.float64
    )
    radii[-1] = 0
    best = None
    for radius in [0.0, *np.unique(radii[:-1])]:
        choice = (radii <= radius).argmax(axis=0)
        every = np.arange(len(images))
        if (right[choice, every].sum(axis=0) < wanted).any():
            break
        best = Learnt(name, float(radius), float(tokens[choice, every].mean()))
    return best
