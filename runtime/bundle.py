"""An opened bundle: its manifest, its folder, and the proof that every file is the one that was exported."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.files import write_whole
from divprune_edge.hints import quoted
from divprune_edge.manifest import (
    MANIFEST,
    RESTORE,
    UNPRUNED,
    FileInfo,
    Manifest,
    SelectorInfo,
    read_manifest,
)
from divprune_edge.strict_json import parse_json, read_text

if TYPE_CHECKING:
    from divprune_edge.processing.prompt import PromptEncoder

VerifyHashes = Literal["auto", "always"]
Stamp = dict[str, list[int | str]]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A folder whose files agree with its manifest. ``path`` is resolved."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | os.PathLike[str], verify_hashes: VerifyHashes = "auto") -> Bundle:
        """Read the manifest and check every file that it lists, before any of them is opened.

        Args:
            path: the bundle's folder.
            verify_hashes: ``auto`` hashes a file the first time and afterwards compares its size, inode and
                times (that of the last change among them, which nobody can set) with a stamp in the user's cache
                folder; ``always`` hashes every time.

        Raises:
            UserError: not a bundle, or a file that is missing, changed, or outside the folder.
        """
        if verify_hashes not in ("auto", "always"):
            raise UserError(
                f"verify_hashes is '{verify_hashes}', expected 'auto' or 'always'.",
                code="option-invalid",
            )
        given = Path(path)
        manifest = read_manifest(given)
        root = given.resolve()
        stamp = {name: _check_file(root, given, name, info) for name, info in manifest.files.items()}
        note = _stamp_path(root)
        known = _read_stamp(note) if verify_hashes == "auto" else {}
        for name, info in manifest.files.items():
            if known.get(name) != stamp[name]:
                _check_hash(root / name, given, name, info)
        if known != stamp:
            _write_stamp(note, stamp)
        return Bundle(root, manifest)

    def file(self, name: str) -> Path:
        """Return the absolute path of a file that the manifest lists."""
        return self.path / name

    def selector(self, name: str | None = None, keep: int | None = None) -> SelectorInfo | None:
        """Find the selector that is asked for; None stands for no pruning.

        Args:
            name: an id (``divprune-58``), an algorithm (``divprune``), or ``none``; None takes the bundle's
                default, or with ``keep`` the default's algorithm.
            keep: K, the number of visual tokens to keep; all of them means no pruning.

        Raises:
            UserError: the bundle has no such selector; the message says what it has and how to add one.
        """
        tokens = self.manifest.candidates
        if keep is not None and not 1 <= keep <= tokens:
            raise UserError(
                f"{keep} visual tokens are to be kept, expected 1 to {tokens}.", code="keep-out-of-range"
            )
        if name == UNPRUNED and keep not in (None, tokens):
            raise UserError(
                f"Selector 'none' keeps all {tokens} tokens, not {keep}: leave one of the two out.",
                code="keep-with-selector",
            )
        if name == UNPRUNED:
            return None
        if name is None and keep is None:
            return self._by_id(self.manifest.default_selector)
        exact = [s for s in self.manifest.selectors if s.id == name]
        if exact and keep in (None, exact[0].keep):
            return exact[0]
        if exact:
            raise UserError(
                f"Selector '{name}' keeps {exact[0].keep} tokens, not {keep}: leave one of the two out.",
                code="keep-with-selector",
            )
        if keep == tokens and (name is None or name in {s.name for s in self.manifest.selectors}):
            return None
        return self._by_algorithm(name, keep)

    def prompt_encoder(self) -> PromptEncoder:
        """Return what turns conversations into ids.

        Raises:
            UserError: the bundle's template or tokenizer cannot be used.
        """
        from divprune_edge.processing.prompt import PromptEncoder

        prompt, language = self.manifest.prompt, self.manifest.language_model
        return PromptEncoder(
            prompt,
            read_text(
                self.file(prompt.chat_template),
                code="bundle-file-unreadable",
                advice=RESTORE,
            ),
            self.file(prompt.tokenizer),
            rows=language.embedding_rows,
            room=language.positions,
            context=language.context,
            axes=language.axes,
        )

    def _by_id(self, name: str) -> SelectorInfo | None:
        return next((s for s in self.manifest.selectors if s.id == name), None)

    def _by_algorithm(self, name: str | None, keep: int | None) -> SelectorInfo:
        default = self._by_id(self.manifest.default_selector)
        wanted = name if name is not None else (default.name if default else None)
        fitting = [s for s in self.manifest.selectors if wanted in (None, s.name) and keep in (None, s.keep)]
        if default in fitting:
            return default
        if len(fitting) == 1:
            return fitting[0]
        raise UserError(
            self._no_such_selector(wanted, keep, fitting),
            code="selector-ambiguous" if fitting else "selector-not-in-bundle",
        )

    def _no_such_selector(self, name: str | None, keep: int | None, fitting: list[SelectorInfo]) -> str:
        if fitting:
            return f"Several selectors fit: choose one of {', '.join(s.id for s in fitting)}."
        there = ", ".join([*(s.id for s in self.manifest.selectors), UNPRUNED])
        asked = " ".join([f"'{name}'" if name else "", f"keeping {keep} tokens" if keep else ""]).strip()
        close, command = "", f"python -m export selector {quoted(self.path)}"
        algorithm, budget = _algorithm(name)
        budget = keep or budget
        if algorithm is None and name is not None:
            from divprune_edge.models.selectors import SELECTORS

            known = {*SELECTORS, *(s.id for s in self.manifest.selectors), UNPRUNED}
            close = did_you_mean(name, known)
        elif budget is None or 1 <= budget <= self.manifest.candidates:
            command += f" --selector {algorithm}" if algorithm else ""
            command += f" --keep {budget}" if budget else ""
        return f"The bundle has no selector {asked}{close}: it has {there}; add one with '{command}'."


def _algorithm(name: str | None) -> tuple[str | None, int | None]:
    """Return the algorithm and the budget of an id such as ``divprune-58``, or of an algorithm's name."""
    from divprune_edge.models.selectors import SELECTORS

    if name is None or name in SELECTORS:
        return name, None
    algorithm, _, number = name.rpartition("-")
    return (algorithm, int(number)) if algorithm in SELECTORS and number.isdecimal() else (None, None)


def _check_file(root: Path, given: Path, name: str, info: FileInfo) -> list[int | str]:
    """Return [size, mtime_ns, ctime_ns, inode, sha256] of a file inside ``root`` of the stated size."""
    try:
        real = (root / name).resolve(strict=True)
        if not real.is_relative_to(root):
            raise UserError(
                f"'{given / name}' is a link that leaves the bundle folder (to '{real}'): "
                "put the file itself in its place.",
                code="bundle-file-outside",
            )
        status = real.stat()
    except FileNotFoundError:
        raise UserError(
            f"'{given / name}' is missing from the bundle: {RESTORE}.",
            code="bundle-file-missing",
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"'{given / name}' cannot be read ({_reason(error)}): make it readable for this user.",
            code="bundle-file-unreadable",
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"'{given / name}' is not a file: {RESTORE}.", code="bundle-file-unreadable")
    if status.st_size != info.size:
        raise UserError(
            f"'{given / name}' has {status.st_size} bytes, but {MANIFEST} states {info.size}: {RESTORE}.",
            code="bundle-file-changed",
        )
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, info.sha256]


def _check_hash(file: Path, given: Path, name: str, info: FileInfo) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise UserError(
            f"'{given / name}' cannot be read ({_reason(error)}): make it readable for this user.",
            code="bundle-file-unreadable",
        ) from None
    if digest.hexdigest() != info.sha256:
        raise UserError(
            f"'{given / name}' was changed after the export (its sha256 is {digest.hexdigest()[:12]}…, "
            f"{MANIFEST} states {info.sha256[:12]}…): {RESTORE}.",
            code="bundle-file-changed",
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def cache_folder() -> Path:
    """Return where this user's caches belong on this system."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "divprune-edge"


def _stamp_path(root: Path) -> Path | None:
    """Return where the stamp of a bundle lies, outside of it; None where this user has no home."""
    try:
        return cache_folder() / "verified" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()}.json"
    except RuntimeError:
        return None


def _read_stamp(note: Path | None) -> Stamp:
    """Return what is known of each file: its size, times and inode when it had the sha256 that comes last."""
    try:
        stamp = parse_json(note.read_text(encoding="utf-8")) if note is not None else {}
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(note: Path | None, stamp: Stamp) -> None:
    # A cache that cannot be written only costs the next start its hashes.
    if note is None:
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(stamp))
    except OSError:
        return
