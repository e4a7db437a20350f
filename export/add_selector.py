"""Adding a selector to an existing bundle: the weights are not touched."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.bundle import VerificationFailed
from divprune_edge.export.selector import selector_id, signal_inputs, write_selector
from divprune_edge.export.writer import file_info, write_manifest
from divprune_edge.hints import quoted
from divprune_edge.manifest import Check, Manifest, SelectorInfo, read_manifest
from divprune_edge.models.budget import budget, least_capacity
from divprune_edge.models.selectors import SELECTORS, Selector, find_selector
from divprune_edge.models.signals import SIGNALS, why_not
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
    keep = budget(keep, prune, manifest.candidates, manifest.vision_encoder.uncut)
    _require_room(bundle, manifest, keep * manifest.groups)
    new = selector_id(name, keep)
    others = tuple(entry for entry in manifest.selectors if entry.id != new)
    if len(others) != len(manifest.selectors) and not force:
        raise UserError(
            f"'{bundle}' has the selector '{new}' already: replace it with --force.", code="selector-exists"
        )
    if lack := _lack(bundle, manifest, selector):
        raise lack
    _check_rows(manifest, selector)
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
    tokens, width = manifest.candidates, manifest.vision_encoder.width
    signals = signal_inputs(selector, manifest.features)
    token = manifest.vision_encoder.looked_at
    entry = write_selector(selector, tokens, keep, width, manifest.token_dtype, folder, signals, token)
    checks: tuple[Check, ...] = ()
    if verify:
        from divprune_edge.export.verify import verify_selector

        checks = verify_selector(
            selector, tokens, keep, width, manifest.token_dtype, folder / entry.file, token
        )
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

    Those that the bundle's vision encoder cannot serve are left out: see :func:`left_out`.

    Raises:
        UserError: as :func:`add_selector`, before anything is added; or nothing is left to add.
    """
    manifest = read_manifest(bundle)
    obstacles = {
        name: _lack(bundle, manifest, selector) or _misfit(manifest, selector)
        for name, selector in _named(names).items()
    }
    chosen = [name for name, obstacle in obstacles.items() if obstacle is None]
    for obstacle in obstacles.values():
        if obstacle is not None and not chosen:
            raise obstacle
    try:
        numbers = dict.fromkeys(int(part) for part in budgets.split(","))
    except ValueError:
        raise UserError(
            f"--keep is '{budgets}', expected whole numbers with commas between them.",
            code="option-invalid",
        ) from None
    kept = [budget(number, None, manifest.candidates) for number in numbers]
    _require_room(bundle, manifest, max(kept) * manifest.groups)
    for name in chosen:
        for keep in kept:
            # Read anew: another process may have added it meanwhile.
            there = {entry.id for entry in read_manifest(bundle).selectors}
            if force or selector_id(name, keep) not in there:
                yield add_selector(bundle, name, keep=keep, prune=None, force=force, verify=verify)


def left_out(bundle: Path, names: str) -> str | None:
    """Return sentences about those of ``names`` that the bundle's encoder cannot serve, None where it can serve all."""
    manifest = read_manifest(bundle)
    offered, given = _offered(manifest), _given(manifest)
    never, missing, misfits = {}, {}, []
    for name, selector in _named(names).items():
        if found := selector.missing(offered):
            never[name] = found
        elif found := selector.missing(given):
            missing[name] = found
        elif misfit := _misfit(manifest, selector):
            misfits.append(f"Left out {name}: {misfit}")
    sentences = []
    if never:
        why = why_not([signal for signals in never.values() for signal in signals], offered)
        sentences.append(f"{_needing(never)}, which that of '{bundle}' cannot give{why}.")
    if missing:
        sentences.append(
            f"{_needing(missing)}, which '{bundle}' does not give; {_with_signals(bundle, manifest)}."
        )
    return " ".join([*sentences, *misfits]) or None


def _needing(missing: Mapping[str, Sequence[str]]) -> str:
    signals = dict.fromkeys(signal for found in missing.values() for signal in found)
    verb = "it needs" if len(missing) == 1 else "they need"
    return f"Left out {', '.join(missing)}: {verb} {', '.join(signals)} of the vision encoder"


def _named(names: str) -> dict[str, Selector]:
    """Return the algorithms of ``all`` or of a list with commas, each once.

    Raises:
        UserError: there is no such algorithm.
    """
    listed = SELECTORS if names == "all" else [part.strip() for part in names.split(",")]
    return {name: find_selector(name) for name in listed}


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


def _lack(bundle: Path, manifest: Manifest, selector: Selector) -> UserError | None:
    """Return why a selector cannot have its signals, None where it can."""
    offered = _offered(manifest)
    if missing := selector.missing(offered):
        return UserError(
            f"'{selector.name}' needs {', '.join(missing)} of the vision encoder, which that of '{bundle}' cannot give"
            f"{why_not(missing, offered)}: choose a selector that does not, such as divprune.",
            code="signals-unavailable",
        )
    if missing := selector.missing(_given(manifest)):
        return UserError(
            f"'{selector.name}' needs {', '.join(missing)} of the vision encoder, which '{bundle}' does not give: "
            f"{_with_signals(bundle, manifest)}.",
            code="signals-missing",
        )
    return None


def _misfit(manifest: Manifest, selector: Selector) -> UserError | None:
    """Return why a selector has no meaning for the rows that it would pick from, None where it has."""
    try:
        _check_rows(manifest, selector)
        selector.check_grid(manifest.candidates)
    except UserError as error:
        return error
    return None


def _check_rows(manifest: Manifest, selector: Selector) -> None:
    if manifest.assemble is not None:
        selector.refuse_tiles()
    if manifest.vision_encoder.looked_at < manifest.vision_encoder.width:
        selector.refuse_stacked()


def _offered(manifest: Manifest) -> Collection[str]:
    """Return the signals that the encoder could be exported with: all, as far as an older manifest says."""
    offered = manifest.vision_encoder.signals
    return SIGNALS if offered is None else offered


def _given(manifest: Manifest) -> set[str]:
    return {output.name for output in manifest.features.outputs}


def _with_signals(bundle: Path, manifest: Manifest) -> str:
    return f"export it again with '{manifest.source.export_command} --signals all --output {quoted(bundle)} --force'"
