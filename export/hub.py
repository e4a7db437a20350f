"""From what the user typed after ``--model`` to a checkpoint folder."""

from __future__ import annotations

import re
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.hints import install

# What an export reads: weights in safetensors and the small files, never pickles or code.
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "LICENSE*", "README.md"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(model: str) -> Checkpoint:
    """Open a local folder, or download a hub id into the local hub cache and open that.

    Raises:
        UserError: neither a folder nor something that can be had from the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Checkpoint(folder, name=folder.resolve().name)
    if folder.exists():
        raise UserError(
            f"--model '{model}' is a file: give the folder that holds config.json and the weights.",
            code="checkpoint-not-a-folder",
        )
    if not _HUB_ID.fullmatch(model):
        raise UserError(
            f"There is no folder '{model}', and it does not look like a hub id (owner/name).",
            code="checkpoint-missing",
        )
    path = _download(model)
    return Checkpoint(path, name=model, revision=path.name)


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"There is no folder '{hub_id}'; downloading it from the hub needs an extra: {install('export')}.",
            code="hub-client-missing",
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"There is no folder '{hub_id}', and the hub does not give it ({reason[:160].rstrip('.')}): check "
            "the id and the network.",
            code="hub-download-failed",
        ) from error
