"""Whether an export is verified: what the user asked for against what is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.bundle import Verify
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.hints import install
from divprune_edge.manifest import Verification


def chosen_verification(asked: bool | None, report: ConsoleReporter, *, adapter: bool = False) -> Verify:
    """Return the verification to run: the real one, or one that says why there is none.

    An ``adapter`` needs peft as well.

    Raises:
        UserError: ``--verify`` was asked for, but cannot be done.
    """
    if asked is False:
        return lambda plan, folder: Verification(status="not verified", reason="--no-verify")
    from divprune_edge.export.verify import available

    missing = available(adapter=adapter)
    if asked and missing is not None:
        raise UserError(
            f"--verify needs PyTorch and transformers ({missing}): {install('cpu', 'verify')}.",
            code="pytorch-missing",
        )
    if missing is not None:
        return lambda plan, folder: Verification(status="not verified", reason=missing)

    def verify(plan: ExportPlan, folder: Path) -> Verification:
        from divprune_edge.export.verify import verify_bundle

        with report.stage("verification against PyTorch") as progress:
            result = verify_bundle(plan, folder, progress)
        report.checks(result.checks)
        return result

    return verify


def can_check_selectors(asked: bool | None) -> bool:
    """Return whether a selector graph is run against its reference; that needs only ONNX Runtime.

    Raises:
        UserError: ``--verify`` was asked for, but ONNX Runtime is not installed.
    """
    installed = find_spec("onnxruntime") is not None
    if asked and not installed:
        raise UserError(
            f"--verify needs ONNX Runtime, which is not installed: {install('cpu')}.",
            code="onnxruntime-missing",
        )
    return installed if asked is None else asked
