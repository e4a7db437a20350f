"""The model repository: its configs as Triton's protobuf reads them, and its answers over a stand-in for Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from checkpoints import TILED_VARIATIONS, make_checkpoint
from conftest import run_module
from exporting import export, plan_of
from images_made import noise_image
from qwen_checkpoints import make_qwen_checkpoint
from raising import assert_told

from divprune_edge import Pipeline
from divprune_edge.models.demo import IMAGE

from .standin import Answering, Server, config_of, protobuf, texts

QUESTION = "What colour is the circle?"
KINDS = {
    "tensor(float)": "TYPE_FP32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}


def write(bundle: Path, folder: Path, *options: str) -> Server:
    result = run_module("runtime", "triton", str(bundle), "--output", str(folder), *options)
    assert result.returncode == 0, result.stderr
    return Server(folder)


@pytest.fixture(scope="module")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return write(demo_bundle, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture
def answering(repository: Server, monkeypatch: pytest.MonkeyPatch) -> Answering:
    return Answering(repository, monkeypatch)


def test_configs_fit_the_graphs(repository: Server) -> None:
    assert set(repository.configs) == {
        "demo",
        "demo-vision_encoder",
        "demo-divprune-58",
        "demo-language_model",
    }
    for name, config in repository.configs.items():
        assert config.name == name and config.max_batch_size == 0
        if config.backend == "python":
            continue
        folder = repository.repository / name / "1"
        session = ort.InferenceSession(
            str(folder / config.default_model_filename), providers=["CPUExecutionProvider"]
        )
        for ports, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            told = {p.name: (protobuf().DataType.Name(p.data_type), [*p.dims]) for p in ports}
            assert told == {
                one.name: (KINDS[one.type], [n if isinstance(n, int) else -1 for n in one.shape])
                for one in real
            }


def test_answers_are_those_of_ask(answering: Answering, repository: Server, demo_bundle: Path) -> None:
    pipeline = Pipeline(demo_bundle, threads=1)
    for selector in (None, "none"):
        expected = (pipeline if selector is None else pipeline.with_selector(selector)).ask(IMAGE, QUESTION)
        more = {} if selector is None else {"selector": texts(selector)}
        repository.asked.clear()
        pieces, last = answering.ask(image=texts(IMAGE.read_bytes()), question=texts(QUESTION), **more)
        assert "".join(pieces) == expected.answer
        assert last["kept_indices"].tolist() == expected.kept_indices.tolist()
        assert last["prompt_tokens"][0] == expected.prompt_tokens
        assert last["tokens"][0] == len(expected.token_ids)
        assert last["finish_reason"][0].decode() == expected.finish_reason
        # Every run is Triton's: one of the encoder, one for each token.
        counts = {name.removeprefix("demo-"): count for name, count in repository.asked.items()}
        assert counts.pop("divprune-58", 0) == (selector is None)
        assert counts == {"vision_encoder": 1, "language_model": len(expected.token_ids)}


def test_options(answering: Answering, demo_bundle: Path) -> None:
    pipeline = Pipeline(demo_bundle, threads=1)
    sampled = {"max_tokens": 3, "temperature": 2.0, "seed": 5}
    expected = pipeline.ask(IMAGE, QUESTION, **sampled)
    kinds = {"max_tokens": np.int32, "temperature": np.float32, "seed": np.int64}
    tensors = {name: np.array([value], kinds[name]) for name, value in sampled.items()}
    pieces, last = answering.ask(image=texts(IMAGE.read_bytes()), question=texts(QUESTION), **tensors)
    assert "".join(pieces) == expected.answer and last["tokens"][0] == len(expected.token_ids)
    assert len(pieces) > 1  # they come one by one
    pieces, _ = answering.ask(question=texts("Who are you?"), max_tokens=np.array([4], np.int32))
    assert "".join(pieces) == pipeline.ask(None, "Who are you?", max_tokens=4).answer


def test_what_goes_wrong_is_told(answering: Answering, repository: Server) -> None:
    good = {"image": texts(IMAGE.read_bytes()), "question": texts(QUESTION)}
    for wrong, code in (
        ({"image": texts(b"GIF89a")}, "image-format-unknown"),
        ({"selector": texts("divprun")}, "selector-not-in-bundle"),
        ({"max_tokens": np.array([0], np.int32)}, "decoding-out-of-range"),
        ({"question": texts("")}, "question-empty"),
    ):
        with pytest.raises(RuntimeError, match=code):
            answering.ask(**{**good, **wrong})
    repository.refuses = "demo-language_model"
    with pytest.raises(RuntimeError, match=r"demo-language_model.*no such model.*triton-graph-failed"):
        answering.ask(**good)
    repository.refuses = ""
    assert answering.ask(**good)[0]  # the next one is answered


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in tiles, and of any size: their rows are assembled by Triton, too."""
    checkpoint = tmp_path / "checkpoint"
    if family == "qwen3_vl":
        make_qwen_checkpoint(checkpoint, family=family, text={"max_position_embeddings": 512})
    else:
        make_checkpoint(checkpoint, **TILED_VARIATIONS[f"{family}, plain"])
    bundle = export(plan_of(checkpoint), tmp_path / "bundle").folder
    answering = Answering(write(bundle, tmp_path / "repository", "--name", "other"), monkeypatch)
    noise_image(40, 70, 1).save(file := tmp_path / "image.png")
    question = "what is in the picture ?"
    expected = Pipeline(bundle, threads=1).ask(file, question, max_tokens=8)
    tensors = {"question": texts(question), "max_tokens": np.array([8], np.int32)}
    pieces, last = answering.ask(image=texts(file.read_bytes()), **tensors)
    assert "".join(pieces) == expected.answer
    assert last["kept_indices"].tolist() == expected.kept_indices.tolist()


def test_options_of_the_command(demo_bundle: Path, tmp_path: Path) -> None:
    options = ["--name", "cat.v2", "--gpu", "--instances", "3", "--bundle-at", "/bundles/demo"]
    server = write(demo_bundle, tmp_path / "repository", *options)
    kinds = protobuf().ModelInstanceGroup
    answering, encoder = server.configs["cat.v2"], server.configs["cat.v2-vision_encoder"]
    assert answering.parameters["bundle"].string_value == "/bundles/demo"
    assert answering.model_transaction_policy.decoupled
    assert [(group.count, group.kind) for group in answering.instance_group] == [(3, kinds.KIND_CPU)]
    assert [(group.count, group.kind) for group in encoder.instance_group] == [(1, kinds.KIND_GPU)]
    assert config_of(server.repository / "cat.v2").name == "cat.v2"


def test_what_cannot_be_meant(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for options, code, value in (
        (["--output", str(tmp_path / "there")], "output-exists", "there"),
        (["--output", str(tmp_path / "new"), "--name", "a/b"], "triton-name", "a/b"),
        (["--output", str(tmp_path / "no" / "where")], "output-unwritable", "where"),
    ):
        result = run_module("runtime", "triton", str(demo_bundle), *options)
        assert_told(result.returncode, result.stderr, code, value)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    for code, value, asked in (
        ("triton-dialect", "static", {"dialect": "static"}),
        ("triton-schedule", "fastv", {"schedule": "fastv"}),
    ):
        other = export(plan_of(checkpoint, **asked), tmp_path / code)
        result = run_module("runtime", "triton", str(other.folder), "--output", str(tmp_path / "new"))
        assert_told(result.returncode, result.stderr, code, value)
