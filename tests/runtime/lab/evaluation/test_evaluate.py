"""``python -m runtime evaluate``: question sets, scoring, resuming, the baselines that are always there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_image
from raising import assert_told, refused

from divprune_edge.runtime.budgets import coverage_radius
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation import evaluate as module
from divprune_edge.runtime.lab.evaluation.coverage import smallest_distance
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
from divprune_edge.runtime.lab.evaluation.evaluate import evaluate, run_facts
from divprune_edge.runtime.lab.evaluation.methods import choose_methods
from divprune_edge.runtime.lab.evaluation.pairs import PAIRS
from divprune_edge.runtime.lab.evaluation.results import RECORDS, Journal, Record, journal_in, summarise
from divprune_edge.runtime.lab.evaluation.runner import Runner
from divprune_edge.runtime.lab.evaluation.scoring import is_right, wilson
from divprune_edge.runtime.lab.evaluation.tables import markdown, to_csv, to_json
from divprune_edge.runtime.pipeline import Pipeline


def write_folder(folder: Path, lines: list[Any]) -> Path:
    folder.mkdir()
    for name in ("a.png", "b.png"):
        noise_image(96, 96, len(name)).save(folder / name)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "questions.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "set",
        [
            {"image": "a.png", "question": "What color is the circle?", "answer": "red", "type": "color"},
            {"image": "b.png", "question": "How many shapes?", "answer": ["2", "two"], "type": "count"},
            "",
            {"image": "a.png", "question": "Is there a circle?", "answer": "Yes", "type": "exist"},
        ],
    )


def test_folder_groups_questions_by_image(folder: Path) -> None:
    data = load_dataset(str(folder))
    assert [(p.name, len(p.questions)) for p in data.images] == [("a.png", 2), ("b.png", 1)]
    assert data.questions == 3
    assert data.images[1].questions[0].answers == ("2", "two")
    assert len({p.digest for p in data.images}) == 2
    assert load_dataset(str(folder), 1).images[0].digest == data.images[0].digest


@pytest.mark.parametrize(
    ("line", "code", "given"),
    [
        ("{", "questions-invalid", "JSON"),
        ("[1]", "questions-invalid", "image, question and answer"),
        ({"image": "a.png", "question": " ", "answer": "x"}, "questions-invalid", "'question'"),
        ({"image": "a.png", "question": "x"}, "questions-invalid", "'answer'"),
        ({"image": "a.png", "question": "x", "answer": []}, "questions-invalid", "'answer'"),
        ({"image": "a.png", "question": "x", "answer": "y", "type": 3}, "questions-invalid", "'type' is 3"),
        ({"image": "c.png", "question": "x", "answer": "y"}, "image-missing", "c.png"),
        ({"video": "c.mp4", "question": "x", "answer": "y"}, "evaluation-of-clips", "'batch'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, code: str, given: str) -> None:
    good = {"image": "a.png", "question": "What?", "answer": "red"}
    with refused(code, "line 2", given):
        load_dataset(str(write_folder(tmp_path / "set", [good, line])))


def test_other_bad_sets(tmp_path: Path) -> None:
    with refused("dataset-missing"):
        load_dataset(str(tmp_path / "nowhere"))
    with refused("dataset-missing", "did you mean 'demo'?"):
        load_dataset("demos")
    with refused("dataset-not-one-file", 0, '"answer"'):
        load_dataset(str(tmp_path))
    with refused("questions-empty"):
        load_dataset(str(write_folder(tmp_path / "empty", [])))
    with refused("count-out-of-range", "0 images"):
        load_dataset("demo", 0)
    with refused("dataset-is-a-task", "evaluate"):
        load_dataset("lmms:gqa")


def test_demo_is_the_held_out_set_and_a_prefix_of_it() -> None:
    few, more = load_dataset("demo", 3), load_dataset("demo", 5)
    assert [p.questions for p in more.images[:3]] == [p.questions for p in few.images]
    assert np.asarray(few.images[0].open()).shape == (96, 96, 3)


def test_scoring() -> None:
    assert is_right(" Red.", ["red"])
    assert is_right("TWO", ["2", "two"])
    assert not is_right("red circle", ["red"])
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0, 1)
    assert wilson(5, 5)[1] == 1


def test_coverage_by_hand() -> None:
    """Directions at 0, 60, 90 and 180 degrees, the first and the last kept."""
    angles = np.radians([0, 60, 90, 180])
    tokens = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    kept = np.array([0, 3])
    assert coverage_radius(tokens, kept) == pytest.approx(1.0, abs=1e-6)
    assert smallest_distance(tokens, kept) == pytest.approx(2.0, abs=1e-6)
    assert coverage_radius(tokens, np.array([-1, 0, 1, 2, 3])) == 0
    assert smallest_distance(tokens, np.array([-1, 0, 1])) == pytest.approx(0.5, abs=1e-6)
    assert coverage_radius(tokens, np.array([-1])) == 2
    assert smallest_distance(tokens, np.array([-1, 0])) == 2


@pytest.mark.parametrize(("capacity", "there"), [(None, True), (577, True), (576, False), (512, False)])
def test_a_small_cache_leaves_the_unpruned_model_out(
    demo_bundle: Path, capacity: int | None, there: bool
) -> None:
    bundle = Bundle.open(demo_bundle)
    language = bundle.manifest.language_model.model_copy(update={"capacity": capacity})
    small = replace(bundle, manifest=bundle.manifest.model_copy(update={"language_model": language}))
    ids = [method.id for method in choose_methods(small)]
    assert ids == ["none"] * there + ["divprune-58", "random-58", "uniform-58"]


def test_baselines_and_the_unpruned_model_are_always_there(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    methods = choose_methods(bundle)
    assert [m.id for m in methods] == ["none", "divprune-58", "random-58", "uniform-58"]
    assert [m.is_reference for m in methods] == [False, False, True, True]
    assert [m.id for m in choose_methods(bundle, [], [40])] == ["none", "random-40", "uniform-40"]
    with refused("selector-not-in-bundle", "divprune-40", "--selector divprune", "--keep 40"):
        choose_methods(bundle, ["divprune"], [40])
    with refused("selector-unknown", "'divprun'", "'divprune'"):
        choose_methods(bundle, ["divprun"])
    with refused("keep-out-of-range", 576, "1 to 575"):
        choose_methods(bundle, None, [576])
    with refused("selector-not-in-bundle", 40, "--keep 40"):
        choose_methods(bundle, None, [40])


def test_answers_are_those_of_ask(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    bundle, data = Bundle.open(demo_bundle), load_dataset(str(folder))
    methods = choose_methods(bundle)
    rows = evaluate(bundle, data, methods, tmp_path / "out", max_tokens=6)
    records = [json.loads(line) for line in (tmp_path / "out" / RECORDS).read_text().splitlines()[1:]]
    assert len(records) == len(data.images) * len(methods)
    assert [row.method for row in rows] == [m.id for m in methods]
    for selector in (None, "none"):
        pipeline = Pipeline(bundle, selector)
        name = "divprune-58" if selector is None else "none"
        wanted = [
            pipeline.ask(folder / "a.png", q.text, max_tokens=6).answer for q in data.images[0].questions
        ]
        (found,) = [r["answers"] for r in records if r["method"] == name and r["image"] == "a.png"]
        assert found == wanted
    for record in records:
        assert all(
            0 < ttft <= total for ttft, total in zip(record["ttft_ms"], record["total_ms"], strict=True)
        )
    assert rows[0].coverage == 0
    assert rows[1].smallest > rows[2].smallest  # that is what max-min maximises
    about = {"data": "set"}
    assert "| divprune | 58 |" in markdown(rows)
    assert "| random* | 58 |" in markdown(rows)
    assert "NumPy reference" in markdown(rows)
    assert to_csv(rows).count("\n") == 1 + len(rows)
    assert json.loads(to_json(rows, about))["rows"][0]["questions"] == 3


class _StopError(Exception):
    pass


def test_an_interrupted_run_goes_on(
    demo_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data = Bundle.open(demo_bundle), load_dataset(str(folder))
    methods, out = choose_methods(bundle)[:2], tmp_path / "out"

    def stop(done: int, total: int) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        evaluate(bundle, data, methods, out, max_tokens=2, on_image=stop)
    with (out / RECORDS).open("a") as stream:
        stream.write('{"image": "b.png", "meth')  # as if the power had failed
    asked: list[tuple[str, int]] = []

    class Watched(Runner):
        def ask(self, image: Any, chosen: Any) -> Any:
            asked.append((image.name, len(chosen)))
            return super().ask(image, chosen)

    monkeypatch.setattr(module, "Runner", Watched)
    rows = evaluate(bundle, data, methods, out, max_tokens=2)
    # Once more in front: the first run of every process is slower than the rest.
    assert asked == [("b.png", 2), ("b.png", 2)]
    assert [row.all.questions for row in rows] == [3, 3]
    asked.clear()
    more = evaluate(bundle, data, choose_methods(bundle), out, max_tokens=2)
    assert [count for name, count in asked if name == "b.png"] == [2]
    assert len(more) == 4
    # Fewer images need nothing new; other questions about an image are asked again.
    asked.clear()
    (row, _) = evaluate(bundle, load_dataset(str(folder), 1), methods, out, max_tokens=2)
    assert row.all.questions == 2
    assert asked == []
    lines = (folder / "questions.jsonl").read_text().replace("How many shapes?", "How many circles?")
    (folder / "questions.jsonl").write_text(lines)
    evaluate(bundle, load_dataset(str(folder)), methods, out, max_tokens=2)
    assert asked == [("b.png", 2), ("b.png", 2)]
    with refused("results-of-another-run", "another question set and another --max-tokens:"):
        evaluate(bundle, replace(data, name="other"), methods, out, max_tokens=3)


def test_what_makes_two_runs_the_same(demo_bundle: Path) -> None:
    """Selectors come and go; any other file of the bundle may change answers."""
    bundle = Bundle.open(demo_bundle)
    manifest = bundle.manifest

    def facts(changed: str) -> dict[str, Any]:
        files = {**manifest.files, changed: manifest.files[changed].model_copy(update={"sha256": "0" * 64})}
        other = replace(bundle, manifest=manifest.model_copy(update={"files": files}))
        return run_facts(other, "demo", "cpu", 1, None)

    same = run_facts(bundle, "demo", "cpu", 1, None)
    differ = {name for name in manifest.files if facts(name) != same}
    assert {"tokenizer.json", manifest.vision_encoder.file, *manifest.language_model.data} <= differ
    assert manifest.files.keys() - differ == {n for n in manifest.files if n.startswith("selectors/")}


def test_the_journal_reads_what_it_wrote(tmp_path: Path) -> None:
    """Some characters end a line for Python, but not in JSON; and a line may be cut inside a character."""
    record = Record("a.png", "0", "none", ["one\u2028two\x85three"], [True], [1.0], [2.0], {}, 0.0, 2.0)
    Journal(tmp_path, {"data": "set"}).add(record)
    whole = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(whole + '{"image": "é'.encode()[:-1])
    assert Journal(tmp_path, {"data": "set"}).records == [record]
    assert (tmp_path / RECORDS).read_bytes() == whole
    (tmp_path / RECORDS).write_bytes(whole + b"\xff\n")
    with refused("results-damaged"):
        Journal(tmp_path, {"data": "set"})


def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    facts = {"data": "set"}
    with journal_in(tmp_path / "out", facts) as journal:
        with refused("output-in-use", tmp_path / "out", "--output"), journal_in(tmp_path / "out", facts):
            pass
        journal.add(Record("a.png", "0", "none", ["one"], [True], [1.0], [2.0], {}, 0.0, 2.0))
    with journal_in(tmp_path / "out", facts) as journal:
        assert len(journal.records) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORDS]


def test_what_two_evaluations_wrote_counts_once(tmp_path: Path) -> None:
    first = Record("a.png", "0", "none", ["one"], [True], [1.0], [2.0], {}, 0.0, 2.0)
    journal = Journal(tmp_path, {"data": "set"})
    for record in (
        first,
        replace(first, method="m-1"),
        replace(first, ttft_ms=[9.0]),
        replace(first, asked="1"),
    ):
        journal.add(record)
    kept = Journal(tmp_path, {"data": "set"}).records
    assert sorted((r.asked, r.method, r.ttft_ms) for r in kept) == [
        ("0", "m-1", [1.0]),
        ("0", "none", [1.0]),
        ("1", "none", [1.0]),
    ]


def test_a_journal_that_can_no_longer_be_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"data": "set"})
    (tmp_path / RECORDS).unlink()
    (tmp_path / RECORDS).mkdir()
    with refused("output-unwritable", "records.jsonl", "--output"):
        journal.add(Record("a.png", "0", "none", ["one"], [True], [1.0], [2.0], {}, 0.0, 2.0))
    assert journal.records == []


def test_a_question_may_hold_what_ends_a_line_for_python(tmp_path: Path, folder: Path) -> None:
    line = {"image": "a.png", "question": "how\u2028many?", "answer": "3"}
    text = json.dumps(line, ensure_ascii=False)
    (folder / "questions.jsonl").write_text(f"{text}\n{text}\r\n", encoding="utf-8")
    (image,) = load_dataset(str(folder)).images
    assert [question.text for question in image.questions] == ["how\u2028many?"] * 2


def test_a_budget_named_twice_is_one(demo_bundle: Path) -> None:
    methods = choose_methods(Bundle.open(demo_bundle), ["divprune"], [58, 58])
    assert [m.id for m in methods] == ["none", "divprune-58", "random-58", "uniform-58"]


def test_rows_skip_what_was_not_asked(folder: Path, demo_bundle: Path) -> None:
    assert summarise([], choose_methods(Bundle.open(demo_bundle)), load_dataset(str(folder))) == []


def test_command(demo_bundle: Path, folder: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    result = command(
        "evaluate", demo_bundle, "--data", folder, "--output", out, "--max-tokens", 2, "--threads", 1
    )
    assert result.code == 0, result.err
    assert "divprune" in result.out
    assert {p.name for p in out.iterdir()} == {
        RECORDS,
        PAIRS,
        "evaluation.md",
        "evaluation.csv",
        "evaluation.json",
    }
    again = command(
        "evaluate",
        demo_bundle,
        "--data",
        folder,
        "--output",
        out,
        "--max-tokens",
        2,
        "--threads",
        1,
        "--json",
    )
    assert json.loads(again.out)["questions"] == 3
    (out / "evaluation.md").unlink()
    (out / "evaluation.md").mkdir()
    barred = command(
        "evaluate", demo_bundle, "--data", folder, "--output", out, "--max-tokens", 2, "--threads", 1
    )
    assert_told(barred.code, barred.err, "output-unwritable", "evaluation.md")
    none = command("evaluate", demo_bundle, "--data", folder, "--output", out, "--max-tokens", 0)
    assert_told(none.code, none.err, "usage", "--max-tokens")
    assert none.out == ""
    bad = command("evaluate", demo_bundle, "--data", folder, "--keep", "58,many")
    assert_told(bad.code, bad.err, "option-invalid", "58,many")
    assert bad.err.count("\n") == 1
