"""Bundles for the tests of engines: the demo's, and made-up ones of which nothing can be built."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from exporting import export, plan_of

from divprune_edge.export.add_selector import add_selector
from divprune_edge.manifest import (
    FileInfo,
    LanguageInfo,
    Manifest,
    Preprocessing,
    Prompt,
    SelectorInfo,
    Source,
    TensorInfo,
    Verification,
    VisionInfo,
)
from divprune_edge.models.demo import CHECKPOINT

TOKENS, WIDTH, CAPACITY, CONTEXT, LAYERS = 576, 64, 512, 2048, 2
KV_HEADS, HEAD_DIM, VOCABULARY = 2, 16, 100


def tensor(name: str, dtype: Any, *shape: int | str) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def language_inputs(dialect: str) -> tuple[TensorInfo, ...]:
    own = {
        "static": (
            tensor("attention_mask", "bool", "batch", 1, "seq", CAPACITY),
            tensor("write_indices", "int64", "batch"),
        ),
        "decomposed": (
            tensor("cache_mask", "bool", "batch", 1, 1, CAPACITY),
            tensor("new_mask", "bool", "batch", 1, "seq", "seq"),
        ),
        "portable": (tensor("attention_mask", "bool", "batch", "total"),),
    }[dialect]
    rows: int | str = "past" if dialect == "portable" else CAPACITY
    cache = [
        tensor(f"past_key_values.{layer}.{part}", "float16", "batch", KV_HEADS, rows, HEAD_DIM)
        for layer in range(LAYERS)
        for part in ("key", "value")
    ]
    return (
        tensor("input_ids", "int64", "batch", "seq"),
        tensor("visual_tokens", "float16", "batch", "visual", WIDTH),
        tensor("logits_index", "int64", "batch"),
        tensor("position_ids", "int64", "batch", "seq"),
        *own,
        *cache,
    )


def selector(name: str, keep: int, *, plugin: bool, signals: tuple[str, ...] = ()) -> SelectorInfo:
    file = f"selectors/{name}-{keep}.onnx"
    return SelectorInfo(
        file=file,
        inputs=(
            tensor("visual_tokens", "float16", "batch", TOKENS, WIDTH),
            tensor("valid", "bool", "batch", TOKENS),
            *(tensor(signal, "float32", "batch", TOKENS) for signal in signals),
        ),
        outputs=(
            tensor("kept_tokens", "float16", "batch", keep, WIDTH),
            tensor("kept_indices", "int64", "batch", keep),
        ),
        id=f"{name}-{keep}",
        name=name,
        keep=keep,
        candidates=TOKENS,
        stripped=f"selectors/stripped/{name}-{keep}.onnx" if plugin else None,
        signals=signals,
    )


SELECTORS = (
    selector("divprune", 58, plugin=True),
    selector("divprune", 144, plugin=True),
    selector("uniform", 58, plugin=False),
    selector("vtc_cls", 29, plugin=False, signals=("cls_attention",)),
)


def export_demo(folder: Path, dialect: str) -> Path:
    """Export the demo checkpoint with four selectors and return the folder."""
    plan = plan_of(CHECKPOINT, 58, dialect=dialect, capacity=704, precision="fp16", signals="all")
    export(plan, folder)
    for name, keep in (("divprune", 144), ("uniform", 58), ("vtc-cls", 29)):
        add_selector(folder, name, keep=keep, prune=None, force=False, verify=False)
    return folder


def make_bundle(folder: Path, dialect: str = "decomposed", **changes: Any) -> Path:
    """Write a manifest over files that are none and return the folder; ``changes`` are fields of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = VisionInfo(
        file="vision_encoder.onnx",
        inputs=(tensor("pixels", "uint8", "tiles", 336, 336, 3),),
        outputs=(
            tensor("visual_tokens", "float16", "tiles", TOKENS, WIDTH),
            tensor("cls_attention", "float32", "tiles", TOKENS),
        ),
        tokens=TOKENS,
        width=WIDTH,
        image_height=336,
        image_width=336,
        precision="fp16",
    )
    language = LanguageInfo(
        file="language_model.onnx",
        data=("language_model.data",),
        inputs=language_inputs(dialect),
        outputs=(tensor("logits", "float32", "batch", VOCABULARY),),
        precision="fp16",
        dialect=dialect,  # type: ignore[arg-type]
        layers=LAYERS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        cache_dtype="float16",
        embedding_rows=VOCABULARY,
        vocabulary=VOCABULARY,
        context=CONTEXT,
        capacity=None if dialect == "portable" else CAPACITY,
    )
    selectors = changes.pop("selectors", SELECTORS)
    stripped = [entry.stripped for entry in selectors if entry.stripped]
    files = [vision.file, language.file, *language.data, *(entry.file for entry in selectors), *stripped]
    for name in (*files, "tokenizer.json", "chat_template.jinja"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    fields: dict[str, Any] = {
        "family": "llava",
        "precision": "fp16",
        "token_dtype": "float16",
        "vision_encoder": vision,
        "selectors": selectors,
        "default_selector": "divprune-58",
        "language_model": language,
        "preprocessing": Preprocessing(
            resize="none", resample=3, rescale_factor=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        "prompt": Prompt(
            tokenizer="tokenizer.json",
            chat_template="chat_template.jinja",
            image_token="<image>",
            image_token_id=99,
            bos_token=None,
            eos_token=None,
            pad_token=None,
            unk_token=None,
            stop_ids=(1,),
            forbidden_ids=(99,),
        ),
        "source": Source(model="tiny/llava", revision=None, licence=None, config_sha256="0" * 64),
        "verification": Verification(status="not verified", reason="a test"),
        "tools": {},
        **changes,
    }
    write_manifest(folder, Manifest(files=files_of(folder), **fields))
    return folder


def files_of(folder: Path) -> dict[str, FileInfo]:
    """Return what ``files`` of a manifest states of the graphs and the text files in a folder."""
    return {
        path.relative_to(folder).as_posix(): FileInfo(
            size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and "engines" not in path.parts
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


def refresh(folder: Path, manifest: Manifest, **changes: Any) -> None:
    """Write the manifest anew after files or facts of a bundle changed."""
    write_manifest(folder, manifest.model_copy(update={"files": files_of(folder), **changes}))
