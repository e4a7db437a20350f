"""What JSON allows and nobody can mean is told in a clause, wherever it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import refused

from divprune_edge.ids import Ids
from divprune_edge.strict_json import JsonError, is_file, parse_json, read_json, well_formed

HOSTILE = {
    "[" * 100_000: "nested too deep",
    "[" * 70 + "]" * 70: "nested too deep",
    '{"a":' * 200 + "1" + "}" * 200: "nested too deep",
    '{"a": 1, "b": 2, "a": 3}': "says 'a' twice",
    '{"a": NaN}': "holds NaN",
    "[-Infinity]": "holds -Infinity",
    "1e999": "1e999, which is too large",
    "1" * 5000: "a number of 5000 digits",
    "1" * 41: "a number of 41 digits",
    "{": "Expecting",
    "\ufeff{}": "BOM",
    "": "Expecting value",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_what_nobody_can_mean(text: str, tmp_path: Path) -> None:
    with pytest.raises(JsonError, match=HOSTILE[text]):
        parse_json(text)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with refused("a-code", "a.json", "get another"):
        read_json(tmp_path / "a.json", code="a-code", advice="get another")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 60), 1 << 60)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_all_else_reads_as_ever(data: object) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(data, ensure_ascii=ascii_only)) == data


def test_half_a_pair_is_no_character() -> None:
    assert parse_json(r'{"a\ud83d": ["\ud83d\ude00", "\ude00x"]}') == {"a\ufffd": ["\U0001f600", "\ufffdx"]}
    assert well_formed("caf\udce9 \ud83d\ude00") == "caf\ufffd \U0001f600"


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "large").write_bytes(b"[" + b" " * 100 + b"]")
    for name, reason in {
        "latin": "utf-8",
        ".": "not a file",
        "none": "No such",
        "x" * 300: "too long",
    }.items():
        with refused("a", reason):
            read_json(tmp_path / name, code="a", advice="b")
    with refused("a", 102, 64):
        read_json(tmp_path / "large", code="a", advice="b", most=64)
    assert not is_file("x" * 300)


def test_other_tools_json_is_read_as_they_write_it() -> None:
    assert parse_json('{"a": "x\ty", "a": 2}', lenient=True) == {"a": 2}


@given(st.sets(st.integers(0, 40)))
def test_ids_are_a_sequence(ids: set[int]) -> None:
    wanted, found = sorted(ids), Ids(ids)
    assert list(found) == wanted
    assert [found[i] for i in range(-len(wanted), len(wanted))] == wanted * 2
    assert found[1:4] == tuple(wanted[1:4])
    assert [i for i in range(-1, 42) if i in found] == wanted
    assert Ids(found.entries()) == found
    assert hash(Ids(found.entries())) == hash(found)
