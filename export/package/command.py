"""What ``python -m export package`` and ``python -m export llava … --package`` do and print."""

from __future__ import annotations

from pathlib import Path

from divprune_edge.export.package.archive import check_room
from divprune_edge.export.package.package import archive_path, check_package, write_package
from divprune_edge.export.reporter import ConsoleReporter, show_package
from divprune_edge.manifest import read_manifest
from divprune_edge.models.targets import find_target


def package_bundle(
    bundle: Path, target: str | None, output: Path | None, *, force: bool, report: ConsoleReporter
) -> Path:
    """Write the package of a bundle and say what to do with it.

    Args:
        bundle: folder of an exported bundle.
        target: name of a Jetson; None takes the one that the bundle was exported for.
        output: the archive; None puts it beside the bundle.
        force: replace an archive that is there.
        report: shows progress.

    Returns:
        The archive.

    Raises:
        UserError: see :func:`~divprune_edge.export.package.write_package`.
    """
    name = target or read_manifest(bundle).target
    device = None if name is None else find_target(name)
    archive = output or (bundle if device is None else archive_path(bundle, device))
    size = write_package(bundle, device, archive, force=force, report=report)
    show_package(archive, size)
    return archive


def check_before_export(target: str | None, bundle: Path, weight_bytes: int, *, force: bool) -> None:
    """Check what would make the package of a bundle fail, before hours of export.

    Args:
        target: name of what the bundle is exported for, if anything.
        bundle: folder that it will be in.
        weight_bytes: size of its weights; the package holds them again.
        force: replace an archive that is there.

    Raises:
        UserError: the target is no Jetson, the archive exists, or there is no room for both.
    """
    device = None if target is None else find_target(target)
    archive = bundle if device is None else archive_path(bundle, device)
    check_package(device, archive, force)
    check_room(archive, 2 * weight_bytes)
