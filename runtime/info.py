"""What ``python -m runtime info`` shows: a bundle's graphs, budgets, sizes and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divprune_edge.console import literal
from divprune_edge.manifest import (
    DEFAULT_TEMPLATE,
    MANIFEST,
    UNPRUNED,
    Clips,
    GraphInfo,
    LanguageInfo,
    Manifest,
    Patches,
    Prompt,
    ScheduleInfo,
    TensorInfo,
)
from divprune_edge.runtime.bundle import Bundle

CACHES = ("past_key_values", "present", "new_key_values")


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest without the hashes, plus sizes in bytes."""
    manifest = bundle.manifest
    facts = manifest.model_dump(mode="json", exclude={"files"})
    facts["path"] = str(bundle.path)
    facts["sizes"] = {name: info.size for name, info in manifest.files.items()}
    facts["total_size"] = _total(bundle)
    return facts


def print_tables(bundle: Bundle) -> None:
    """Print the bundle as tables on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    manifest = bundle.manifest
    console = Console()
    console.print(f"[bold]{literal(bundle.path)}[/bold]", highlight=False, soft_wrap=True)

    about = Table(show_header=False, box=None, pad_edge=False)
    source, clips = manifest.source, manifest.preprocessing.clips
    language = manifest.language_model
    lines = {
        "family": manifest.family,
        "source": source.model + (f" @ {source.revision}" if source.revision else ""),
        "licence": source.licence or "not stated",
        "precision": f"{manifest.precision} (tokens {manifest.token_dtype}, cache {language.cache_dtype})",
        "dialect": language.dialect,
        **({} if language.schedule is None else {"schedule": _schedule(language.schedule)}),
        "images": _images(bundle),
        "context": f"{language.context} tokens{_cache(language)}, vocabulary {language.vocabulary}",
        **({"clips": _clips(manifest, clips)} if clips is not None else {}),
        "chat template": _template(manifest.prompt),
        "ends an answer": _ends(bundle),
        "decoding": _decoding(manifest.prompt),
        "verification": _verification(bundle),
        "tools": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
        "total size": _bytes(_total(bundle)),
    }
    for name, value in lines.items():
        about.add_row(f"[dim]{name}[/dim]", literal(value))
    console.print(about)

    style: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False, "padding": 0}
    graphs = Table(
        "graph", Column("input / output", no_wrap=True), "type", "shape", "size", title="Graphs", **style
    )
    shown: list[tuple[str, GraphInfo]] = [
        ("vision_encoder", manifest.vision_encoder),
        *([("assemble", manifest.assemble)] if manifest.assemble else []),
        *((s.id, s) for s in manifest.selectors),
        *((Path(graph.file).stem, graph) for graph in language.graphs),
    ]
    for name, graph in shown:
        rows = [*(("→", t) for t in graph.inputs), *(("←", t) for t in graph.outputs)]
        for i, (arrow, tensor) in enumerate(_without_cache_layers(rows)):
            size = _bytes(_size(bundle, graph)) if i == 0 else ""
            shape = "[" + ", ".join(str(d) for d in tensor.shape) + "]"
            graphs.add_row(
                literal(name) if i == 0 else "",
                f"{arrow} {literal(tensor.name)}",
                tensor.dtype,
                literal(shape),
                size,
            )
    console.print(graphs)

    tokens = manifest.candidates
    selectors = Table("selector", "keeps", "share", "parameters", title="Selectors", **style)
    for s in manifest.selectors:
        default = " (default)" if s.id == manifest.default_selector else ""
        parameters = ", ".join(f"{key}={value}" for key, value in s.parameters.items())
        selectors.add_row(
            literal(s.id) + default,
            f"{s.keep} of {s.candidates}",
            f"{s.keep / s.candidates:.1%}",
            literal(parameters),
        )
    default = " (default)" if manifest.default_selector == UNPRUNED else ""
    selectors.add_row(UNPRUNED + default, f"{tokens} of {tokens}", "100.0%", "")
    console.print(selectors)
    if language.schedule is not None:
        for s in manifest.selectors:
            if spared := language.schedule.spared(manifest.visual_tokens(s)):
                console.print(f"{s.id}: {spared}.", markup=False, highlight=False, soft_wrap=True)


def _schedule(schedule: ScheduleInfo) -> str:
    """Return what leaves inside the language model, and how positions go on."""
    positions = (
        "positions counted anew" if schedule.numbering == "compact" else "tokens stay at their positions"
    )
    return f"{schedule}, where an image has more; {positions}"


def _images(bundle: Bundle) -> str:
    """Return what an image becomes: visual tokens of one tile, or those of several."""
    manifest = bundle.manifest
    patches, height = manifest.preprocessing.patches, manifest.vision_encoder.image_height
    if patches is not None:
        return f"up to {manifest.vision_encoder.tokens} visual tokens of an image of any size, {_resized(patches)}"
    rows, tiling = manifest.assemble, manifest.preprocessing.tiling
    size = f"{manifest.vision_encoder.image_width} x {height} pixels"
    if rows is None or tiling is None:
        return f"{manifest.candidates} visual tokens of {size}"
    each = f" of each tile, a total of up to {manifest.visual_tokens(None)}" if rows.per == "tile" else ""
    return (
        f"up to {rows.rows} visual tokens{each}, of up to {rows.tiles} tiles of {size} in {len(tiling.grids)} grids; "
        f"picked from each {rows.per}"
    )


def _clips(manifest: Manifest, clips: Clips) -> str:
    """Return how much of a clip is looked at, and what a selector picks from."""
    per = "frame" if manifest.assemble is not None and manifest.assemble.per == "frame" else "clip"
    each = f"each {clips.depth} frames" if per == "frame" and clips.depth > 1 else f"each {per}"
    within = ", resized as images are, to one of the sizes that make no more tokens than its processor allows"
    patches = manifest.preprocessing.patches
    return (
        f"at most {clips.frames} frames of each{within if patches is not None and patches.sizes else ''}; picked from "
        f"{each}, of up to {manifest.candidates} visual tokens"
    )


def _resized(patches: Patches) -> str:
    """Return what an image of any size is resized to."""
    if not patches.sizes:
        return f"resized to {patches.min_pixels} to {patches.max_pixels} pixels, in steps of {patches.factor}"
    sizes = ", ".join(f"{width} x {height}" for height, width in patches.sizes)
    return f"resized to the nearest of {sizes} pixels, by aspect ratio and area"


def _template(prompt: Prompt) -> str:
    source = prompt.template_source or "not recorded (an older export)"
    note = ": the checkpoint brought none" if source == DEFAULT_TEMPLATE else ""
    return source + note


def _ends(bundle: Bundle) -> str:
    from divprune_edge.processing.tokenizer import PromptTokenizer

    prompt = bundle.manifest.prompt
    tokenizer = PromptTokenizer(bundle.file(prompt.tokenizer), prompt.bos_token).model
    return ", ".join(f"{tokenizer.id_to_token(i) or '?'} ({i})" for i in prompt.stop_ids)


def _decoding(prompt: Prompt) -> str:
    stated = prompt.generation
    return (
        f"{stated} (with --checkpoint-defaults)"
        if stated is not None
        else "greedy; the checkpoint says nothing"
    )


def _cache(language: LanguageInfo) -> str:
    if language.capacity is None:
        return ""
    return f", {', '.join(str(group.capacity) for group in language.groups)} in the cache"


def _without_cache_layers(rows: list[tuple[str, TensorInfo]]) -> list[tuple[str, TensorInfo]]:
    """Show a cache's first layer in the place of all of them."""
    shown = []
    first: dict[str, str] = {}
    for arrow, tensor in rows:
        stem, dot, rest = tensor.name.partition(".")
        layer, _, part = rest.partition(".")
        if not dot or stem not in CACHES:
            shown.append((arrow, tensor))
        elif layer == first.setdefault(f"{stem}.{part}", layer):
            shown.append((arrow, tensor.model_copy(update={"name": f"{stem}.*.{part}"})))
    return shown


def _verification(bundle: Bundle) -> str:
    result = bundle.manifest.verification
    if result.status == "verified":
        passed = sum(check.passed for check in result.checks)
        return f"verified against PyTorch ({passed} of {len(result.checks)} checks passed)"
    return "not verified" + (f": {result.reason}" if result.reason else "")


def _size(bundle: Bundle, graph: GraphInfo) -> int:
    return sum(bundle.manifest.files[name].size for name in (graph.file, *graph.data))


def _total(bundle: Bundle) -> int:
    manifest_size = bundle.file(MANIFEST).stat().st_size
    return manifest_size + sum(info.size for info in bundle.manifest.files.values())


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
