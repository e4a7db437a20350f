"""What TensorRT-RTX's answers mean for a bundle, and what is known of its targets without asking it."""

from __future__ import annotations

from collections.abc import Iterator

from divprune_edge.export.check.asked import RtxAnswers
from divprune_edge.export.check.findings import Finding
from divprune_edge.export.check.host import refused_precisions
from divprune_edge.hints import install
from divprune_edge.manifest import Manifest
from divprune_edge.models.dialects import FOR_TENSORRT
from divprune_edge.models.targets import Target

INSTALL = install("rtx")


def answer_findings(asked: RtxAnswers) -> list[Finding]:
    """Return its refusals."""
    refusals = [(answer.file, answer.words) for answer in asked.answers if answer.words is not None]
    return [Finding(file, "error", asked.library, "", words.rstrip(".")) for file, words in refusals]


def unknown_findings(target: Target) -> list[Finding]:
    """Return a warning for those targets of which nothing is known without asking it."""
    edition = target.edition
    if edition is None or edition.listed:
        return []
    message = f"nothing is known of what {edition.title} takes where it is not installed: {INSTALL}"
    return [Finding("bundle", "warning", "not asked", "", message)]


def rtx_findings(manifest: Manifest) -> list[Finding]:
    """Return what is against a bundle on a card with TensorRT-RTX before that is asked."""
    return list(_unfit(manifest))


def _unfit(manifest: Manifest) -> Iterator[Finding]:
    language = manifest.language_model
    if language.dialect not in FOR_TENSORRT:
        message = f"dialect {language.dialect} is not for TensorRT: export with --dialect {FOR_TENSORRT[0]}"
        yield Finding(language.file, "error", "dialect", "", message)
    yield from refused_precisions(manifest, "tensorrt-rtx")
