"""A bundle is either whole or not there, and the one that it replaces stays until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from divprune_edge.errors import UserError
from divprune_edge.export.writer import staged


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_older_bundle_survives_what_fails_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").write_text("old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == output and "work" in self.parts:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((UserError, KeyboardInterrupt)), staged(output) as folder:
        (folder / "manifest.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (output / "manifest.json").read_text() == "old"


def test_a_newer_bundle_takes_the_place(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "bundle") as folder:
            (folder / "manifest.json").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "new"
