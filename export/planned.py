"""From a plan to its bundle, as commands do it: memory is told, weights calibrated, verified, and the result shown."""

from __future__ import annotations

from pathlib import Path

from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.reporter import ConsoleReporter, show_bundle
from divprune_edge.export.targets import announce_memory
from divprune_edge.export.verification import chosen_verification
from divprune_edge.export.writer import check_output


def export_planned(
    plan: ExportPlan,
    folder: Path,
    report: ConsoleReporter,
    *,
    force: bool,
    verify: bool | None = None,
    adapter: bool = False,
    calibrate: Path | None = None,
) -> None:
    """Export ``plan`` to ``folder``.

    Args:
        plan: what to export.
        folder: of the bundle.
        report: shows progress.
        force: replace a bundle that is there.
        verify: compare with PyTorch; None: where it is installed.
        adapter: whether the checkpoint has one merged, which verification then needs peft for.
        calibrate: folder of images to round int4 weights by.

    Raises:
        UserError: as :func:`~divprune_edge.export.bundle.export_bundle`, or nothing to calibrate.
        VerificationFailed: a check is out of tolerance.
    """
    check_output(folder, force)
    announce_memory(plan)
    check = chosen_verification(verify, report, adapter=adapter)
    if calibrate is not None:
        from divprune_edge.export.calibrate import calibrated

        with report.stage("calibration"):
            plan = calibrated(plan, calibrate)
    show_bundle(folder, export_bundle(plan, folder, force=force, verify=check, report=report))
