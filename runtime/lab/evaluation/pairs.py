"""Differences between methods on the same questions: what overlapping intervals cannot decide.

Two methods get the same images, easy and hard, so the difference is known better than either share. Its 95 %
interval is the percentile bootstrap over images (Efron 1979), which leaves the questions of an image together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.lab.evaluation.dataset import Dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import Record

PAIRS = "pairs.csv"
DRAWS = 2000


@dataclass(frozen=True)
class Pair:
    """Accuracy of ``first`` less that of ``second``, as a fraction, with its 95 % interval."""

    first: str
    second: str
    difference: float
    low: float
    high: float


def compare_pairs(records: Sequence[Record], methods: Sequence[EvaluatedMethod], data: Dataset) -> list[Pair]:
    """Return every pair of methods with the same budget, and no pruning against each method."""
    asked = {image.name: image.digest for image in data.images}
    by_method: dict[str, dict[str, Record]] = {}
    for record in records:
        if asked.get(record.image) == record.asked:
            by_method.setdefault(record.method, {})[record.image] = record
    return [
        compare(first.id, second.id, by_method[first.id], by_method[second.id])
        for first, second in combinations(methods, 2)
        if (first.keep == second.keep or first.name == UNPRUNED)
        and first.id in by_method
        and second.id in by_method
    ]


def compare(first: str, second: str, one: Mapping[str, Record], other: Mapping[str, Record]) -> Pair:
    """Return how two methods differ on the images that both have a record of, by name."""
    shared = sorted(one.keys() & other.keys())
    gain = np.array([sum(one[name].right) - sum(other[name].right) for name in shared], np.float64)
    questions = np.array([len(one[name].right) for name in shared], np.float64)
    draws = np.random.default_rng(0).integers(0, len(shared), (DRAWS, len(shared)))
    low, high = np.percentile(_share(gain[draws], questions[draws]), [2.5, 97.5])
    return Pair(first, second, float(_share(gain, questions)), float(low), float(high))


def _share(gain: npt.NDArray[np.float64], questions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    share: npt.NDArray[np.float64] = gain.sum(axis=-1) / questions.sum(axis=-1)
    return share


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """Return one line per pair, in percentage points."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["first", "second", "points", "low", "high"])
    for pair in pairs:
        numbers = (pair.difference, pair.low, pair.high)
        writer.writerow([pair.first, pair.second, *(f"{100 * value:.3f}" for value in numbers)])
    return stream.getvalue()
