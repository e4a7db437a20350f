"""How measurements name a bundle whose language model leaves visual tokens behind."""

from __future__ import annotations

from divprune_edge.manifest import Manifest, SelectorInfo


def schedule_line(manifest: Manifest) -> str | None:
    """Return ``fastv: of 576 visual tokens 288 from layer 2 on``; None where none leave inside the language model."""
    schedule = manifest.language_model.schedule
    if schedule is None:
        return None
    cuts = ", ".join(f"{cut.keep} from layer {cut.before} on" for cut in schedule.cuts)
    return f"{schedule.method}: of {schedule.visual_tokens} visual tokens {cuts}"


def title_of(selector: SelectorInfo | None, manifest: Manifest) -> str:
    """Return what a selector, or None, is called: ``divprune-58``, ``no pruning``.

    With a schedule, None is no model without pruning: ``selector none (schedule fastv)``.
    """
    schedule = manifest.language_model.schedule
    if selector is not None:
        return selector.id
    return "no pruning" if schedule is None else f"selector none (schedule {schedule.method})"


def variant_of(manifest: Manifest) -> str:
    """Return what tells bundles of one model apart: the precision, and the schedule if there is one."""
    line = schedule_line(manifest)
    return manifest.precision if line is None else f"{manifest.precision}, {line}"


def named_variant(name: str, manifest: Manifest) -> str:
    """Return the same in short, behind a bundle's name, for a column of a table: ``demo-fastv (fp32, fastv)``."""
    schedule = manifest.language_model.schedule
    return f"{name} ({manifest.precision}{', ' + schedule.method if schedule is not None else ''})"


def schedule_facts(manifest: Manifest) -> dict[str, str]:
    """Return the schedule as a fact of a measurement, if there is one."""
    line = schedule_line(manifest)
    return {} if line is None else {"schedule": line}
