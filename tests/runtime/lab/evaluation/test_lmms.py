"""``--data lmms:TASK``: against the recorded interface everywhere, against lmms-eval where it is installed."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmms_interface
import numpy as np
import pytest
from PIL import Image
from raising import assert_told, refused

from divprune_edge.models.demo.held_out import held_out
from divprune_edge.models.demo.render import render
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.lab.evaluation.lmms import evaluate_task, find_task, manifest
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.requests import (
    AnswerMemory,
    Answers,
    Request,
    decoding_of,
    without_placeholder,
)
from divprune_edge.runtime.lab.evaluation.results import Record
from divprune_edge.runtime.lab.evaluation.tables import cells, footnote, heads, markdown, to_csv
from divprune_edge.runtime.lab.evaluation.task_results import Score, scores_of, task_row
from divprune_edge.runtime.pipeline import Pipeline

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
METHODS = [EvaluatedMethod("none", 9, None), EvaluatedMethod("random", 4, None)]
BLANK = Image.fromarray(np.zeros((8, 8, 3), np.uint8))


def decode(settings: dict[str, Any], max_tokens: int | None = None, seed: int = 0) -> Decoding:
    return decoding_of(settings, max_tokens, seed, "task/test/0")[0]


def test_generation_settings() -> None:
    assert decode({}) == Decoding(max_tokens=256)
    assert decode({"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1}) == Decoding(
        max_tokens=16
    )
    assert decode({"until": "Q:", "stop_sequences": ["\n", ""]}).stop == ("Q:", "\n")
    assert decode({"max_new_tokens": 16}, max_tokens=5).max_tokens == 5
    assert decode({"max_gen_toks": 7}).max_tokens == 7
    assert decode({"repetition_penalty": 1.2}).repetition_penalty == 1.2
    drawn = decode({"temperature": 0.2, "top_p": 0.9, "top_k": 3, "seed": 4}, seed=2)
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed) == (0.2, 0.9, 3, 6)
    assert decode({"do_sample": True}).temperature == 1
    assert decode({"do_sample": False, "temperature": 0.7}).temperature == 0
    assert decoding_of({"image_aspect_ratio": "pad", "until": []}, None, 0, "")[1] == {"image_aspect_ratio"}
    with refused("task-unsupported", "task/test/0", "5 beams"):
        decode({"num_beams": 5})


class Fake:
    """Answers with the method and the seed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def ask(
        self, image: Any, methods: Sequence[EvaluatedMethod], decoding: Decoding | None = None
    ) -> list[Record]:
        image.open()
        assert decoding is not None
        self.asked.append((image.name, tuple(m.id for m in methods)))
        said = image.questions[0].text
        return [
            Record(
                image.name,
                image.digest,
                method.id,
                [f"{said} {method.id} {decoding.seed}"],
                [False],
                [10.0],
                [20.0],
                {},
                0.5,
                0.1,
            )
            for method in methods
        ]


def request(name: str, visuals: Any = (BLANK,), text: str = "What?", **settings: Any) -> Request:
    return Request(name, text, settings, lambda: visuals)


def test_a_request_is_asked_once_with_all_methods() -> None:
    fake, memory = Fake(), AnswerMemory()
    answers = Answers(fake, METHODS, memory)
    asked = [request("a"), request("b", text="Why?")]
    assert [r.answers for r in answers.of(asked, METHODS[1])] == [
        ["What? random-4 None"],
        ["Why? random-4 None"],
    ]
    both = ("none", "random-4")
    assert fake.asked == [("a", both), ("a", both), ("b", both)]  # the very first is to warm up
    assert [r.answers for r in answers.of(asked, METHODS[0])] == [["What? none None"], ["Why? none None"]]
    assert len(fake.asked) == 3
    # Another run finds them; other words or settings are another question.
    later = Fake()
    again = Answers(later, METHODS, memory)
    again.of(asked, METHODS[0])
    assert later.asked == []
    again.of([request("a", max_new_tokens=3)], METHODS[0])
    assert later.asked == [("a", both), ("a", both)]


@pytest.mark.parametrize(
    ("visuals", "given"),
    [
        ((), "0 images"),
        (None, "0 images"),
        ((BLANK, BLANK), "2 images"),
        (("film.mp4",), "str"),
    ],
)
def test_what_is_not_one_image_is_refused(visuals: Any, given: str) -> None:
    with refused("task-unsupported", "'a'", given):
        Answers(Fake(), METHODS, AnswerMemory()).of([request("a", visuals)], METHODS[0])


def test_placeholders() -> None:
    assert without_placeholder("What?\n", "a") == "What?\n"
    assert without_placeholder(" <image>\nWhat?", "a") == "What?"
    for text in ("<image><image>What?", "Look at <image>: what?"):
        with refused("task-unsupported", "'a'"):
            without_placeholder(text, "a")


def test_scores() -> None:
    results = {
        "all": {"alias": "all", "samples": 3, "acc,none": np.float64(0.5), "acc_stderr,none": "N/A"},
        "part": {"acc,none": 1, "acc_stderr,none": 0.25, "acc_stderr_clt,none": 0.3, "f1,strict": 0.2},
    }
    assert scores_of(results) == {
        "all: acc": Score(0.5),
        "part: acc": Score(1.0, 0.25),
        "part: f1 (strict)": Score(0.2),
    }
    assert scores_of({"t": {"acc,none": None, "file,none": "written", "ok,none": True}}) == {}


def test_tables() -> None:
    records = Fake().ask(_Opened("a"), METHODS, Decoding())
    rows = [
        task_row(METHODS[0], {"acc": Score(0.5, 0.125)}, records[:1]),
        task_row(METHODS[1], {"acc": Score(12.3456), "f1": Score(1.0)}, records[1:]),
    ]
    assert heads(rows) == ["method", "K", "acc", "f1", "TTFT", "total", "coverage", "smallest"]
    assert [line[:4] for line in cells(rows)] == [
        ["none", "9", "0.5 ± 0.12", ""],
        ["random*", "4", "12.35", "1"],
    ]
    assert "1 questions; scores as the task reports them" in footnote(rows)
    assert "NumPy reference" in markdown(rows)
    table = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [(r["acc"], r["acc error"], r["f1"]) for r in table] == [
        ("0.500000", "0.125000", ""),
        ("12.345600", "", "1.000000"),
    ]


class _Opened:
    def __init__(self, name: str) -> None:
        self.name, self.digest, self.questions = name, "d", (request(name),)

    def open(self) -> Image.Image:
        return BLANK


QUESTION = "What colour is the circle?"


def two_documents(model: Any) -> dict[str, Any]:
    """Ask as lmms-eval does, and score with two metrics."""
    docs = [render(scene) for scene in held_out(2).scenes]
    model.task_dict["two"] = {"test": docs}
    settings = {"max_new_tokens": 2, "image_aspect_ratio": "pad"}
    asked = [
        lmms_interface.Instance(
            "generate_until",
            (f"<image>\n{QUESTION}", settings, lambda doc: [Image.fromarray(doc)], i, "two", "test"),
            0,
            {"task": "two", "doc_id": i, "repeats": 1},
        )
        for i in (0, 1, 1)
    ]
    said = model.generate_until(asked)
    assert said[1] == said[2]
    return {"letters,none": float(np.mean([len(text) for text in said])), "letters_stderr,none": 0.5}


def test_command(
    demo_bundle: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lmms_interface.install(monkeypatch, {"two": two_documents})
    out = tmp_path / "out"
    options = ("--data", "lmms:two", "--output", out, "--threads", 1)
    result = command("evaluate", demo_bundle, *options)
    assert result.code == 0, result.err
    assert "lmms-eval talks" not in result.out
    assert "Settings of the task without a meaning here: image_aspect_ratio." in result.err
    found = json.loads((out / "evaluation.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["none", "divprune-58", "random-58", "uniform-58"]
    assert (found["data"], found["questions"]) == ("lmms:two", 3)
    pipeline = Pipeline(Bundle.open(demo_bundle))
    wanted = [len(pipeline.ask(render(scene), QUESTION, max_tokens=2).answer) for scene in held_out(2).scenes]
    assert found["rows"][1]["scores"] == {
        "letters": {"value": pytest.approx((wanted[0] + 2 * wanted[1]) / 3), "error": 0.5}
    }
    again = command("evaluate", demo_bundle, *options, "--json")
    assert json.loads(again.out)["rows"] == found["rows"]  # times included: nothing was asked again


def refusing(kind: str) -> Callable[[Any], dict[str, Any]]:
    def run(model: Any) -> dict[str, Any]:
        getattr(model, kind)([])
        return {}

    return run


def unreachable(model: Any) -> dict[str, Any]:
    raise ConnectionError("no route\nto the hub")


def without_numbers(model: Any) -> dict[str, Any]:
    return {**two_documents(model), "letters,none": "written to a file"}


def with_tools(model: Any) -> dict[str, Any]:
    model.generate_until([lmms_interface.Instance("generate_until", ("What?", {}), 0)])
    return {}


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        ("tow", "task-unknown", "'tow' (did you mean 'two'?)"),
        ("scores", "task-unsupported", "loglikelihood, expected generate_until"),
        ("talk", "task-unsupported", "generate_until_multi_round, expected generate_until"),
        ("draw", "task-unsupported", "generate_visual_cot, expected generate_until"),
        ("tools", "task-unsupported", "tools or several rounds"),
        ("far", "task-not-prepared", "ConnectionError: no route"),
        ("file", "task-without-number", "'file'"),
        ("there/is/none.yaml", "task-missing", "'there/is/none.yaml'"),
    ],
)
def test_bad_tasks(
    task: str,
    code: str,
    said: str,
    demo_bundle: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = {
        "two": two_documents,
        "scores": refusing("loglikelihood"),
        "talk": refusing("generate_until_multi_round"),
        "draw": refusing("generate_visual_cot"),
        "tools": with_tools,
        "far": unreachable,
        "file": without_numbers,
    }
    lmms_interface.install(monkeypatch, tasks)
    result = command(
        "evaluate", demo_bundle, "--data", f"lmms:{task}", "--output", tmp_path / "out", "--threads", 1
    )
    assert_told(result.code, result.err, code, f"'{task}'", said)


def test_registered_model(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lmms-eval's own command makes of ``--model divprune_edge``."""
    lmms_interface.install(monkeypatch, {})
    entry = manifest()
    assert isinstance(entry, lmms_interface.ModelManifest)
    module, _, name = str(entry.simple_class_path).rpartition(".")
    model = getattr(importlib.import_module(module), name)
    two_documents(model(bundle=str(demo_bundle), selector="divprune", keep=58, batch_size="1", device="cpu"))
    with refused("batch-size-unsupported", "batch_size is 4"):
        model(bundle=str(demo_bundle), batch_size=4)


def test_no_documents(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmms_interface.install(monkeypatch, {"two": two_documents})
    with refused("count-out-of-range", "0 documents"):
        evaluate_task(Bundle.open(demo_bundle), find_task("lmms:two"), [], Path("nowhere"), limit=0)


def test_a_file_that_describes_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmms_interface.install(monkeypatch, {})
    (tmp_path / "mine.yaml").write_text("dataset_path: json\n", encoding="utf-8")
    with refused("task-invalid", f"'{tmp_path / 'mine.yaml'}'", "'task: NAME'"):
        find_task(f"lmms:{tmp_path / 'mine.yaml'}")


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("lmms-eval-missing", "'.[lmms]'"):
        find_task("lmms:gqa")


TASK = """
task: divprune_shapes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function shapes.doc_to_visual
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  until: ["."]
process_results: !function shapes.process_results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""

FUNCTIONS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"])] * doc["images"]

def process_results(doc, results):
    return {"exact": float(results[0].strip().lower() == doc["answer"])}
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of one's own: two images, all questions about them."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = held_out(2)
    lines = []
    for i, (scene, questions) in enumerate(zip(data.scenes, data.questions, strict=True)):
        Image.fromarray(render(scene)).save(folder / f"{i}.png")
        lines += [
            {"image": f"{folder / f'{i}.png'}", "question": q.text, "answer": q.answer.lower(), "images": 1}
            for q in questions
        ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "shapes.yaml").write_text(TASK.format(folder=folder), encoding="utf-8")
    (folder / "shapes.py").write_text(FUNCTIONS, encoding="utf-8")
    return folder


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
def test_for_real(demo_bundle: Path, shapes: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    options = ("--data", f"lmms:{shapes / 'shapes.yaml'}", "--threads", 1)
    result = command("evaluate", demo_bundle, *options, "--output", out)
    assert result.code == 0, result.err
    found = json.loads((out / "evaluation.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["none", "divprune-58", "random-58", "uniform-58"]
    pipeline = Pipeline(Bundle.open(demo_bundle))
    documents = [json.loads(line) for line in (shapes / "questions.jsonl").read_text().splitlines()]
    right = [
        pipeline.ask(d["image"], d["question"], max_tokens=4, stop=(".",)).answer.strip().lower()
        == d["answer"]
        for d in documents
    ]
    assert found["rows"][1]["scores"]["exact"]["value"] == pytest.approx(np.mean(right))
    assert found["questions"] == len(documents)
    few = command("evaluate", demo_bundle, *options, "--output", out, "--limit", 3, "--json")
    assert json.loads(few.out)["questions"] == 3
    documents[0]["images"] = 2
    (shapes / "questions.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    bad = command("evaluate", demo_bundle, *options, "--output", tmp_path / "bad")
    assert_told(bad.code, bad.err, "task-unsupported", "divprune_shapes/test/0", "2 images")


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
def test_the_recorded_interface_is_the_real_one() -> None:
    for module, names in lmms_interface.NAMES.items():
        for name in names:
            recorded = getattr(lmms_interface, name)
            real = getattr(importlib.import_module(module), name)
            wanted = set(inspect.signature(recorded).parameters)
            assert wanted <= set(inspect.signature(real).parameters), name
            assert getattr(recorded, "__abstractmethods__", frozenset()) == getattr(
                real, "__abstractmethods__", frozenset()
            )
