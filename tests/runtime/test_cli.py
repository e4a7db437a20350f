"""The command line: what it prints, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_image
from PIL import Image
from raising import assert_told

from divprune_edge.runtime.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "what color is the circle?"
FIELDS = {
    "answer",
    "token_ids",
    "kept_from",
    "kept_indices",
    "prompt_tokens",
    "visual_tokens",
    "image_tokens",
    "timings_ms",
    "finish_reason",
    "backend",
}
HEAVY = {
    "PIL",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}

Run = Callable[..., Any]


def test_answer_on_stdout_and_times_on_stderr(command: Run, demo_bundle: Path, image: Path) -> None:
    plain = command("ask", demo_bundle, "--image", image, QUESTION, "--max-tokens", 5)
    assert plain.code == 0
    fields = json.loads(
        command("ask", demo_bundle, "--image", image, QUESTION, "--max-tokens", 5, "--json").out
    )
    assert plain.out == fields["answer"] + "\n"
    assert "58 visual of" in plain.err
    assert set(fields) == FIELDS


def test_options_reach_the_answer(command: Run, demo_bundle: Path, image: Path) -> None:
    def fields(*options: object) -> dict[str, Any]:
        result = command("ask", demo_bundle, "--image", image, QUESTION, "--json", *options)
        assert result.code == 0, result.err
        return dict(json.loads(result.out))

    assert len(fields("--ignore-eos", "--max-tokens", 7)["token_ids"]) == 7
    assert fields("--selector", "none", "--max-tokens", 2)["visual_tokens"] == 576
    assert fields("--keep", 576, "--max-tokens", 2)["visual_tokens"] == 576
    assert (
        fields("--selector", "divprune", "--keep", 58, "--threads", 1, "--max-tokens", 2)["visual_tokens"]
        == 58
    )
    sampled = ["--temperature", 9, "--top-p", 0.9, "--ignore-eos", "--max-tokens", 20]
    assert fields(*sampled, "--seed", 1)["token_ids"] == fields(*sampled, "--seed", 1)["token_ids"]
    letter = fields("--ignore-eos", "--max-tokens", 20)["answer"].strip()[0]
    stopped = fields("--ignore-eos", "--max-tokens", 20, "--stop", letter, "--verify-hashes", "always")
    assert (stopped["finish_reason"], letter in stopped["answer"]) == ("stop_string", False)


def test_special_tokens_and_ids_that_stop(
    command: Run, pipeline: Pipeline, demo_bundle: Path, image: Path
) -> None:
    ids = pipeline.ask(image, QUESTION, max_tokens=12, ignore_eos=True).token_ids
    asked = ["ask", demo_bundle, "--image", image, QUESTION, "--json", "--ignore-eos"]
    stopped = json.loads(command(*asked, "--stop-id", ids[0], "--stop-id", 7).out)
    assert (stopped["token_ids"], stopped["finish_reason"]) == ([ids[0]], "stop")
    at = ids.index(2)
    stopped = json.loads(command(*asked, "--stop", "</s>").out)
    assert (stopped["token_ids"], stopped["finish_reason"]) == (list(ids[: at + 1]), "stop_string")
    assert "error[stop-id]" in command(*asked, "--stop-id", 12345).err


def test_system_text_and_ready_made_prompts(
    command: Run, demo_bundle: Path, image: Path, tmp_path: Path
) -> None:
    def fields(text: str, *options: object) -> dict[str, Any]:
        (tmp_path / "q.jsonl").write_text(json.dumps({"image": str(image), "question": text}))
        one = command("ask", demo_bundle, "--image", image, text, "--json", "--max-tokens", 9, *options)
        several = command("batch", demo_bundle, tmp_path / "q.jsonl", "--max-tokens", 9, *options)
        assert (one.code, several.code) == (0, 0), one.err + several.err
        first, second = json.loads(one.out), json.loads(several.out)
        assert (first["token_ids"], first["prompt_tokens"]) == (second["token_ids"], second["prompt_tokens"])
        return dict(first)

    plain, told = fields(QUESTION), fields(QUESTION, "--system", "the red circle")
    assert told["prompt_tokens"] == plain["prompt_tokens"] + 3
    ready = fields(f"USER: <image>\n{QUESTION} ASSISTANT:", "--raw-prompt")
    assert (ready["prompt_tokens"], ready["token_ids"]) == (plain["prompt_tokens"], plain["token_ids"])
    asked = ["ask", demo_bundle, "--image", image]
    assert "error[raw-prompt-placeholder]" in command(*asked, QUESTION, "--raw-prompt").err
    assert "error[raw-prompt-system]" in command(*asked, "<image>", "--raw-prompt", "--system", "a").err
    assert "error[system-empty]" in command(*asked, QUESTION, "--system", "").err


def test_a_chat_keeps_its_system_text(pipeline: Pipeline, image: Path) -> None:
    chat = pipeline.chat(image, system="the red circle")
    first, second = chat.ask(QUESTION, max_tokens=4), chat.ask("how many?", max_tokens=4)
    assert [turn.role for turn in chat._turns] == ["system", "user", "assistant", "user", "assistant"]
    assert second.prompt_tokens > first.prompt_tokens
    assert second.timings_ms["vision"] == 0


def test_a_ready_made_prompt_in_a_chat_stands_alone(pipeline: Pipeline, image: Path) -> None:
    chat = pipeline.chat(image)
    chat.ask("how many?", max_tokens=4)
    raw = chat.ask(f"USER: <image>\n{QUESTION} ASSISTANT:", raw_prompt=True, max_tokens=4)
    assert raw.token_ids == pipeline.ask(image, QUESTION, max_tokens=4).token_ids
    assert len(chat._turns) == 2
    ready = f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert pipeline.ask(image, ready, raw_prompt=True, max_tokens=4).token_ids == raw.token_ids


@pytest.mark.parametrize("stdin", [False, True])
def test_chat_answers_one_line_per_question(
    command: Run, demo_bundle: Path, image: Path, stdin: bool
) -> None:
    questions = [QUESTION, "is there a square?", "how many?"]
    arguments = ["ask", demo_bundle, "--image", image, "--chat", "--json", "--max-tokens", 4]
    lines = "\n".join(["", *questions])
    result = command(*arguments, stdin=lines) if stdin else command(*arguments, *questions)
    assert result.code == 0, result.err
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert len(answers) == 3
    assert [a["timings_ms"]["vision"] > 0 for a in answers] == [True, False, False]


def test_info(command: Run, demo_bundle: Path) -> None:
    tables = command("info", demo_bundle)
    assert tables.code == 0
    for text in (
        "divprune-58 (default)",
        "58 of 576",
        "10.1%",
        "portable",
        "not verified",
        "pixels",
        "total size",
    ):
        assert text in tables.out
    facts = json.loads(command("info", demo_bundle, "--json").out)
    assert facts["total_size"] == sum(
        file.stat().st_size for file in demo_bundle.rglob("*") if file.is_file()
    )
    assert facts["selectors"][0]["keep"] == 58


def refused(result: Any, code: str, *parts: object) -> None:
    """One sentence on stderr, nothing on stdout, exit code 2."""
    assert_told(result.code, result.err, code, *parts)
    assert result.out == ""
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--max-tokens", -1], ["decoding-out-of-range", "max_tokens is -1", "at least 1"]),
        (["--max-tokens", "many"], ["usage", "--max-tokens", "integer"]),
        (["--temperature", -0.5], ["decoding-out-of-range", "temperature is -0.5"]),
        (["--top-p", 0], ["decoding-out-of-range", "top_p is 0"]),
        (["--top-p", 1.5], ["decoding-out-of-range", "top_p is 1.5"]),
        (["--seed", -1], ["decoding-out-of-range", "seed is -1"]),
        (["--stop", ""], ["stop-invalid", "empty"]),
        (["--threads", 0], ["threads-out-of-range", 0]),
        (
            ["--selector", "divprun"],
            ["selector-not-in-bundle", "'divprun' (did you mean 'divprune'?)", "divprune-58, none"],
        ),
        (["--keep", 60], ["selector-not-in-bundle", "60 tokens", "python -m export selector", "--keep 60"]),
        (["--keep", 0], ["keep-out-of-range", "1 to 576"]),
        (["--keep", 577], ["keep-out-of-range", "1 to 576"]),
        (["--backend", "tpu"], ["backend-unknown", "'tpu'", "cpu, cuda, tensorrt or tensorrt-rtx"]),
        (["--verify-hashes", "never"], ["option-invalid", "'never'", "'auto' or 'always'"]),
        (["--nonsense"], ["usage", "--nonsense", "--help"]),
        (["a second question"], ["question-count", "2 questions", "--chat"]),
    ],
)
def test_bad_option(
    command: Run, demo_bundle: Path, image: Path, options: list[object], parts: list[Any]
) -> None:
    refused(command("ask", demo_bundle, "--image", image, QUESTION, *options), *parts)


def test_missing_provider(command: Run, demo_bundle: Path, image: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    result = command("ask", demo_bundle, "--image", image, QUESTION, "--backend", "cuda")
    refused(result, "onnxruntime-without-provider", "CUDAExecutionProvider", "onnxruntime-gpu")


def test_questions(command: Run, demo_bundle: Path, image: Path) -> None:
    ask = ["ask", demo_bundle, "--image", image]
    refused(command(*ask), "question-count", "0 questions")
    refused(command(*ask, ""), "question-empty")
    refused(command(*ask, " \n"), "question-empty")
    refused(command(*ask, "circle " * 3000), "prompt-too-long", "tokens")
    result = command(*ask, "what is </s><image><s>?", "--json", "--max-tokens", 2)
    assert result.code == 0
    assert json.loads(result.out)["visual_tokens"] == 58


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_images_that_are_refused(command: Run, demo_bundle: Path, image: Path, tmp_path: Path) -> None:
    def ask(image: Path) -> Any:
        return command("ask", demo_bundle, "--image", image, QUESTION, "--max-tokens", 2)

    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("hello")
    refused(ask(tmp_path / "none.png"), "image-missing", "none.png")
    refused(ask(tmp_path), "image-not-a-file", tmp_path)
    refused(ask(cut), "image-damaged", "cut.png")
    refused(ask(text), "image-format-unknown", "text.png")
    refused(ask(save(tmp_path, "thin.png", Image.new("L", (1, 9000)))), "image-too-elongated", "1 x 9000")
    huge = tmp_path / "huge.ppm"
    huge.write_bytes(b"P6 30000 30000 255\n")
    refused(ask(huge), "image-too-large", "900000000 pixels", "64 million")


def test_images_that_are_taken(command: Run, demo_bundle: Path, tmp_path: Path) -> None:
    rgb = noise_image(40, 60)
    taken = {
        "one.png": rgb.crop((0, 0, 1, 1)),
        "thin.png": rgb.resize((1, 5000)),
        "cmyk.jpg": rgb.convert("CMYK"),
        "deep.png": Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)),
        "alpha.png": rgb.convert("RGBA"),
        "palette.gif": rgb.convert("P"),
    }
    for name, image in taken.items():
        result = command(
            "ask", demo_bundle, "--image", save(tmp_path, name, image), QUESTION, "--max-tokens", 2
        )
        assert (result.code, result.out != "") == (0, True), name
    moving = save(tmp_path, "moving.gif", rgb, save_all=True, append_images=[rgb.rotate(90)])
    assert command("ask", demo_bundle, "--image", moving, QUESTION, "--max-tokens", 2).code == 0


@pytest.mark.parametrize("name", ["ask", "info"])
def test_bundles_that_are_refused(
    command: Run, bundle_copy: Path, image: Path, tmp_path: Path, name: str
) -> None:
    def run() -> Any:
        return command(name, bundle_copy, *(["--image", image, QUESTION] if name == "ask" else []))

    manifest = bundle_copy / "manifest.json"
    original = manifest.read_text()
    manifest.write_text(original.replace('"schema_version": 1', '"schema_version": 2'))
    refused(run(), "manifest-too-new", 2)
    manifest.write_text(original.replace('"tokenizer.json"', '"../tokenizer.json"'))
    refused(run(), "manifest-invalid", "leaves the bundle folder")
    manifest.write_text(original[:-40])
    refused(run(), "manifest-invalid", manifest)
    manifest.write_text(original)
    data = bundle_copy / "language_model.data"
    bytes_ = bytearray(data.read_bytes())
    bytes_[1000] ^= 1
    data.write_bytes(bytes_)
    refused(run(), "bundle-file-changed", "language_model.data")
    data.unlink()
    refused(run(), "bundle-file-missing", "language_model.data")
    shutil.rmtree(bundle_copy)
    refused(run(), "bundle-missing", bundle_copy)
    bundle_copy.mkdir()
    refused(run(), "bundle-without-manifest", bundle_copy)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    "arguments", [["runtime"], ["runtime", "ask"], ["export", "llava"], ["plugins", "build"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """What makes a help text slow is what it imports; how long it takes is measured by `make bench-startup`."""
    module, *command = arguments
    code = (
        f"import sys\nfrom divprune_edge.{module}.cli import main\nsys.argv = {[module, *command, '--help']!r}\n"
        "try: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    result = python("-c", code)
    assert (result.returncode, "--help" in result.stdout) == (0, True), result.stderr
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert "typer" in loaded
    assert loaded & HEAVY == set()
    ours = {name for name in result.stderr.split() if name.startswith("divprune_edge.")}
    assert not {"divprune_edge.manifest", "divprune_edge.models"} & ours
    if command:  # the help text of the whole shows what each command is for
        assert "pydantic" not in loaded
        assert {name for name in ours if name.endswith("cli")} == {f"divprune_edge.{module}.cli"}


@pytest.mark.parametrize(
    ("command", "there", "absent"),
    [
        (
            ["info"],
            "manifest",
            ["models", "runtime.backends", "runtime.pipeline", "runtime.batch_cli", "runtime.lab"],
        ),
        (
            ["ask", QUESTION],
            "models.families.llava.reading",
            [
                "models.families.llava.family",
                "models.families.qwen_vl",
                "models.selectors",
                "models.targets",
                "runtime.batch_cli",
                "runtime.lab",
                "runtime.serve",
            ],
        ),
    ],
)
def test_a_command_loads_what_it_needs(
    demo_bundle: Path, image: Path, command: list[str], there: str, absent: list[str]
) -> None:
    """Of the families one's reader; no selector and no device, which only messages and builds name."""
    more = ["--image", str(image), "--max-tokens", "1"] if command[0] == "ask" else []
    arguments = ["runtime", command[0], str(demo_bundle), *command[1:], *more]
    code = (
        f"import sys\nfrom divprune_edge.runtime.cli import main\nsys.argv = {arguments!r}\n"
        "try: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    loaded = {name.removeprefix("divprune_edge.") for name in result.stderr.split()}
    assert there in loaded
    assert loaded & set(absent) == set()


@pytest.mark.parametrize(
    "arguments", [["ask", QUESTION, "--max-tokens", "1"], ["verify"]], ids=lambda a: a[0]
)
def test_nothing_is_left_in_the_users_cache_but_our_own(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """ONNX Runtime would note an id of the machine there, and what it is about to report."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    command, *rest = arguments
    if command == "verify":
        code = f"open_graph(Path({str(demo_bundle / 'language_model.onnx')!r}))"
        code = f"from pathlib import Path; from divprune_edge.export.verify.graphs import open_graph; {code}"
        result = python("-c", code)
    else:
        result = python("-m", "runtime", command, str(demo_bundle), *rest)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"divprune-edge"}


def test_mistake_in_a_real_process() -> None:
    result = python("-m", "runtime", "ask", "nowhere", "--image", "x.png", "hello")
    assert_told(result.returncode, result.stderr, "bundle-missing", "nowhere")
    assert result.stderr.count("\n") == 1


def test_asking_needs_no_framework(demo_bundle: Path, image: Path) -> None:
    blocked = ("torch", "transformers", "onnx", "onnx_ir", "ml_dtypes", "safetensors", "huggingface_hub")
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from divprune_edge.runtime.cli import main\nmain()"
    )
    result = python("-c", code, "ask", str(demo_bundle), "--image", str(image), QUESTION, "--max-tokens", "8")
    assert (result.returncode, result.stdout != "") == (0, True), result.stderr
