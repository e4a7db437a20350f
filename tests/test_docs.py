"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from divprune_edge.models.schedules import METHODS, schedule_of
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.signals import SIGNALS
from docs.generate_evidence import DATA, MARKED, PAGES, filled, read

EVIDENCE = read()


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_selector_with_its_node_source_and_deviations() -> None:
    text = words((ROOT / "docs" / "selectors.md").read_text(encoding="utf-8"))
    for name, selector in SELECTORS.items():
        assert f"### `{name}`" in text
        assert f"Node `{selector.op_type}`" in text
        for sentence in selector.deviations:
            assert words(sentence) in text, (name, sentence)
        if selector.citation != "baseline":
            assert words(selector.citation) in text
    for signal, meaning in SIGNALS.items():
        assert f"| `{signal}` | {meaning} |" in text


def test_every_schedule_with_its_source_its_counts_and_deviations() -> None:
    text = words((ROOT / "docs" / "schedules.md").read_text(encoding="utf-8"))
    for name, method in METHODS.items():
        assert f"### `{name}`" in text
        assert method.citation == "control" or words(method.citation) in text
        assert f"Positions: {method.numbering}." in text
        for sentence in method.deviations:
            assert words(sentence) in text, (name, sentence)
        cuts = schedule_of(name, 32, 576).cuts
        assert ", ".join(f"{cut.keep} from layer {cut.before} on" for cut in cuts) in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_evidence_are_those_of_the_data(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, EVIDENCE) == text, "run make evidence"
    assert text.count("<!-- evidence: ") == text.count("<!-- /evidence -->") == len(MARKED.findall(text))


def test_every_component_is_told_on_a_page() -> None:
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    markers = [found[1] for text in texts.values() for found in MARKED.finditer(text)]
    assert sorted(markers) == ["components", "levels", "summary"]
    for component in EVIDENCE.components.values():
        assert f"\n## {component.heading}\n" in texts["evidence.md"]
        assert (ROOT / "docs" / component.page).exists()


def test_evidence_can_be_repeated() -> None:
    """The tests that a statement names exist; what ran on a GPU names it, and a real TensorRT its version."""
    for component in EVIDENCE.components.values():
        for known in component.known:
            for path in re.findall(r"`(tests/[\w/.]+)", known.how):
                assert (ROOT / path).exists(), (known.what, path)
            assert known.level != "E3" or "NVIDIA" in known.how
            assert known.level != "E2b" or "TensorRT-RTX 1." in known.how


@pytest.mark.parametrize("wrong", ['level = "E9"', 'targets = ["mars"]\nlevel = "E2"'])
def test_a_level_or_target_that_is_not_defined(wrong: str, tmp_path: Path) -> None:
    data = tmp_path / "evidence.toml"
    text = DATA.read_text(encoding="utf-8")
    data.write_text(f'{text}\n[[component.known]]\nwhat = "x"\nhow = "y"\n{wrong}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not defined"):
        read(data)


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/demo/**/*.md")]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
