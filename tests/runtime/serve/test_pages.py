"""docs/serving.md lists what there is, and the README's examples are those that run."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT, run_code
from PIL import Image

from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.serve.answers import _STATUS
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.metrics import Metrics
from divprune_edge.runtime.serve.schema import ChatRequest

from .conftest import Served

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    return PAGE.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0]


def limits() -> str:
    """Return the table: names, defaults, and what the class says of each."""
    said = dict(
        re.findall(r"^ {8}(\w+): (.*?)(?=\n {8}\w+: |\n {4}\Z|\Z)", ServerLimits.__doc__ or "", re.M | re.S)
    )
    rows = ["| limit | default | |", "|---|---:|---|"]
    for field in fields(ServerLimits):
        text = " ".join(said[field.name].split()).rstrip(".")
        rows.append(f"| `{field.name}` | {field.default:,} | {text} |")
    return "\n".join(rows) + "\n"


def metrics() -> str:
    rows = ["| metric | |", "|---|---|"]
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.documentation} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("table", [limits, metrics])
def test_tables_are_those_of_the_code(table: object) -> None:
    assert callable(table)
    assert between(table.__name__) == table(), "python -m tests.runtime.serve.test_pages"


def test_every_status_is_told() -> None:
    told = {
        code: int(status)
        for status, codes in re.findall(r"^\| (\d+) \| (.*) \|$", between("errors"), re.M)
        for code in re.findall(r"`([\w-]+)`", codes)
    }
    assert told == {code: status for code, (status, _) in _STATUS.items()} | {"server-failed": 500}


def test_every_field_is_told() -> None:
    told = set(re.findall(r"`([a-z_]+)", PAGE))
    passed_over = {
        "user",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "response_format",
        "store",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "min_p",
        "modalities",
        "service_tier",
        "metadata",
        "reasoning_effort",
    }
    assert set(ChatRequest.model_fields) - passed_over <= told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Image.open(IMAGE) as picture:
        picture.convert("RGB").save(tmp_path / "cat.jpg", quality=95)
    return tmp_path


def examples(language: str) -> list[str]:
    section = README.split("\n## Serve\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def test_the_examples_with_curl(server: Served, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("unproven: the README's examples with curl, without curl")
    script = "".join(re.sub(r"^\$ ", "", line) for line in examples("console")[-1].splitlines(keepends=True))
    assert "curl" in script
    script = script.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    ran = subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert '"content":"' in ran.stdout and '"visual_tokens":58' in ran.stdout, ran.stdout


def test_the_examples_with_openai(server: Served, folder: Path) -> None:
    (code,) = examples("python")
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    ran = run_code(code, folder)
    assert "58" in ran.stdout and len(ran.stdout.splitlines()) >= 2, ran.stdout


if __name__ == "__main__":
    text = PAGE
    for table in (limits, metrics):
        mark = f"<!-- {table.__name__} -->\n"
        text = re.sub(f"{re.escape(mark)}.*?(?=<!-- /)", lambda _, m=mark, t=table: m + t(), text, flags=re.S)
    (ROOT / "docs/serving.md").write_text(text, encoding="utf-8")
