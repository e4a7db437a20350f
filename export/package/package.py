"""From a bundle and a target to the archive that a Jetson installs."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.bundle import Reporter
from divprune_edge.export.package.archive import (
    Member,
    archive_size,
    check_room,
    chunks,
    digest_of,
    write_archive,
)
from divprune_edge.export.package.facts import L4T, shell_facts, to_shell
from divprune_edge.export.package.requirements import requirements
from divprune_edge.export.package.wheel import plugin_sources, runtime_wheel, wheel_name
from divprune_edge.manifest import MANIFEST, RESTORE, Manifest, read_manifest
from divprune_edge.models.demo import IMAGE, IMAGE_FACTS
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.targets import TARGETS, Target, find_target

BUNDLE = "bundle"
SUMS = "SHA256SUMS"
_FILES = "divprune_edge.export.package"


def archive_path(bundle: Path, target: Target) -> Path:
    """Return where the package of ``bundle`` goes if nothing else is said: beside it."""
    folder = bundle.absolute()
    return bundle.parent / f"{folder.name}-{target.name}.tar"


def check_package(target: Target | None, output: Path, force: bool) -> Target:
    """Check that a package for ``target`` may be written to ``output``, and return the target.

    Raises:
        UserError: the target is no Jetson, or something is there already.
    """
    if target is None or target.jetpack not in L4T:
        given = "no target was given" if target is None else f"'{target.name}' is not one"
        boards = ", ".join(name for name, entry in TARGETS.items() if entry.jetpack in L4T)
        raise UserError(
            f"A package installs a bundle on a Jetson, but {given}: choose --target among {boards}.",
            code="package-target-unfit",
        )
    if output.is_dir() or ((output.exists() or output.is_symlink()) and not force):
        raise UserError(
            f"'{output}' exists already: choose another --output, or replace it with --force.",
            code="output-exists",
        )
    return target


def write_package(bundle: Path, target: Target | None, output: Path, *, force: bool, report: Reporter) -> int:
    """Write the package of ``bundle`` for ``target`` to ``output``, whole or not at all.

    Args:
        bundle: folder of an exported bundle; only the files of its manifest go in, never engines.
        target: a Jetson.
        output: the archive.
        force: replace a file that is there.
        report: shows progress.

    Returns:
        The size of the archive in bytes.

    Raises:
        UserError: the target is no Jetson, the bundle was exported for something else or is damaged, or there is
            no room.
    """
    target = check_package(target, output, force)
    manifest = read_manifest(bundle)
    _check_fits(bundle, manifest, target)
    content = _bundle_members(bundle, manifest)
    check_room(output, archive_size(content) + 64 * 2**20)
    with report.stage("answer to compare with"):
        selftest = _selftest(bundle)
    with report.stage("runtime wheel and plugin sources"):
        tools = _tools(manifest, target)
    members = [*tools, *selftest, *content]
    sums = "".join(f"{digest_of(member)}  {member.name}\n" for member in members)
    members.insert(0, Member(SUMS, sums.encode()))
    with report.stage(output.name, chunks(members)) as progress:
        write_archive(output, output.name.removesuffix(".tar"), members, progress)
    return output.stat().st_size


def _check_fits(bundle: Path, manifest: Manifest, target: Target) -> None:
    dialect = manifest.language_model.dialect
    made_for = None if manifest.target is None else find_target(manifest.target)
    if made_for is not None and (made_for.sm, made_for.tensorrt) != (target.sm, target.tensorrt):
        raise UserError(
            f"'{bundle}' was exported for {made_for.title}, which is not like {target.title}: export it again with "
            f"'{manifest.source.export_command} --target {target.name}'.",
            code="target-mismatch",
        )
    assert target.tensorrt is not None, "a Jetson"
    if DIALECTS[dialect].taken_by(target.backend, target.tensorrt):
        return
    raise UserError(
        f"'{bundle}' has a language model in the dialect '{dialect}', but TensorRT {target.tensorrt} of "
        f"{target.title} needs '{target.dialect}': export it again with '{manifest.source.export_command} --target "
        f"{target.name}'.",
        code="dialect-with-target",
    )


def _bundle_members(bundle: Path, manifest: Manifest) -> list[Member]:
    """Return the bundle's files, the manifest first."""
    root = bundle.resolve()
    members = [Member(f"{BUNDLE}/{MANIFEST}", (bundle / MANIFEST).read_bytes())]
    for name, info in sorted(manifest.files.items()):
        path = root / name
        if not path.resolve().is_relative_to(root) or not path.is_file() or path.stat().st_size != info.size:
            raise UserError(
                f"'{bundle / name}' is missing or not the file that {MANIFEST} lists: {RESTORE}.",
                code="bundle-file-changed",
            )
        members.append(Member(f"{BUNDLE}/{name}", path, info.sha256))
    return members


def _selftest(bundle: Path) -> list[Member]:
    from divprune_edge.export.verify.sample import sample_answer

    question = json.loads(IMAGE_FACTS.read_text(encoding="utf-8"))["questions"][0]["question"]
    sample = sample_answer(bundle, IMAGE, question)
    return [
        Member("selftest/check_answer.py", _resource("check_answer.py")),
        Member("selftest/expected.json", sample.to_json().encode()),
        Member("selftest/picture.png", IMAGE.read_bytes()),
    ]


def _tools(manifest: Manifest, target: Target) -> list[Member]:
    facts = shell_facts(manifest, target, wheel_name())
    pins = "".join(f"{name}=={version}\n" for name, version in requirements(target).items())
    readme = _resource("README.txt").decode()
    for name, value in facts.items():
        readme = readme.replace(f"@{name}@", value)
    sources = plugin_sources()
    return [
        Member("README.txt", readme.encode()),
        Member("install.sh", _resource("install.sh"), executable=True),
        Member("package.env", to_shell(facts).encode()),
        Member("requirements.txt", pins.encode()),
        *(Member(f"plugin-sources/{name}", data) for name, data in sorted(sources.items())),
        Member(f"wheels/{wheel_name()}", runtime_wheel()),
    ]


def _resource(name: str) -> bytes:
    return files(_FILES).joinpath("files", name).read_bytes()
