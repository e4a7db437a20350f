"""The documentation says what the code does."""

from __future__ import annotations

from conftest import ROOT

from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.signals import SIGNALS


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
