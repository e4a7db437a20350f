"""Whether this device, a bundle and a target of ``--target`` fit together, before anything is built."""

from __future__ import annotations

from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import Dialect, Manifest
from divprune_edge.models.targets import Target, find_target
from divprune_edge.runtime.engines.facts import DeviceFacts

OLDEST: dict[Dialect, tuple[int, int]] = {"static": (10, 15), "decomposed": (10, 0)}
"""The dialects that TensorRT can build, and the version from which on."""


def check_dialect(manifest: Manifest, bundle: Path) -> None:
    """Check that the language model is written in a dialect for TensorRT.

    Raises:
        UserError: it is not; the sentence has the export that makes one that is.
    """
    dialect = manifest.language_model.dialect
    if dialect not in OLDEST:
        raise UserError(
            f"'{bundle}' has its language model in dialect '{dialect}', but TensorRT needs 'static' (TensorRT 10.15 "
            f"and newer) or 'decomposed': export it with '{manifest.source.export_command} --target NAME' or "
            "'--dialect decomposed'."
        )


def check_version(manifest: Manifest, bundle: Path, tensorrt: str) -> None:
    """Check that this TensorRT is new enough for the language model's dialect.

    Raises:
        UserError: it is not.
    """
    dialect = manifest.language_model.dialect
    oldest = OLDEST[dialect]
    if _version(tensorrt) < oldest:
        raise UserError(
            f"'{bundle}' has its language model in dialect '{dialect}', which needs TensorRT {oldest[0]}.{oldest[1]}, "
            f"but this is TensorRT {tensorrt}: export it with '{manifest.source.export_command} --dialect "
            "decomposed'."
        )


def check_target(manifest: Manifest, bundle: Path, asked: str | None, device: DeviceFacts) -> None:
    """Check this device against the target that was asked for, and against the one that the bundle was made for.

    Raises:
        UserError: GPU or TensorRT are not the target's; both sides are named.
    """
    if asked is not None:
        _check_device(find_target(asked), f"--target {asked}", manifest, device)
    if manifest.target is not None:
        _check_device(find_target(manifest.target), f"The target of '{bundle}'", manifest, device)


def _check_device(target: Target, origin: str, manifest: Manifest, device: DeviceFacts) -> None:
    export = f"export for this device with '{manifest.source.export_command} --target NAME'"
    if target.tensorrt is None or target.sm is None:
        raise UserError(f"{origin} is {target.title}, which does not run TensorRT: {export}.")
    if target.sm != device.sm or _version(target.tensorrt) != _version(device.tensorrt):
        raise UserError(
            f"{origin} is {target.title} (sm_{target.sm}, TensorRT {target.tensorrt}), but this device is "
            f"sm_{device.sm} with TensorRT {device.tensorrt}: build on the target itself, or {export}."
        )


def _version(version: str) -> tuple[int, int]:
    major, minor = (int(part) for part in version.split(".")[:2])
    return major, minor
