"""``BUNDLE/engines/``: one folder per fingerprint, written whole or not at all.

::

    engines/timing-<versions>.cache         measured kernels, shared by all builds on this device
    engines/<fingerprint>/engines.json      facts, and size and sha256 of every plan
    engines/<fingerprint>/<engine>.plan     what TensorRT deserialises
    engines/<fingerprint>/<engine>.layers.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from divprune_edge.errors import UserError
from divprune_edge.manifest import Strict
from divprune_edge.models.profiles import Profile
from divprune_edge.runtime.engines.fingerprint import DIGITS, Facts, fingerprint
from divprune_edge.scratch import give_way, scratch
from divprune_edge.strict_json import read_json

FOLDER, RECORD, TIMING_CACHE = "engines", "engines.json", "timing.cache"
PLANS = "plans"
"""Folder inside a partial one that becomes the folder of a fingerprint."""
_CHUNK = 1 << 24


def timing_cache(facts: Facts) -> str:
    """Return the name of the measurements that builds on this device share: TensorRT ignores those of another."""
    return f"timing-{facts.tensorrt}-{facts.cuda}-{'-'.join(map(str, facts.sms))}.cache"


def plain_name(name: str) -> str:
    """Return ``name`` if it is good for a file in the folder, else raise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name):
        raise ValueError(f"'{name}' is not a plain file name")
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]


class PlanInfo(Strict):
    """One engine.

    Attributes:
        file: name of the plan in the folder.
        layers: name of the file with TensorRT's description of the layers; None of a plan that was built ahead of
            time, as only its GPU can load it.
        graph: what it was built from, relative to the bundle.
        recipe: a digest of all that the plan follows from; equal recipes give interchangeable plans.
        profiles: shapes by optimisation profile.
        device_memory: bytes that an execution context needs beside the weights, by optimisation profile; empty where
            the plan was built ahead of time.
        plugin: its graph uses the plugin.
        seconds: the build took.
    """

    file: PlainName
    layers: PlainName | None
    size: Annotated[int, Field(gt=0)]
    sha256: str
    graph: str
    recipe: str
    profiles: tuple[Profile, ...]
    device_memory: tuple[int, ...]
    plugin: bool
    seconds: float


class BuildOptions(Strict):
    """The options of the build, as they were given; with them it can be repeated."""

    target: str | None = None
    selector: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+, -]*$")] | None = None
    max_prompt: Annotated[int, Field(gt=0)] | None = None
    slots: Annotated[int, Field(gt=0)] | None = None
    images: Annotated[int, Field(gt=0)] | None = None
    workspace: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None


class EnginesInfo(Strict):
    """``engines.json``: the facts that all engines of a folder share, and the engines by name."""

    schema_version: Literal[3] = 3
    facts: Facts
    asked: BuildOptions
    plans: dict[str, PlanInfo]

    @model_validator(mode="after")
    def _facts_cover_the_plans(self) -> EnginesInfo:
        if set(self.plans) != set(self.facts.onnx):
            raise ValueError("the plans are not those of the facts")
        return self


@dataclass(frozen=True)
class Stored:
    """A folder of engines and its record."""

    folder: Path
    info: EnginesInfo


def rebuild_command(bundle: Path, asked: BuildOptions | None = None) -> str:
    """Return the command that builds the engines of a bundle on this device, with the options of another build."""
    options = []
    if asked is not None:
        workspace = None if asked.workspace is None else asked.workspace >> 20
        for name, value in (
            ("target", asked.target),
            ("selector", asked.selector and "".join(asked.selector.split())),
            ("max-prompt", asked.max_prompt),
            ("slots", asked.slots),
            ("images", asked.images),
            ("workspace", workspace),
            ("optimization-level", asked.optimization_level),
        ):
            options += [] if value is None else [f"--{name} {value}"]
    return " ".join([f"python -m runtime build {bundle}", *options])


def read_stores(bundle: Path) -> tuple[list[Stored], list[UserError]]:
    """Return the folders of engines of a bundle, the newest first, and what is wrong with those that are none."""
    folder = bundle / FOLDER
    try:
        found = [path for path in folder.iterdir() if re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", path.name)]
        found.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    except FileNotFoundError:
        return [], []
    stores, problems = [], []
    for path in found:
        try:
            stores.append(Stored(path, read_record(path)))
        except UserError as error:
            problems.append(error)
    return stores, problems


def read_record(folder: Path) -> EnginesInfo:
    """Read and check ``folder/engines.json``.

    Raises:
        UserError: it is missing, malformed, of another version, or does not belong to this folder.
    """
    path = folder / RECORD
    again = f"build the engines again with '{rebuild_command(folder.parent.parent)} --force'"
    data = read_json(path, code="engines-record-invalid", advice=again)
    try:
        info = EnginesInfo.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "engines"
        raise UserError(
            f"'{path}' does not fit the schema at '{where}' ({first['msg']}): {again}.",
            code="engines-record-invalid",
        ) from error
    if fingerprint(info.facts) != folder.name:
        raise UserError(
            f"'{path}' states facts with the fingerprint {fingerprint(info.facts)}, but lies in {folder.name}: "
            f"{again}.",
            code="engines-record-invalid",
        )
    return info


def map_plan(stored: Stored, name: str) -> mmap:
    """Return the bytes of a plan, mapped into memory and proven to be those that were built.

    What is returned is what was hashed: a file put in its place afterwards changes nothing.

    Raises:
        UserError: the file is missing, shorter or longer than it was, or changed.
    """
    plan = stored.info.plans[name]
    path = stored.folder / plan.file
    command = rebuild_command(stored.folder.parent.parent, stored.info.asked)
    again = f"build the engines again with '{command} --force'"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != plan.size:
                raise UserError(
                    f"'{path}' has {size} bytes, but {RECORD} states {plan.size}: {again}.",
                    code="engines-file-changed",
                )
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}): {again}.", code="engines-file-unreadable"
        ) from error
    found = _sha256(mapped)
    if found != plan.sha256:
        mapped.close()
        raise UserError(
            f"'{path}' was changed after it was built (its sha256 is {found[:12]}…, {RECORD} states "
            f"{plan.sha256[:12]}…): {again}.",
            code="engines-file-changed",
        )
    return mapped


def plan_digest(path: Path) -> tuple[int, str]:
    """Return size and sha256 of a plan that was just written."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        return len(mapped), _sha256(mapped)


def _sha256(mapped: mmap) -> str:
    digest = hashlib.sha256()
    with memoryview(mapped) as view:
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
    return digest.hexdigest()


@contextmanager
def partial_folder(bundle: Path) -> Iterator[Path]:
    """Yield a folder for a build, with an empty :data:`PLANS` in it.

    Whatever is left of it at the end, and of builds that died, is removed.

    Raises:
        UserError: the bundle cannot be written to.
    """
    root = bundle / FOLDER
    name = f"partial-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        try:
            root.mkdir(exist_ok=True)
            folder = stack.enter_context(scratch(root, name, busy=f"'{root}' is in use: repeat the build."))
            (folder / PLANS).mkdir()
        except OSError as error:
            raise UserError(
                f"'{root}' cannot be written ({error.strerror}): make it writable, or copy the bundle to where it is.",
                code="bundle-unwritable",
            ) from error
        yield folder


def publish(partial: Path, info: EnginesInfo) -> Path:
    """Write the record into ``partial/plans`` and give that folder its place; return the place.

    What was there, of the same fingerprint, goes; where two builds of one fingerprint end at a time, the later stays.
    """
    made, final = partial / PLANS, partial.parent.parent / fingerprint(info.facts)
    text = json.dumps(info.model_dump(mode="json"), indent=2) + "\n"
    (made / RECORD).write_text(text, encoding="utf-8")
    busy = f"'{final}' is being written by another process: wait for it."
    with scratch(final.parent, "publish", busy=busy, wait=True):
        if final.exists():
            give_way(final, partial)
        made.rename(final)
    return final
