"""docs/jetson.md says what the code says: messages, options, versions."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT

from divprune_edge.export.package.facts import L4T
from divprune_edge.models.targets import TARGETS, Target

GUIDE = (ROOT / "docs/jetson.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "export/package/files/install.sh").read_text(encoding="utf-8")


def messages() -> str:
    """Every string of the Python sources, values in it left out, and install.sh."""
    found = [re.sub(r"\$\{[^}]*\}|\$\w+", "", SCRIPT)]
    for folder in ("export", "plugins", "runtime", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def listed() -> list[str]:
    """The messages of section 7: what stands in backticks in the first column."""
    rows = re.findall(r"^\| (`.*?) \|", GUIDE.split("## 7.")[1], re.MULTILINE)
    ours = [row for row in rows if "pip's own" not in row]
    return [message for row in ours for message in re.findall(r"`([^`]+)`", row)]


def test_every_message_is_one_of_the_code() -> None:
    known = messages()
    assert len(listed()) > 40
    assert [message for message in listed() if message not in known] == []


def test_every_option_of_the_script() -> None:
    options = set(re.findall(r"^  (--[a-z-]+)", SCRIPT, re.MULTILINE))
    assert len(options) == 5
    assert [option for option in options if f"| `{option}" not in GUIDE] == []


@pytest.mark.parametrize(
    "target", [entry for entry in TARGETS.values() if entry.jetpack], ids=lambda t: t.name
)
def test_every_jetson_and_its_versions(target: Target) -> None:
    assert f"`{target.name.removesuffix('-jp7')}`" in GUIDE
    column = {"6.2": 0, "7.2": 1}[target.jetpack]
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", GUIDE, re.MULTILINE)
    versions = {name: values for name, *values in rows}
    assert versions["CUDA, TensorRT"][column] == f"{target.cuda}, {target.tensorrt}"
    assert versions["Ubuntu, Python"][column].endswith(f", {target.python}")
    assert versions["dialect of the language model"][column] == f"`{target.dialect}`"
    assert versions["Jetson Linux (`/etc/nv_tegra_release`)"][column].startswith(L4T[target.jetpack])
