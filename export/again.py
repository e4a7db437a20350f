"""The arguments of an export, read from the bundle that it made, to do it again with something else beside them."""

from __future__ import annotations

from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import VISUAL_TOKENS, Manifest
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.families import family_named
from divprune_edge.models.signals import NONE, ORIGINS

Arguments = dict[str, Any]
"""Of :func:`~divprune_edge.export.planning.plan_export`."""

_MEASURED = (
    "selector",
    "keep",
    "prune",
    "numbering",
    "per",
    "frames",
    "resolution",
    "max_pixels",
    "encoder_cut",
)


def arguments_of(manifest: Manifest, bundle: str) -> Arguments:
    """Return the arguments that make this bundle of its checkpoint, its schedule left out.

    A bundle whose default is not to prune keeps all visual tokens.

    Raises:
        UserError: patches leave inside the vision encoder, but an older export did not note where.
    """
    vision, language = manifest.vision_encoder, manifest.language_model
    if vision.uncut is not None and vision.cut is None:
        raise UserError(
            f"'{bundle}' was exported with --encoder-cut, and does not say where the cut is: export it again.",
            code="encoder-cut-unknown",
        )
    default = next((one for one in manifest.selectors if one.id == manifest.default_selector), None)
    name, keep = ("divprune", manifest.candidates) if default is None else (default.name, default.keep)
    known = {VISUAL_TOKENS, ORIGINS, *(default.signals if default else ())}
    return {
        "selector": name,
        "keep": keep,
        "prune": None,
        **_images(manifest),
        "target": manifest.target,
        "dialect": language.dialect,
        "precision": manifest.precision,
        "block_size": manifest.block_size,
        "capacity": language.capacity,
        "greedy": language.says_next,
        "signals": ",".join(one.name for one in vision.outputs if one.name not in known) or NONE,
    }


def _images(manifest: Manifest) -> Arguments:
    """Return how images become visual tokens, and these positions."""
    preprocessing, cut = manifest.preprocessing, manifest.vision_encoder.cut
    found: Arguments = {"numbering": _numbering(manifest)}
    if manifest.assemble is not None:
        found["per"] = manifest.assemble.per
    if preprocessing.clips is not None:
        found["frames"] = preprocessing.clips.frames
    if preprocessing.patches is not None and preprocessing.patches.sizes:
        sizes = preprocessing.patches.sizes
        found["resolution"] = ",".join(f"{width}x{height}" for height, width in sizes)
    elif preprocessing.patches is not None:
        found["max_pixels"] = preprocessing.patches.max_pixels
    if cut is not None:
        found["encoder_cut"] = ":".join(map(str, cut))
    return found


def _numbering(manifest: Manifest) -> str | None:
    """Return ``--positions``, None where it need not be given: given, it holds behind a schedule's cuts as well."""
    if manifest.numbering != family_named(manifest.family).numbering:
        return manifest.numbering
    language = manifest.language_model
    return None if DIALECTS[language.dialect].takes_positions or language.axes > 1 else "compact"


def of_measurement(arguments: Arguments) -> Arguments:
    """Return those of them that decide what the language model reads: not how it is written."""
    return {name: value for name, value in arguments.items() if name in _MEASURED}


def as_options(arguments: Arguments) -> str:
    """Return the arguments as options of `llava`; those that say what it does anyway are left out."""
    names = {"numbering": "--positions", "greedy": "--greedy"}
    usual: Arguments = {"signals": NONE, "per": "image", "greedy": False}
    if arguments.get("target") is None:
        usual |= {"dialect": "portable", "precision": "fp32"}
    parts = []
    for name, value in arguments.items():
        if value is None or value == usual.get(name):
            continue
        option = names.get(name, f"--{name.replace('_', '-')}")
        parts.append(f"--per-{value}" if name == "per" else option if value is True else f"{option} {value}")
    return " ".join(parts)
