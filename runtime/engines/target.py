"""Whether the GPUs to build for, a bundle and a target of ``--target`` fit together, before anything is built."""

from __future__ import annotations

from pathlib import Path

from divprune_edge.errors import UserError, either
from divprune_edge.manifest import Manifest
from divprune_edge.models.dialects import DIALECTS, FOR_ANY_TENSORRT, FOR_TENSORRT
from divprune_edge.models.targets import Target, find_target
from divprune_edge.models.tensorrt import TENSORRT, Edition, parse_version
from divprune_edge.runtime.engines.facts import DeviceFacts, device_facts, facts_ahead
from divprune_edge.runtime.engines.fingerprint import sm_names


def facts_to_build_for(manifest: Manifest, bundle: Path, asked: str | None) -> DeviceFacts:
    """Return the facts of the GPUs to build for: those of a target that need not be here, or the one that is.

    Raises:
        UserError: they are not what was asked for, or what the bundle was made for; or something is not installed.
    """
    targets = [
        (find_target(name), origin)
        for name, origin in ((asked, f"--target {asked}"), (manifest.target, f"The target of '{bundle}'"))
        if name is not None
    ]
    # What a sentence can say without any TensorRT comes before one is missed.
    for target, origin in targets:
        if target.tensorrt is None:
            raise UserError(
                f"{origin} is {target.title}, which does not run TensorRT: {_export(manifest)}.",
                code="target-without-tensorrt",
            )
    edition = (targets[0][0].edition if targets else None) or TENSORRT
    if targets and targets[-1][0].edition is not edition:
        made_for, _ = targets[-1]
        raise UserError(
            f"The target of '{bundle}' is {made_for.title} ({made_for.software}), but engines for "
            f"{targets[0][0].title} ({targets[0][0].software}) are asked for: export for it with "
            f"'{manifest.source.export_command} --target {asked}'.",
            code="target-mismatch",
        )
    facts = facts_ahead(edition, targets[0][0].sms) if edition.ahead_of_time else device_facts(edition)
    for target, origin in targets:
        _check_device(target, origin, manifest, facts)
    return facts


def check_backend(manifest: Manifest, bundle: Path, edition: Edition) -> None:
    """Check that a bundle that was made for a target is run by that target's edition of TensorRT.

    Raises:
        UserError: it is not.
    """
    target = None if manifest.target is None else find_target(manifest.target)
    if target is not None and target.edition is not None and target.edition is not edition:
        raise UserError(
            f"'{bundle}' was made for {target.title}, which {target.edition.title} serves: use --backend "
            f"{target.backend}.",
            code="backend-with-target",
        )


def check_dialect(manifest: Manifest, bundle: Path) -> None:
    """Check that the language model is written in a dialect for TensorRT.

    Raises:
        UserError: it is not; the sentence has the export that makes one that is.
    """
    dialect = manifest.language_model.dialect
    if dialect not in FOR_TENSORRT:
        oldest = {name: DIALECTS[name].tensorrt[TENSORRT.name] for name in FOR_TENSORRT}
        needed = either(f"'{name}' (TensorRT {at[0]}.{at[1]} and newer)" for name, at in oldest.items())
        raise UserError(
            f"'{bundle}' has its language model in dialect '{dialect}', but TensorRT needs {needed}: export it with "
            f"'{manifest.source.export_command} --target NAME' or '--dialect {FOR_ANY_TENSORRT}'.",
            code="dialect-not-for-tensorrt",
        )


def check_version(manifest: Manifest, bundle: Path, version: str, edition: Edition = TENSORRT) -> None:
    """Check that this TensorRT is new enough for the language model's dialect.

    Raises:
        UserError: it is not.
    """
    dialect = manifest.language_model.dialect
    facts = DIALECTS[dialect]
    if not facts.taken_by(edition.name, version):
        oldest = facts.tensorrt[edition.name]
        raise UserError(
            f"'{bundle}' has its language model in dialect '{dialect}', which needs {edition.title} {oldest[0]}."
            f"{oldest[1]}, but this is {edition.title} {version}: export it with '{manifest.source.export_command} "
            f"--dialect {FOR_ANY_TENSORRT}'.",
            code="dialect-needs-newer-tensorrt",
        )


def _check_device(target: Target, origin: str, manifest: Manifest, facts: DeviceFacts) -> None:
    same_gpus = set(facts.sms) <= set(target.sms)
    same_version = parse_version(target.tensorrt or "0.0") == parse_version(facts.tensorrt)
    if same_gpus and same_version:
        return
    asked_for = f"{sm_names(facts.sms)} with {facts.library}"
    which = f"{origin} is {target.title} ({sm_names(target.sms)}, {target.software})"
    if not facts.edition.ahead_of_time:
        raise UserError(
            f"{which}, but this device is {asked_for}: build on the target itself, or {_export(manifest)}.",
            code="target-mismatch",
        )
    remedy = (
        f"install it with 'pip install \"{facts.edition.package}=={target.tensorrt}.*\"'"
        if same_gpus
        else _export(manifest)
    )
    raise UserError(f"{which}, but engines for {asked_for} are asked for: {remedy}.", code="target-mismatch")


def _export(manifest: Manifest) -> str:
    return f"export for this device with '{manifest.source.export_command} --target NAME'"
