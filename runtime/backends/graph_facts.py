"""What the manifest says of a graph, against what the graph itself says once it is loaded.

The manifest decides which buffers are bound and which ids are fed, and its own bytes are hashed by nothing: a wrong
number there would be a wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

from divprune_edge.errors import UserError
from divprune_edge.manifest import (
    MANIFEST,
    GraphInfo,
    LanguageInfo,
    Manifest,
    SegmentInfo,
    SelectorInfo,
    tile_input,
)
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.signals import ORIGINS
from divprune_edge.processing.anyres import most_tiles
from divprune_edge.processing.assembly import rows_of, rows_of_clip, sources_of
from divprune_edge.processing.patches import PIXELS, WINDOWS, most_of_clip, most_tokens

Shape: TypeAlias = "tuple[int | None, ...]"
"""None is a dimension that varies."""
Tensors: TypeAlias = "dict[str, tuple[str | None, Shape]]"
"""Name -> element type, as the manifest spells it (None where it is not known), and shape."""

_NO_ROWS = "no graph makes rows of them"
_TYPES = {
    "float": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "int32": "int32",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}


def check_session(manifest: Manifest, graph: GraphInfo, session: Any) -> None:
    """Hold a graph's entry and the manifest's numbers about it against an ``onnxruntime.InferenceSession``.

    Raises:
        UserError: a name, type or shape, K, layers, cache, vocabulary, embedding rows or context do not fit.
    """
    inputs, outputs = _of_session(session.get_inputs()), _of_session(session.get_outputs())
    _compare(graph, "input", {one.name: one for one in graph.inputs}, inputs)
    _compare(graph, "output", {one.name: one for one in graph.outputs}, outputs)
    _check_numbers(manifest, graph, inputs | outputs)
    if graph in manifest.language_model.graphs:
        _check_noted(manifest, graph, session.get_modelmeta().custom_metadata_map)


def check_plan(manifest: Manifest, graph: GraphInfo, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold a graph's entry and the manifest's numbers about it against an engine's inputs and outputs.

    Args:
        manifest: of the bundle.
        graph: that the engine was built from.
        shapes: of its inputs and outputs, -1 where they vary.

    Raises:
        UserError: a name or a fixed dimension does not fit.
    """
    said = {one.name: one for one in (*graph.inputs, *graph.outputs)}
    _compare_names(graph, "input or output", set(said), set(shapes))
    # What TensorRT infers may vary where the graph has a number.
    found: Tensors = {}
    for name, shape in shapes.items():
        entry = said[name].shape
        if len(shape) != len(entry):
            _refuse(
                graph,
                f"'{name}' has the shape {list(entry)}",
                f"it has {len(shape)} dimensions in its engine",
            )
        known = zip(shape, entry, strict=True)
        found[name] = (None, tuple(s if s >= 0 else e if isinstance(e, int) else None for s, e in known))
    _compare(graph, "tensor", said, found)
    _check_numbers(manifest, graph, found)


def _of_session(nodes: Any) -> Tensors:
    found: Tensors = {}
    for node in nodes:
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        found[node.name] = (_TYPES.get(kind, kind), shape)
    return found


def _compare(graph: GraphInfo, kind: str, said: Mapping[str, Any], found: Tensors) -> None:
    """Compare the entry's inputs or outputs with the graph's."""
    _compare_names(graph, kind, set(said), set(found))
    for name, entry in said.items():
        dtype, shape = found[name]
        if dtype is not None and dtype != entry.dtype:
            _refuse(graph, f"'{name}' is {entry.dtype}", f"it is {dtype}")
        fixed = tuple(size if isinstance(size, int) else None for size in entry.shape)
        if fixed != shape:
            _refuse(graph, f"'{name}' has the shape {list(entry.shape)}", f"it has {_text(shape)}")


def _compare_names(graph: GraphInfo, kind: str, said: set[str], found: set[str]) -> None:
    for name in sorted(said - found):
        _refuse(graph, f"there is an {kind} '{name}'", "the graph has none")
    for name in sorted(found - said):
        _refuse(graph, f"there is no {kind} '{name}'", "the graph has one")


def _check_numbers(manifest: Manifest, graph: GraphInfo, found: Tensors) -> None:
    """Compare the numbers that the runtime computes with."""
    for name, dtype, shape, what in _numbers(manifest, graph):
        if name not in found:
            _refuse(graph, what, f"the graph has no '{name}'")
        kind, there = found[name]
        if kind is not None and dtype is not None and kind != dtype:
            _refuse(graph, what, f"'{name}' is {kind}")
        if len(there) != len(shape) or any(s not in (None, t) for s, t in zip(shape, there, strict=True)):
            _refuse(graph, what, f"'{name}' has the shape {_text(there)}")
    if graph is manifest.vision_encoder:
        _check_rows(manifest)
    if graph in manifest.language_model.graphs:
        caches = [name for name in found if name.startswith("past_key_values.")]
        layers = graph.layers if isinstance(graph, (LanguageInfo, SegmentInfo)) else 0
        if len(caches) != 2 * layers:
            _refuse(graph, f"layers is {layers}", f"the graph has caches of {len(caches) / 2:g}")


def _check_rows(manifest: Manifest) -> None:
    """Compare what becomes of an image on the host with what makes rows of it, which the graphs do not show."""
    facts, rows, vision = manifest.preprocessing, manifest.assemble, manifest.vision_encoder
    tiling, patches = facts.tiling, facts.patches
    if rows is None:
        if tiling is not None or patches is not None:
            _refuse(
                vision, f"its images {'become patches' if tiling is None else 'are cut into tiles'}", _NO_ROWS
            )
        return
    clips, frames, of_clip = facts.clips, 0, (0, 0)
    pairs: tuple[tuple[GraphInfo, str, int | None, int], ...]
    if patches is not None:
        most, where = most_tokens(patches), f"at most {patches.max_pixels} pixels"
        if clips is not None:
            frames, of_clip = -(-clips.frames // clips.depth), most_of_clip(facts)
        pairs = (
            (vision, "tokens", vision.tokens, most),
            (rows, "rows", rows.rows, max(most, of_clip[rows.per != "image"])),
            (rows, "tiles", rows.tiles, max(frames, 1)),
            (rows, "sources", rows.sources, 1),
        )
    elif tiling is not None:
        where = "its grids of tiles"
        if clips is not None:
            frames, of_clip = clips.frames, rows_of_clip(tiling, clips.frames)
        pairs = (
            (vision, "tokens", vision.tokens, tiling.side**2),
            (vision, "image_height", vision.image_height, tiling.tile),
            (vision, "image_width", vision.image_width, tiling.tile),
            (rows, "tiles", rows.tiles, max(most_tiles(tiling), frames)),
            (rows, "sources", rows.sources, sources_of(tiling)),
            (rows, "rows", rows.rows, max(rows_of(tiling, rows.per), of_clip[rows.per != "image"])),
        )
    else:
        _refuse(rows, "it makes rows of tiles", "no images are cut into any")
    for graph, name, said, found in (*pairs, (rows, "frames", rows.frames, frames)):
        if said != found:
            _refuse(graph, f"{name} is {said}", f"{where} make it {found}")


def _numbers(manifest: Manifest, graph: GraphInfo) -> Iterator[tuple[str, str | None, Shape, str]]:
    """Yield name, element type and shape of a tensor, and what the manifest says that it follows from."""
    vision, tokens = manifest.vision_encoder, manifest.token_dtype
    if graph is vision:
        yield from _encoder_numbers(manifest)
    elif graph is (rows := manifest.assemble) and rows is not None:
        what = f"tokens is {vision.tokens}, width {vision.width} and token_dtype {tokens}"
        of_tile = None if vision.image_height is None else vision.tokens
        yield tile_input("visual_tokens"), tokens, (None, of_tile, vision.width), what
        what = f"rows is {rows.rows} and sources {rows.sources}"
        yield "rows", "int64", (None, rows.rows, rows.sources), what
        yield "visual_tokens", tokens, (None, rows.rows, vision.width), f"rows is {rows.rows}"
    elif isinstance(graph, SelectorInfo):
        what = f"the candidates are {manifest.candidates}, width is {vision.width} and token_dtype {tokens}"
        yield "visual_tokens", tokens, (None, manifest.candidates, vision.width), what
        what = f"candidates is {graph.candidates}"
        yield "valid", "bool", (None, graph.candidates), what
        what = f"keep is {graph.keep}"
        yield "kept_tokens", tokens, (None, graph.keep, vision.width), what
        yield "kept_indices", "int64", (None, graph.keep), what
    else:
        yield from _language_numbers(manifest, graph)


def _language_numbers(manifest: Manifest, graph: GraphInfo) -> Iterator[tuple[str, str | None, Shape, str]]:
    """Yield the same of the language model, or of one graph of a chain."""
    vision, language, tokens = manifest.vision_encoder, manifest.language_model, manifest.token_dtype
    at = language.graphs.index(graph)
    if at == 0:
        yield "input_ids", "int64", (None, None), "it is a language model"
        yield (
            "visual_tokens",
            tokens,
            (None, None, vision.width),
            f"width is {vision.width}, token_dtype {tokens}",
        )
    else:
        hidden = next(one for one in language.graphs[at - 1].outputs if one.name == "hidden_out")
        handed = tuple(size if isinstance(size, int) else None for size in hidden.shape)
        yield "hidden", hidden.dtype, handed, "the graph before it hands hidden states on"
    if at == len(language.graphs) - 1:
        yield "logits", "float32", (None, language.vocabulary), f"vocabulary is {language.vocabulary}"
        if language.says_next:
            yield "next_id", "int64", (None,), "it says the next id"
    for name in DIALECTS[language.dialect].inputs:
        # Of any rank: what matters is which there are.
        shape = next((one.shape for one in graph.inputs if one.name == name), ())
        yield name, None, (None,) * len(shape), f"its dialect is {language.dialect}"
    for group in language.groups if graph is language else language.groups[at : at + 1]:
        cache = (None, language.kv_heads, group.capacity, language.head_dim)
        what = (
            f"layers is {group.layers}, kv_heads {language.kv_heads}, head_dim {language.head_dim}, capacity "
            f"{group.capacity} and cache_dtype {language.cache_dtype}"
        )
        for name in group.cache_tensors:
            yield f"past_key_values.{name}", language.cache_dtype, cache, what


def _encoder_numbers(manifest: Manifest) -> Iterator[tuple[str, str | None, Shape, str]]:
    """Yield the same of the vision encoder."""
    vision, tokens = manifest.vision_encoder, manifest.token_dtype
    of_tile: int | None = vision.tokens
    patches = manifest.preprocessing.patches
    if patches is not None:
        values = 3 * patches.temporal * patches.patch**2
        yield PIXELS, "uint8", (None, None, values), f"patches have {values} values"
        if patches.window is not None:
            size = (patches.window * patches.merge) ** 2
            yield WINDOWS, "int64", (None, size), f"windows have {size} patches"
    if vision.image_height is None:
        of_tile = None
    else:
        pixels = (None, vision.image_height, vision.image_width, 3)
        yield PIXELS, "uint8", pixels, f"images are {vision.image_width} x {vision.image_height}"
    what = f"tokens is {vision.tokens}, width {vision.width} and token_dtype {tokens}"
    yield "visual_tokens", tokens, (None, of_tile, vision.width), what
    if vision.uncut is not None:
        yield ORIGINS, "int64", (None, of_tile), f"tokens is {vision.tokens}"


def _check_noted(manifest: Manifest, graph: GraphInfo, noted: Mapping[str, str]) -> None:
    """Compare what no input or output shows, and the export wrote into the graph; older exports did not."""
    language = manifest.language_model
    forbidden = str(manifest.prompt.forbidden_ids.entries())
    for name, said in (
        ("embedding_rows", language.embedding_rows),
        ("context", language.context),
        ("forbidden_ids", forbidden),
    ):
        found = noted.get(f"divprune_edge.{name}")
        if found is not None and found != str(said):
            _refuse(graph, f"{name} is {said}", f"the graph has {found}")


def _refuse(graph: GraphInfo, said: str, found: str) -> NoReturn:
    raise UserError(
        f"{MANIFEST} says of '{graph.file}' that {said}, but {found}: {MANIFEST} was changed or belongs to another "
        "bundle, export the bundle again.",
        code="manifest-does-not-fit",
    )


def _text(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
