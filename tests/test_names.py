"""A name means one thing: across the product, in the field's words."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import ROOT

PARTS = ("divprune_edge", "export", "models", "plugins", "runtime")
FILES = [
    file
    for part in PARTS
    for file in sorted((ROOT / part).rglob("*.py"))
    if "trainer" not in file.parts and not (part == "divprune_edge" and set(PARTS[1:]) & set(file.parts))
]
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "runtime/serve/page").iterdir(), ROOT / "README.md"]


def test_no_two_public_classes_have_one_name() -> None:
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(file.relative_to(ROOT))
    assert len(found) > 200
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


@pytest.mark.parametrize(
    ("word", "instead", "elsewhere"),
    [
        # What the demo checkpoint was taught to be asked has it, and so has its file.
        (r"\bpictures?\b(?!\.png)", "image", ("models/demo", "export/examples.py")),
        (r"\bthe truth\b", "expected", ()),
        (r"\bin all\b[).,\"]", "total", ()),
    ],
)
def test_the_word_of_the_field(word: str, instead: str, elsewhere: tuple[str, ...]) -> None:
    said = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in (*FILES, *PAGES)
        if not str(file.relative_to(ROOT)).startswith(elsewhere)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line, re.IGNORECASE) and "What is in the picture" not in line
    ]
    assert said == [], f"write '{instead}'"
