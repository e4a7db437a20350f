"""Classes of what comes from outside: each makes one input of a seed and hands it to a public entry point."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from random import Random
from typing import Any

import numpy as np
from engine_bundles import make_bundle
from fuzz.mutate import TEXTS, VALUES, change, dumped, flipped, text
from fuzz.template_source import source
from PIL import Image
from qwen_checkpoints import QWEN, draft_qwen_checkpoint
from tokenizer_kinds import KINDS

from divprune_edge.errors import DivpruneError
from divprune_edge.manifest import Manifest
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.families import reader_of
from divprune_edge.runtime.backends import graph_facts

Case = Callable[[Random], None]
_TURNS = ("what is <image> in </s> it?", "what is it?", "\ud83d caf\udce9", "<s><unk>" * 3)
_EMPTY = hashlib.sha256(b"x").hexdigest()


def manifest(folder: Path, bundle: Path) -> Case:
    """``manifest.json`` of bundles whose graphs are a byte each; images may be cut into tiles, or become patches."""
    tiled = _exported(_tiled(folder / "tiled", "llava_next"), folder / "bundle")
    windows = _exported(draft_qwen_checkpoint(folder / "qwen", "qwen2_5_vl"), folder / "windows")
    named = {"demo": bundle, "next": tiled, "patches": windows}
    bundles = [_small_bundle(folder / name, one) for name, one in named.items()]

    def case(random: Random) -> None:
        small, original = random.choice(bundles)
        (small / "manifest.json").write_bytes(dumped(random, original))
        _open_and_encode(random, small)

    return case


def tokenizer(folder: Path, bundle: Path) -> Case:
    """``tokenizer.json`` of a bundle and of a checkpoint."""
    from divprune_edge.export.prompt_facts import read_prompt
    from divprune_edge.models.files import CheckpointFiles

    small, original = _small_bundle(folder, bundle)
    kinds = [json.loads(kind().to_str()) for kind in KINDS.values()]

    def case(random: Random) -> None:
        data = dumped(random, random.choice(kinds))
        changed = json.loads(json.dumps(original))
        changed["prompt"] |= {"image_token": "<image>", "image_token_id": 3, "bos_token": "<s>"}
        _replace_file(small, changed, "tokenizer.json", data)
        attempt(lambda: _open_and_encode(random, small))
        read_prompt(CheckpointFiles(small), {"eos_token_id": 2}, 3, 400, "{{ messages }}")

    return case


def template(folder: Path, bundle: Path) -> Case:
    """``chat_template.jinja`` of a bundle."""
    small, original = _small_bundle(folder, bundle)

    def case(random: Random) -> None:
        data = source(random).encode("utf-8", "surrogatepass")
        _replace_file(small, json.loads(json.dumps(original)), "chat_template.jinja", data)
        _open_and_encode(random, small)

    return case


def checkpoint(folder: Path, bundle: Path) -> Case:
    """A checkpoint's configs and the header of its safetensors, up to the plan of the export."""
    from divprune_edge.export.checkpoint import Checkpoint
    from divprune_edge.export.planning import plan_export

    kinds = [CHECKPOINT, *(_tiled(folder / name, name) for name in ("llava_next", "llava_onevision"))]
    kinds += [draft_qwen_checkpoint(folder / name, name) for name in QWEN]
    places = [Path(shutil.copytree(kind, folder / f"checkpoint {at}")) for at, kind in enumerate(kinds)]
    originals, headers = [], []
    for place in places:
        originals.append(
            {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob("*.json"))}
        )
        with next(place.glob("*.safetensors")).open("rb") as file:
            headers.append(json.loads(file.read(struct.unpack("<Q", file.read(8))[0])))

    def case(random: Random) -> None:
        at = random.randrange(len(places))
        name = random.choice(["config.json"] * 4 + list(originals[at]))
        place, header = places[at], headers[at]
        written = next(place.glob("*.safetensors"))
        good, damaged = json.dumps(header).encode(), random.random() < 0.3
        head = dumped(random, header) if damaged else good
        length = random.choice((len(head),) * 8 + (0, 1, 1 << 40, (1 << 64) - 1)) if damaged else len(head)
        written.write_bytes(struct.pack("<Q", length) + head)
        with written.open("r+b") as file:  # what is not read need not be written
            file.truncate(
                8 + len(head) + max((x["data_offsets"][1] for n, x in header.items() if n != "__metadata__"))
            )
        if not damaged:
            (place / name).write_bytes(dumped(random, originals[at][name]))
        try:
            with Checkpoint(place, "fuzzed") as opened:
                plan_export(
                    opened,
                    selector="divprune",
                    keep=None,
                    prune=None,
                    precision=random.choice(("fp32", "int4")),
                )
        finally:
            (place / name).write_text(json.dumps(originals[at][name]), encoding="utf-8")

    return case


def images(folder: Path, bundle: Path) -> Case:
    """Damaged images of every format, from a file and from memory."""
    from divprune_edge.processing.images import load_image

    pixels = np.random.default_rng(1).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    seeds: list[bytes] = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        for mode in ("RGB", "L", "P", "RGBA", "I;16", "1", "CMYK"):
            with contextlib.suppress(Exception):
                stream = io.BytesIO()
                Image.fromarray(pixels).convert(mode).save(stream, form)
                seeds.append(stream.getvalue())
    file = folder / "image"

    def case(random: Random) -> None:
        if random.random() < 0.05:
            shape = random.choice(((0, 4, 3), (4, 4), (4, 4, 3), (4, 4, 4), (4,), (1, 20000, 3), ()))
            load_image(
                np.zeros(shape, random.choice((np.uint8, np.float32, bool))), bgr=random.random() < 0.3
            )
            return
        file.write_bytes(flipped(random, random.choice(seeds)))
        load_image(file)

    return case


def clips(folder: Path, bundle: Path) -> Case:
    """Damaged and truncated clips of several containers and codecs."""
    from clips_made import noise, write_clip

    from divprune_edge.manifest import Clips, Preprocessing
    from divprune_edge.processing.clips import load_clip
    from divprune_edge.processing.sources import Video

    plain = Preprocessing(resize="none", resample=3, rescale_factor=1, mean=(0, 0, 0), std=(1, 1, 1))
    facts = Clips(frames=8, frame=plain, sampling="even", count=4)
    kinds = {"mp4": "libx264", "mkv": "mpeg4", "webm": "libvpx-vp9", "avi": "mpeg4", "ts": "mpeg2video"}
    seeds = [
        write_clip(folder / f"seed.{suffix}", noise(12, (32, 48)), codec=codec, rate=25).read_bytes()
        for suffix, codec in kinds.items()
    ]
    file = folder / "clip"

    def case(random: Random) -> None:
        data = flipped(random, random.choice(seeds))
        file.write_bytes(data[: random.randrange(len(data) + 1)] if random.random() < 0.2 else data)
        asked = random.choice(({}, {"fps": random.choice((0.1, 3.0, 1e9))}, {"frames": random.randint(1, 8)}))
        assert all(frame.size for frame in load_clip(Video(file, **asked), facts).frames)

    return case


def questions(folder: Path, bundle: Path) -> Case:
    """A JSONL of questions, for a batch and for an evaluation."""
    from divprune_edge.runtime.batch_cli import read_questions
    from divprune_edge.runtime.lab.evaluation.dataset import load_dataset

    place = folder / "questions"
    place.mkdir()
    Image.new("RGB", (8, 8)).save(place / "a.png")
    entry = {"image": "a.png", "question": "what?", "answer": ["a", "b"], "type": "colour", "id": 3}

    def case(random: Random) -> None:
        lines = [
            dumped(random, entry) if random.random() < 0.4 else json.dumps(entry).encode() for _ in range(5)
        ]
        data = random.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)
        (place / "q.jsonl").write_bytes(flipped(random, data) if random.random() < 0.1 else data)
        for line in read_questions(place / "q.jsonl"):
            assert line.error is not None or line.entry["question"].strip()
        load_dataset(str(place))

    return case


def engine_record(folder: Path, bundle: Path) -> Case:
    """``engines.json``, in the folder that its facts ask for and in another."""
    from divprune_edge.runtime.engines.fingerprint import Facts, fingerprint
    from divprune_edge.runtime.engines.store import EnginesInfo, map_plan, read_stores

    made = make_bundle(folder / "bundle")
    facts = {
        "onnx": {"vision_encoder": _EMPTY}, "edition": "tensorrt", "tensorrt": "10.3.0.26", "cuda": "12.6", "sms": [87],
        "plugin": None, "limits": {"max_prompt": 64, "kept": [58, 58, 58], "slots": 1},
    }  # fmt: skip
    record: dict[str, Any] = {
        "schema_version": 3, "facts": facts, "asked": {"selector": "divprune-58", "max_prompt": 64},
        "plans": {"vision_encoder": {
            "file": "vision_encoder.plan", "layers": "vision_encoder.layers.json", "size": 1, "sha256": _EMPTY,
            "graph": "vision_encoder.onnx", "recipe": _EMPTY, "profiles": [], "device_memory": [1], "plugin": False,
            "seconds": 1.5}},
    }  # fmt: skip
    name = fingerprint(EnginesInfo.model_validate(record).facts)
    place = made / "engines" / name
    place.mkdir(parents=True)
    (place / "vision_encoder.plan").write_bytes(b"x")

    def case(random: Random) -> None:
        data = dumped(random, record)
        (place / "engines.json").write_bytes(data)
        target = place
        with contextlib.suppress(Exception):
            target = place.with_name(fingerprint(Facts.model_validate(json.loads(data)["facts"])))
            place.rename(target)
        try:
            stores, problems = read_stores(made)
            for stored in stores:
                for plan in stored.info.plans:
                    map_plan(stored, plan).close()
            if problems:
                raise problems[0]
        finally:
            target.rename(place)

    return case


def decoding(folder: Path, bundle: Path) -> Case:
    """Questions and options of ``Pipeline.ask``."""
    from divprune_edge.runtime.generate import Decoding
    from divprune_edge.runtime.pipeline import Pipeline

    pipeline = Pipeline(bundle, threads=1)
    chat = pipeline.chat(np.zeros((40, 60, 3), np.uint8))
    options: dict[str, Any] = {
        "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["x"], "ignore_eos": False,
        "prefill_chunk": 9, "top_k": 3, "repetition_penalty": 1.1, "stop_ids": [5],
    }  # fmt: skip

    def case(random: Random) -> None:
        chosen = change(random, options)
        if not isinstance(chosen, dict):
            return
        unknown = set(chosen) - set(options)
        chosen = {name: value for name, value in chosen.items() if name not in unknown}
        most = Decoding(**chosen).max_tokens
        question = text(random, random.choice(("what is in the picture?", *_TURNS)))
        if random.random() < 0.1:
            question = random.choice(("", " \n", question * 2000, *TEXTS))
        chat._turns.clear()
        chat.ask(question, **{**chosen, "max_tokens": min(most, 2)})

    return case


def requests(folder: Path, bundle: Path) -> Case:
    """Bodies of requests, from the first byte to the last token."""
    from divprune_edge.runtime.pipeline import Pipeline
    from divprune_edge.runtime.serve.answers import Writing, error_fields, event_text
    from divprune_edge.runtime.serve.catalog import Catalog
    from divprune_edge.runtime.serve.engine import Engine
    from divprune_edge.runtime.serve.job import Ended, Event, Failed
    from divprune_edge.runtime.serve.limits import ServerLimits
    from divprune_edge.runtime.serve.reading import question_of
    from divprune_edge.runtime.serve.remote import Fetcher
    from divprune_edge.runtime.serve.schema import read_request

    pipeline, limits = Pipeline(bundle, threads=1), ServerLimits(max_tokens=4, slots=2)
    engine = Engine(pipeline, limits)
    engine.start()
    catalog = Catalog(pipeline.bundle, "demo", 0, pipeline.selector, engine.joins_between_steps)
    fetch = Fetcher([], limits).errand(lambda count: None)
    Image.new("RGB", (9, 7), (200, 30, 40)).save(held := io.BytesIO(), "PNG")
    url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": "what is it?"}]}
    body: dict[str, Any] = {
        "model": "demo", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 1, "stop": ["x"],
        "stream": False, "logprobs": True, "top_logprobs": 2, "selector": "divprune", "keep": 58, "n": 1, "user": "a",
        "messages": [
            {"role": "system", "content": "Be brief."}, asked, {"role": "assistant", "content": "red"},
            {"role": "user", "content": "why?"},
        ],
    }  # fmt: skip

    def case(random: Random) -> None:
        chosen = body if random.random() < 0.7 else {"messages": [asked], "max_tokens": 1}
        request = read_request(dumped(random, chosen), limits.json_items)
        question = question_of(request, catalog, limits, fetch)
        writing, events = (
            Writing("a", "demo", question.selector, question.logprobs is not None),
            Queue[Event](),
        )
        engine.submit(question, "client", events.put)
        while True:
            event = events.get(timeout=60)
            if isinstance(event, Failed):
                assert event.error.code != "server-failed", "the engine's own fault, see its log"
                json.dumps(error_fields(event.error), allow_nan=False).encode()
                raise event.error
            b"".join(map(event_text, writing.take(event)))
            if isinstance(event, Ended):
                json.dumps(writing.whole(), allow_nan=False, ensure_ascii=False).encode()
                return

    return case


def arguments(folder: Path, bundle: Path) -> Case:
    """The command line, in process."""
    from divprune_edge.console import run
    from divprune_edge.export.cli import app as export
    from divprune_edge.runtime.cli import app as runtime

    picture = folder / "picture.png"
    Image.new("RGB", (30, 20)).save(picture)
    lines = folder / "lines.jsonl"
    lines.write_text(json.dumps({"image": "picture.png", "question": "what?"}) + "\nno\n", encoding="utf-8")
    small, _ = _small_bundle(folder, bundle)
    seeds = [
        (
            runtime,
            [
                "ask",
                small,
                "--image",
                picture,
                "what?",
                "--max-tokens",
                1,
                "--selector",
                "none",
                "--top-p",
                0.5,
            ],
        ),
        (
            runtime,
            ["ask", small, "--image", picture, "--chat", "a", "b", "--keep", 58, "--seed", 1, "--stop", "x"],
        ),
        (runtime, ["info", small, "--json", "--verify-hashes", "auto"]),
        (
            runtime,
            ["batch", small, lines, "--size", 2, "--temperature", 0.5, "--backend", "cpu", "--threads", 1],
        ),
        (runtime, ["trtexec", small, "--tensorrt", "10.3", "--output", folder / "out", "--max-prompt", 64]),
        (runtime, ["trtexec", "--read", folder]),
        (runtime, ["build", small, "--selector", "divprune", "--max-prompt", 64, "--target", "orin"]),
        (export, ["cost", "--model", "llava-1.5-7b", "--prune", "0.9"]),
        (
            export,
            [
                "llava",
                "--model",
                folder / "none",
                "--prune",
                "0.9",
                "--precision",
                "int8",
                "--output",
                folder,
            ],
        ),
        (export, ["selector", small, "--selector", "divprune", "--keep", 3]),
        (export, ["check", small, "--target", "orin-nano"]),
    ]

    def case(random: Random) -> None:
        app, seed = random.choice(seeds)
        words = list(seed)
        for _ in range(random.choice((1, 1, 2, 3))):
            at = random.randrange(len(words))
            kind = random.random()
            if kind < 0.5 and at:
                words[at] = random.choice(VALUES)
            elif kind < 0.7:
                words[at] = text(random, str(words[at]))
            elif kind < 0.85:
                del words[at]
            else:
                words.insert(at, random.choice((*words, *TEXTS)))
            words = words or ["ask"]
        given = [str(word).replace("\0", "") for word in words]  # no process can be given that
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run(app, given, program="fuzz")
            except SystemExit as ended:
                code = ended.code
        if "Traceback" in err.getvalue():
            raise AssertionError(f"a traceback of {given}")
        if code not in (0, None):
            assert code in (1, 2), f"exit code {code} of {given}"
            raise DivpruneError(err.getvalue(), code="exit")

    return case


CLASSES: dict[str, Callable[[Path, Path], Case]] = {
    made.__name__: made
    for made in (
        manifest,
        tokenizer,
        template,
        checkpoint,
        images,
        clips,
        questions,
        engine_record,
        decoding,
        requests,
        arguments,
    )
}


def attempt(action: Callable[[], object]) -> None:
    """Do something that may be refused, and go on."""
    with contextlib.suppress(DivpruneError):
        action()


def _tiled(folder: Path, family: str) -> Path:
    """Write the demo checkpoint as one of a family whose images are cut into tiles."""
    from safetensors.numpy import load_file, save_file

    kind = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[family]
    shutil.copytree(CHECKPOINT, folder)
    cut = {"image_grid_pinpoints": [[96, 192], [192, 96], [192, 192]]}
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"model_type": family, "vision_aspect_ratio": "anyres_max_2", **cut},
        "preprocessor_config.json": {"image_processor_type": f"{kind}ImageProcessor", **cut},
    }
    for name, changed in changes.items():
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(data | changed), encoding="utf-8")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    save_file({**weights, "image_newline": np.ones(192, np.float16)}, file, {"format": "pt"})
    return folder


def _exported(checkpoint: Path, folder: Path) -> Path:
    """Export a checkpoint without verification."""
    from exporting import export, plan_of

    return export(plan_of(checkpoint), folder).folder


def _small_bundle(folder: Path, bundle: Path) -> tuple[Path, dict[str, Any]]:
    """Return a copy of a bundle whose graphs and weights are a byte each, and its manifest."""
    small = folder / "small"
    small.mkdir(parents=True)
    original = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for name in original["files"]:
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".json", ".jinja")):
            shutil.copy(bundle / name, small / name)
        else:
            (small / name).write_bytes(b"x")
            original["files"][name] = {"size": 1, "sha256": _EMPTY}
    (small / "manifest.json").write_text(json.dumps(original), encoding="utf-8")
    return small, original


def _replace_file(bundle: Path, manifest: dict[str, Any], name: str, data: bytes) -> None:
    (bundle / name).write_bytes(data)
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _open_and_encode(random: Random, bundle: Path) -> None:
    from divprune_edge.processing.prompt import Turn
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.info import facts_of, print_tables

    opened = Bundle.open(bundle)
    attempt(opened.selector)
    attempt(lambda: json.dumps(facts_of(opened)))
    if random.random() < 0.2:
        with contextlib.redirect_stdout(io.StringIO()):
            print_tables(opened)
    attempt(lambda: _read_image(random, opened.manifest))
    encoder = opened.prompt_encoder()
    for said in _TURNS:
        attempt(lambda said=said: encoder.encode([Turn("user", said, images=1)], [58]))  # type: ignore[misc]


def _read_image(random: Random, manifest: Manifest) -> None:
    """As the runtime does once it has held the manifest's numbers against the graphs."""
    image = Image.new("RGB", random.choice(((9, 5), (300, 40), (1, 70), (1, 201))))
    if manifest.assemble is None:
        return
    graph_facts._check_rows(manifest)
    read = reader_of(manifest.family).image(image, *manifest.encoder_input, random.random() < 0.7)
    assert read.assembly is not None
    info = manifest.assemble
    read.groups(info.rows, info.sources, info.per)
