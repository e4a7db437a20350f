"""From what the user typed after ``--model`` to a checkpoint folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from divprune_edge.errors import UserError
from divprune_edge.export.adapter import refuse_adapter_alone
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.hints import install
from divprune_edge.models.files import HubSource
from divprune_edge.strict_json import is_file, is_folder

# What an export reads: weights in safetensors and the small files, never pickles or code. The tokenizer's older files
# are there to make a tokenizer.json of.
_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "LICENSE*",
    "README.md",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
]
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NOT_MODELS = ("datasets", "spaces", "docs", "papers", "collections", "models", "api")
_PICKLES = (".bin", ".pt", ".pth")


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder, or download from the hub into the local hub cache and open that.

    Args:
        model: a folder, a hub id (``owner/name``, with ``@`` and a revision if need be), or the address of a
            repository's page.
        revision: branch, tag or commit.

    Raises:
        UserError: neither a folder nor something that can be had from the hub, or a revision of a folder.
    """
    folder = Path(model).expanduser()
    if is_folder(folder):
        if revision is not None:
            raise UserError(
                f"--revision {revision} does not go with the folder '{model}', which is as it is: leave it out, or "
                "give a hub id (owner/name).",
                code="revision-of-a-folder",
            )
        refuse_adapter_alone(folder, model)
        return Checkpoint(folder, name=folder.resolve().name)
    if is_file(folder):
        raise UserError(
            f"--model '{model}' is a file: give the folder that holds config.json and the weights.",
            code="checkpoint-not-a-folder",
        )
    source = _hub_source(model, revision)
    path = _download(source)
    refuse_adapter_alone(path, model)
    return Checkpoint(
        path, source.name, path.name, HubSource(source.name, source.revision, _pickles(source, path))
    )


def _hub_source(model: str, revision: str | None) -> HubSource:
    """Return the repository and revision that ``model`` names.

    Raises:
        UserError: it names none, or another revision than ``revision``.
    """
    found = _from_address(model) or _HUB_ID.fullmatch(model)
    if found is None:
        raise UserError(
            f"There is no folder '{model}', and it does not look like a hub id (owner/name).",
            code="checkpoint-missing",
        )
    name, own = (found.group(1), found.group(2)) if isinstance(found, re.Match) else found
    if own is not None and revision not in (None, own):
        raise UserError(
            f"--model '{model}' asks for revision '{own}' and --revision for '{revision}': leave one of them out.",
            code="revisions-disagree",
        )
    return HubSource(name, revision if own is None else own)


def _from_address(model: str) -> tuple[str, str | None] | None:
    """Return (owner/name, revision) of the address of a repository's page; None if it is no address of the hub.

    Raises:
        UserError: an address of something else there.
    """
    try:
        parts = urlsplit(model if "://" in model else f"https://{model}")
        own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    except ValueError:
        return None
    if parts.netloc not in {*_HOSTS, own} - {""}:
        if "://" not in model:
            return None
        raise UserError(
            f"--model '{model}' is not an address of the hub: give a folder, a hub id (owner/name) or "
            f"https://{_HOSTS[0]}/owner/name.",
            code="hub-address-invalid",
        )
    steps = [step for step in parts.path.split("/") if step]
    known = _HUB_ID.fullmatch("/".join(steps[:2]))
    tree, revision = steps[2:3], "/".join(steps[3:])
    fits = "/" not in revision or revision.startswith("refs/")  # else a folder in the repository
    if known is None or steps[0] in _NOT_MODELS or (tree and not (tree == ["tree"] and revision and fits)):
        raise UserError(
            f"--model '{model}' is not the address of a model's repository: expected "
            f"https://{_HOSTS[0]}/owner/name, or with /tree/REVISION after it.",
            code="hub-address-invalid",
        )
    return known.group(1), unquote(revision) if revision else known.group(2)


def _download(source: HubSource) -> Path:
    hub_id = source.name
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"There is no folder '{hub_id}'; downloading it from the hub needs an extra: {install('export')}.",
            code="hub-client-missing",
        ) from None
    try:
        return Path(snapshot_download(hub_id, revision=source.revision, allow_patterns=_PATTERNS))
    except RevisionNotFoundError as error:
        raise UserError(
            f"The hub has no revision '{source.revision}' of '{hub_id}': see its branches, tags and commits at "
            f"https://{_HOSTS[0]}/{hub_id}/commits.",
            code="revision-unknown",
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"'{hub_id}' is only for those who were given access: ask for it at https://{_HOSTS[0]}/{hub_id}, and log "
            "in with 'hf auth login'.",
            code="hub-access",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"There is no folder '{hub_id}', and the hub does not give it ({reason[:160].rstrip('.')}): check "
            "the id and the network.",
            code="hub-download-failed",
        ) from error


def _pickles(source: HubSource, path: Path) -> tuple[str, ...]:
    """Return the pickles that were not downloaded, where nothing else holds weights."""
    if any(path.glob("*.safetensors")):
        return ()
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        files = list_repo_files(source.name, revision=source.revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):  # what is not known is not told
        return ()
    return tuple(sorted(file for file in files if file.endswith(_PICKLES)))
