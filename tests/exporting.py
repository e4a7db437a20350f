"""What the tests of the export share: an export in one call, and the bundle's graphs run by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.planning import plan_export
from divprune_edge.export.seen import Seen
from divprune_edge.export.seen import see as see_image
from divprune_edge.export.verify import verify_bundle
from divprune_edge.export.verify.bundle import bytes_needed
from divprune_edge.manifest import Manifest, Verification


class Silent:
    """A reporter that shows nothing; ``on_weight`` is called with the name of every weight."""

    def __init__(self, on_weight: Callable[[str], None] = lambda name: None) -> None:
        self._on_weight = on_weight

    @contextmanager
    def stage(self, title: str, weights: int = 0) -> Iterator[Callable[[str], None]]:
        yield self._on_weight


def unverified(plan: ExportPlan, folder: Path) -> Verification:
    return Verification(status="not verified", reason="a test")


def plan_of(folder: Path, keep: int | None = 9, **options: Any) -> ExportPlan:
    """Return the plan of a checkpoint folder."""
    checkpoint = Checkpoint(folder, folder.name)
    asked = {"selector": "divprune", "prune": None, "precision": "fp32", **options}
    return plan_export(checkpoint, keep=keep, **asked)


@dataclass(frozen=True)
class Bundle:
    """An exported bundle and what it was made from."""

    plan: ExportPlan
    folder: Path
    manifest: Manifest

    @property
    def rows(self) -> int:
        """V of the token table."""
        return self.manifest.language_model.embedding_rows

    def session(self, file: str) -> Any:
        return open_session(self.folder / file)


def export(plan: ExportPlan, folder: Path) -> Bundle:
    """Export without verification."""
    return Bundle(plan, folder, export_bundle(plan, folder, force=False, verify=unverified, report=Silent()))


def open_session(source: Path | bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    model = str(source) if isinstance(source, Path) else source
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_with(session: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Run a graph on zeros of these shapes, masks open."""
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    types |= {"tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}
    feed = {}
    for one in session.get_inputs():
        dtype = types[one.type]
        feed[one.name] = (np.ones if dtype == np.bool_ else np.zeros)(shapes[one.name], dtype)
    assert all(output is not None for output in session.run(None, feed))


class Language:
    """The language model of a bundle, fed by hand."""

    def __init__(self, bundle: Bundle) -> None:
        self.info = bundle.manifest.language_model
        self.session = bundle.session(self.info.file)
        self.dtype = np.dtype(self.info.cache_dtype)
        self.token_dtype = np.dtype(bundle.manifest.token_dtype)

    def empty(self, batch: int = 1) -> list[Any]:
        shape = (batch, self.info.kv_heads, 0, self.info.head_dim)
        return [np.zeros(shape, self.dtype) for _ in range(2 * self.info.layers)]

    def step(
        self,
        ids: Any,
        visual: Any,
        cache: list[Any],
        *,
        mask: Any = None,
        positions: Any = None,
        index: Any = None,
    ) -> tuple[Any, list[Any]]:
        """Feed ids [batch, seq]; return logits [batch, V] and the cache. Defaults are those of one sequence."""
        ids = np.asarray(ids, dtype=np.int64)
        batch, seq = ids.shape
        past = cache[0].shape[2]
        feed = {
            "input_ids": ids,
            "visual_tokens": np.asarray(visual, self.token_dtype),
            "logits_index": np.full(batch, seq - 1) if index is None else np.asarray(index, dtype=np.int64),
            "attention_mask": np.ones((batch, past + seq), bool) if mask is None else mask,
            "position_ids": np.tile(np.arange(past, past + seq), (batch, 1))
            if positions is None
            else positions,
        }
        parts = [f"{i}.{part}" for i in range(self.info.layers) for part in ("key", "value")]
        feed |= {f"past_key_values.{part}": value for part, value in zip(parts, cache, strict=True)}
        logits, *cache = self.session.run(["logits", *(f"present.{part}" for part in parts)], feed)
        return logits, cache

    def chunks(
        self, ids: Sequence[int], visual: Any, cuts: Sequence[int], places: Any = None
    ) -> tuple[Any, list[Any]]:
        """Prefill one sequence cut before the columns ``cuts``; ``places`` int64 [3, ids or more] are its positions."""
        cache = self.empty()
        for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            logits, cache = self.step([ids[begin:end]], visual, cache, positions=_part(places, begin, end))
        return logits, cache

    def greedy(
        self, ids: Sequence[int], visual: Any, steps: int, places: Any = None
    ) -> tuple[list[int], Any]:
        """Return the greedy tokens and the logits [steps, V] that chose them."""
        logits, cache = self.chunks(ids, visual, [], places)
        tokens, history = [], []
        for at in range(len(ids), len(ids) + steps):
            history.append(logits[0])
            tokens.append(int(logits[0].argmax()))
            logits, cache = self.step([tokens[-1:]], visual, cache, positions=_part(places, at, at + 1))
        return tokens, np.stack(history)


def _part(places: Any, begin: int, end: int) -> Any:
    return None if places is None else places[:, None, begin:end]


def images(bundle: Bundle, count: int = 1, seed: int = 3) -> Any:
    """Return random uint8 [count, H, W, 3]."""
    size = bundle.manifest.vision_encoder.image_height
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def see(bundle: Bundle, pixels: Any) -> Any:
    """Return the visual tokens [count, N, D]."""
    return bundle.session(bundle.manifest.vision_encoder.file).run(None, {"pixels": pixels})[0]


def select(bundle: Bundle, tokens: Any, valid: Any = None) -> tuple[Any, Any]:
    """Return (kept tokens, kept indices) of the bundle's first selector."""
    feed = {"visual_tokens": tokens, "valid": np.ones(tokens.shape[:2], bool) if valid is None else valid}
    kept, indices = bundle.session(bundle.manifest.selectors[0].file).run(None, feed)
    return kept, indices


def look(bundle: Bundle, image: Image.Image, signals: Sequence[str] = ()) -> Seen:
    """Return what the graphs make of an image that is its prompt's only one."""
    info, assemble = bundle.manifest.vision_encoder, bundle.manifest.assemble
    read = bundle.plan.family.reader.image(image, *bundle.manifest.encoder_input, True)
    rows = bundle.session(assemble.file) if assemble is not None else None
    return see_image(bundle.plan, bundle.session(info.file), rows, read, signals)


def keep(bundle: Bundle, seen: Seen) -> Any:
    """Return the tokens [k, D] of an image that the bundle's first selector keeps, all where there are no more."""
    return keep_indices(bundle, seen)[0]


def keep_indices(bundle: Bundle, seen: Seen) -> tuple[Any, Any]:
    """Return these, and which of the image's rows they are."""
    tokens, valid = seen.tokens, seen.groups.valid
    assert len(tokens) == 1
    if valid.sum() <= bundle.manifest.selectors[0].keep:
        return tokens[valid], np.flatnonzero(valid)
    kept, indices = select(bundle, tokens, valid)
    return kept[0], indices[0]


def close(found: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    """Whether ``max|difference| <= tolerance * max(1, max|wanted|)``."""
    return bool(np.abs(found - wanted).max() <= tolerance * max(1.0, float(np.abs(wanted).max())))


def failures(plan: ExportPlan, folder: Path, *, layers: int | None = None) -> set[str]:
    """Verify a bundle and return ``stage: name`` of every check that failed.

    With ``layers``, memory is granted for a run of only so many decoder layers.
    """
    memory = None if layers is None else bytes_needed(plan, layers)
    result = verify_bundle(plan, folder, lambda line: None, memory=memory)
    assert result.language_layers == layers
    return {f"{check.stage}: {check.name}" for check in result.checks if not check.passed}
