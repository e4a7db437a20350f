"""Adding a selector to an existing bundle: the weights are not touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.bundle import VerificationFailed
from divprune_edge.export.plan import budget
from divprune_edge.export.selector import selector_id, signal_inputs, write_selector
from divprune_edge.export.writer import file_info, write_manifest
from divprune_edge.manifest import Check, Manifest, SelectorInfo, read_manifest
from divprune_edge.models.budget import least_capacity
from divprune_edge.models.selectors import SELECTORS, Selector, find_selector
from divprune_edge.scratch import scratch


def add_selector(
    bundle: Path, name: str, *, keep: int | None, prune: str | None, force: bool, verify: bool
) -> tuple[Manifest, SelectorInfo, tuple[Check, ...]]:
    """Add the selector ``name`` with a budget to ``bundle``; return the new manifest, its entry and its checks.

    Raises:
        UserError: no such bundle or selector, a budget out of range, it is there already, or the bundle cannot be
            written.
        VerificationFailed: the graph does not pick what the reference picks.
    """
    with _alone(bundle) as work:
        return _add_alone(bundle, name, work, keep=keep, prune=prune, force=force, verify=verify)


@contextmanager
def _alone(bundle: Path) -> Iterator[Path]:
    """Give a folder in the bundle, which no other process changes or replaces meanwhile; wait for one that does."""
    read_manifest(bundle)
    real = bundle.resolve()
    busy = f"'{bundle}' is being changed by another process: wait for it and repeat the command."
    with ExitStack() as stack:
        # An export that replaces the bundle works beside it; where nothing can be written there, none does.
        if os.access(real.parent, os.W_OK):
            stack.enter_context(scratch(real.parent, real.name, busy=busy, wait=True))
        try:
            work = stack.enter_context(scratch(real, "selector", busy=busy, wait=True))
        except OSError as error:
            raise _unwritable(bundle, error) from error
        yield work


def _unwritable(bundle: Path, error: OSError) -> UserError:
    return UserError(
        f"'{bundle}' cannot be written ({error.strerror or error}): make it writable or make room, or copy the "
        "bundle to where it is.",
        code="bundle-unwritable",
    )


def _add_alone(
    bundle: Path, name: str, work: Path, *, keep: int | None, prune: str | None, force: bool, verify: bool
) -> tuple[Manifest, SelectorInfo, tuple[Check, ...]]:
    manifest = read_manifest(bundle)
    selector = find_selector(name)
    keep = budget(keep, prune, manifest.vision_encoder.tokens)
    _require_room(bundle, manifest, keep)
    new = selector_id(name, keep)
    others = tuple(entry for entry in manifest.selectors if entry.id != new)
    if len(others) != len(manifest.selectors) and not force:
        raise UserError(
            f"'{bundle}' has the selector '{new}' already: replace it with --force.", code="selector-exists"
        )
    _require_signals(bundle, manifest, selector)
    try:
        return _add(bundle, manifest, others, selector, keep, work, verify=verify)
    except OSError as error:
        raise _unwritable(bundle, error) from error


def _add(
    bundle: Path,
    manifest: Manifest,
    others: tuple[SelectorInfo, ...],
    selector: Selector,
    keep: int,
    folder: Path,
    *,
    verify: bool,
) -> tuple[Manifest, SelectorInfo, tuple[Check, ...]]:
    """Write the graph aside, check it, and move it and a new manifest into the bundle."""
    tokens, width = manifest.vision_encoder.tokens, manifest.vision_encoder.width
    signals = signal_inputs(selector, manifest.vision_encoder)
    entry = write_selector(selector, tokens, keep, width, manifest.token_dtype, folder, signals)
    checks: tuple[Check, ...] = ()
    if verify:
        from divprune_edge.export.verify import verify_selector

        checks = verify_selector(selector, tokens, keep, width, manifest.token_dtype, folder / entry.file)
        failed = [check for check in checks if not check.passed]
        if failed:
            raise VerificationFailed(
                f"The graph of '{entry.id}' does not pick what its reference picks ({failed[0].name}: "
                f"{failed[0].detail or failed[0].value}); the bundle is unchanged.",
                code="verification-failed",
            )
    written = [path for path in (entry.file, entry.stripped) if path is not None]
    infos = {path: file_info(folder / path) for path in written}
    for path in written:
        (bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).replace(bundle / path)
    updated = manifest.model_copy(update={"selectors": (*others, entry), "files": manifest.files | infos})
    updated = Manifest.model_validate(updated.model_dump())
    write_manifest(bundle, updated)
    return updated, entry, checks


def add_selectors(
    bundle: Path, names: str, budgets: str, *, force: bool, verify: bool
) -> Iterator[tuple[Manifest, SelectorInfo, tuple[Check, ...]]]:
    """Add several selectors at several budgets and yield what :func:`add_selector` returns for each new one.

    Args:
        bundle: an existing bundle.
        names: ``all``, or algorithms with commas between them.
        budgets: numbers of visual tokens with commas between them.
        force: replace those that are there; else they stay as they are.
        verify: check each graph against its reference.

    Raises:
        UserError: as :func:`add_selector`, before anything is added.
    """
    manifest = read_manifest(bundle)
    asked = list(SELECTORS) if names == "all" else [name.strip() for name in names.split(",")]
    chosen = list(dict.fromkeys(asked))
    for name in chosen:
        _require_signals(bundle, manifest, find_selector(name))
    try:
        numbers = dict.fromkeys(int(part) for part in budgets.split(","))
    except ValueError:
        raise UserError(
            f"--keep is '{budgets}', expected whole numbers with commas between them.",
            code="option-invalid",
        ) from None
    kept = [budget(number, None, manifest.vision_encoder.tokens) for number in numbers]
    _require_room(bundle, manifest, max(kept))
    for name in chosen:
        for keep in kept:
            # Read anew: another process may have added it meanwhile.
            there = {entry.id for entry in read_manifest(bundle).selectors}
            if force or selector_id(name, keep) not in there:
                yield add_selector(bundle, name, keep=keep, prune=None, force=force, verify=verify)


def _require_room(bundle: Path, manifest: Manifest, keep: int) -> None:
    """Check that a cache of fixed size has room for ``keep`` visual tokens, a question and an answer.

    Raises:
        UserError: it has not.
    """
    language = manifest.language_model
    if language.capacity is None:
        return
    least = least_capacity(keep, language.context)
    if least > language.capacity:
        raise UserError(
            f"The language model of '{bundle}' has a cache of {language.capacity} rows, but {keep} visual tokens with "
            f"question and answer need at least {least}: keep fewer, or export with a larger --capacity.",
            code="capacity-too-small",
        )


def _require_signals(bundle: Path, manifest: Manifest, selector: Selector) -> None:
    there = {output.name for output in manifest.vision_encoder.outputs}
    missing = [name for name in selector.signals if name not in there]
    if missing:
        raise UserError(
            f"'{selector.name}' needs {', '.join(missing)} of the vision encoder, which '{bundle}' does not give: "
            f"export it again with '{manifest.source.export_command} --signals all --output {bundle} --force'.",
            code="signals-missing",
        )
