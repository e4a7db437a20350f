"""``python -m runtime batch``: a file of questions in, a line of JSON per answer out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from divprune_edge.runtime.options import (
    BundleArgument,
    DefaultsOption,
    GoOnOption,
    KeepOption,
    LongestOption,
    PenaltyOption,
    RawOption,
    SelectorOption,
    StopIdOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    decoding_options,
)


def batch_command(
    bundle: BundleArgument,
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="JSONL",
            help='A line {"image": PATH, "question": TEXT} for each; paths start at the file\'s folder.',
        ),
    ],
    *,
    size: Annotated[int, typer.Option(help="Questions answered at once; each takes a KV cache.")] = 8,
    max_tokens: LongestOption = None,
    ignore_eos: GoOnOption = False,
    selector: SelectorOption = None,
    keep: KeepOption = None,
    backend: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: ThreadsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling; each answer starts from it.")
    ] = None,
    stop: StopOption = None,
    stop_id: StopIdOption = None,
    checkpoint_defaults: DefaultsOption = False,
    system: SystemOption = None,
    raw_prompt: RawOption = False,
) -> None:
    """Answer a file of questions, several at once.

    Each line of the output repeats its line of the input and adds the answer, in the same order.
    """
    from divprune_edge.errors import UserError
    from divprune_edge.runtime.generate import Decoding
    from divprune_edge.runtime.pipeline import Pipeline

    if size < 1:
        raise UserError(f"--size is {size}, expected at least 1.", code="count-out-of-range")
    decoding = decoding_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_ids=tuple(stop_id or ()),
        ignore_eos=ignore_eos,
    )
    Decoding(**decoding)  # a wrong value is told before anything is loaded
    asked = read_questions(questions)
    pipeline = Pipeline(bundle, selector, keep, backend, threads)
    decoding |= {"system": system, "raw_prompt": raw_prompt, "checkpoint_defaults": checkpoint_defaults}
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        pairs = [(questions.parent / line["image"], line["question"]) for line in part]
        for line, answer in zip(part, pipeline.ask_batch(pairs, **decoding), strict=True):
            print(json.dumps({**line, **json.loads(answer.to_json())}, ensure_ascii=False), flush=True)


def read_questions(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL, each an object with ``image`` and ``question`` and whatever else it has.

    Raises:
        UserError: not readable, a malformed line (its number is named), a missing image, or no questions.
    """
    from divprune_edge.errors import UserError

    if not file.is_file():
        raise UserError(
            f"There is no file '{file}': give a JSONL with a question on each line.", code="questions-missing"
        )
    try:
        # Not splitlines: a JSON text may hold other characters that end a line.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' cannot be read as UTF-8 text ({error}).", code="questions-invalid"
        ) from None
    asked = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            asked.append(_parse(line, file, number))
    if not asked:
        raise UserError(f"'{file}' holds no questions.", code="questions-empty")
    return asked


def _parse(line: str, file: Path, number: int) -> dict[str, Any]:
    from divprune_edge.errors import UserError
    from divprune_edge.processing.images import refuse_address

    where = f"'{file}', line {number}"
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}).", code="questions-invalid") from None
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object with image and question.", code="questions-invalid")
    for name in ("image", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise UserError(f"{where} has no text '{name}'.", code="questions-invalid")
    refuse_address(entry["image"])
    if not (file.parent / entry["image"]).is_file():
        raise UserError(f"{where}: there is no image '{file.parent / entry['image']}'.", code="image-missing")
    return entry
