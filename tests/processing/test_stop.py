"""Stop strings, wherever the pieces are cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from divprune_edge.processing.stop import StopStrings


def feed(strings: list[str], pieces: list[str]) -> tuple[str, bool]:
    stops = StopStrings(strings)
    text = ""
    for piece in pieces:
        text += stops.push(piece)
        if stops.found():
            return text, True
    return text + stops.finish(), stops.found()


def test_text_before_the_first_stop_string() -> None:
    assert feed(["END"], ["one E", "N", "Dtwo"]) == ("one ", True)
    assert feed(["END"], ["one E", "N", "two"]) == ("one ENtwo", False)
    assert feed(["END"], ["one EN"]) == ("one EN", False)
    assert feed([], ["one END"]) == ("one END", False)


def test_text_is_held_back_only_while_it_could_be_a_stop_string() -> None:
    stops = StopStrings(["\n\n", "USER:"])
    assert stops.push("a\nU") == "a\n"
    assert stops.push("S") == ""
    assert stops.push("A") == "USA"


@settings(deadline=None)
@given(
    text=st.text("abc", max_size=30),
    strings=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_cutting_does_not_matter(text: str, strings: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    out, found = feed(strings, pieces)
    hits = [text.index(string) for string in strings if string in text]
    assert found == bool(hits)
    # Piecewise, the stop string that is complete first wins; it may begin after one that ends later.
    assert out == text if not hits else text.startswith(out) and len(out) >= min(hits)
    assert not any(string in out for string in strings)
