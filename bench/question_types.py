"""What an evaluation says of each type of question: right answers, and how far a method is ahead of others there.

Reads the records that ``python -m runtime evaluate`` or ``sweep`` left; nothing is asked again. Shares have 95 % Wilson
intervals, differences at equal budgets the 95 % bootstrap over images, paired.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.lab.evaluation.dataset import Dataset, load_dataset
from divprune_edge.runtime.lab.evaluation.pairs import compare
from divprune_edge.runtime.lab.evaluation.results import RECORDS, Record, Share

ALL = "all"
HEAD = ("method", "tokens", "type", "right", "questions", "share", "low", "high", "kept")
Line = dict[str, str | int | float]


def main() -> None:
    """Print a table, write it as CSV if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.question_types", description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--images", type=int, help="as in the evaluation")
    parser.add_argument("--methods", required=True, help="ids with commas between them")
    parser.add_argument("--ahead-of", default="", help="ids that the first method is compared with")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, arguments.images)
    records = by_method(arguments.folder, data)
    methods = arguments.methods.split(",")
    lines = shares(records, [UNPRUNED, *methods], data)
    show(lines)
    for other in filter(None, arguments.ahead_of.split(",")):
        ahead = differences(records[methods[0]], records[other], data)
        cells = (
            f"{kind} {100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for kind, d, low, high in ahead
        )
        print(f"{methods[0]} ahead of {other}: " + ", ".join(cells))
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, HEAD, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def by_method(folder: Path, data: Dataset) -> dict[str, dict[str, Record]]:
    """Return the records of an evaluation: method, then image."""
    asked = {image.name: image.digest for image in data.images}
    found: dict[str, dict[str, Record]] = {}
    for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()[1:]:
        record = Record(**json.loads(line))
        if asked.get(record.image) == record.asked:
            found.setdefault(record.method, {})[record.image] = record
    return found


def only(records: Mapping[str, Record], kind: str, data: Dataset) -> dict[str, Record]:
    """Return a method's records with the questions of one type alone, where an image has any."""
    found = {}
    for image in data.images:
        record = records.get(image.name)
        if record is None:
            continue
        asked = zip(record.right, image.questions, strict=True)
        right = [one for one, question in asked if kind in (ALL, question.kind)]
        if right:
            found[image.name] = replace(record, right=right)
    return found


def kinds_of(data: Dataset) -> list[str]:
    """Return all types of question, and before them what stands for all."""
    return [ALL, *sorted({question.kind for image in data.images for question in image.questions})]


def shares(records: Mapping[str, Mapping[str, Record]], methods: Sequence[str], data: Dataset) -> list[Line]:
    """Return a line for each method and type; ``kept`` is the share of what the unpruned model gets right."""
    lines: list[Line] = []
    full: dict[str, float] = {}
    for method in methods:
        tokens = [record.visual_tokens or 0 for record in records[method].values()]
        for kind in kinds_of(data):
            rights = [record.right for record in only(records[method], kind, data).values()]
            share = Share(sum(map(sum, rights)), sum(map(len, rights)))
            accuracy = full.setdefault(kind, share.accuracy)
            low, high = share.interval
            kept = share.accuracy / accuracy if accuracy else 0.0
            numbers = (share.accuracy, low, high, kept)
            lines.append(
                dict(
                    zip(
                        HEAD,
                        (
                            method,
                            round(sum(tokens) / len(tokens), 1),
                            kind,
                            share.right,
                            share.questions,
                            *(round(number, 4) for number in numbers),
                        ),
                        strict=True,
                    )
                )
            )
    return lines


def differences(
    one: Mapping[str, Record], other: Mapping[str, Record], data: Dataset
) -> list[tuple[str, float, float, float]]:
    """Return for each type by how much the first is ahead, with its interval."""
    found = []
    for kind in kinds_of(data):
        pair = compare("one", "other", only(one, kind, data), only(other, kind, data))
        found.append((kind, pair.difference, pair.low, pair.high))
    return found


def show(lines: Sequence[Line]) -> None:
    """Print one row for each method in Markdown: percent right with its interval, by type."""
    kinds = list(dict.fromkeys(str(line["type"]) for line in lines))
    print(f"| method | tokens | {' | '.join(kinds)} |\n|---|---:|{'---:|' * len(kinds)}")
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == method]
        cells = (
            f"{100 * float(line['share']):.1f} [{100 * float(line['low']):.1f}, {100 * float(line['high']):.1f}]"
            for line in own
        )
        print(f"| {method} | {own[0]['tokens']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
