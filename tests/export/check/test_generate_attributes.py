"""Tables of attributes come from checkers in C++: each form that is understood, and what must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.export.check.generate_attributes import main, read_checkers, table_json

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILE = r"""
/* DEFINE_OP_CHECKER(Comment) { */
#define DEFINE_OP_EMPTY_CHECKER(op)        \
    DEFINE_OP_CHECKER(op) {}

void sizeHelper(ImporterContext* ctx, NodeProto const& node, std::vector<Status>& errors, size_t const nodeIndex)
{
    OnnxAttrs attrs(node, ctx);
    int32_t size = attrs.get<int32_t>("size", 3);
    STATIC_CHECK(size == 3 && "No \"other\" {size}.", ErrorCode::kBAD, node, errors, nodeIndex);
    for (auto s : attrs.get<std::vector<int32_t>>("steps", std::vector<int32_t>(2, 1)))
        STATIC_CHECK((s == 1) && "Steps.", ErrorCode::kBAD, node, errors, nodeIndex);
}

DEFINE_OP_EMPTY_CHECKER(Plain)

DEFINE_OP_CHECKER(Bad)
{
    STATIC_CHECK(false, ErrorCode::kBAD, node, errors, nodeIndex);
}

DEFINE_OP_CHECKER(Helped)
{
    sizeHelper(ctx, node, errors, nodeIndex);
    emptyOutputChecker(ctx, node, errors, nodeIndex, 2);
}

DEFINE_OP_CHECKER(Same)
{
    checkHelped(ctx, node, errors, nodeIndex);
}
"""


def entry(body: str) -> Any:
    """Return what a checker of that body asks: an entry, a list's name, or nothing."""
    text = "DEFINE_OP_CHECKER(It)\n{\n    OnnxAttrs attrs(node, ctx);\n" + body + "\n}\n"
    found = read_checkers(text)
    lists = [name for name in ("refused", "unconstrained") if "It" in found[name]]
    return lists[0] if lists else found["operators"]["It"]


def check(condition: str) -> str:
    return f'STATIC_CHECK({condition} && "Not, this (time).", ErrorCode::kBAD, node, errors, nodeIndex);'


def test_checkers_become_a_table() -> None:
    helped = {"values": {"size": [3]}, "unread": ["steps"], "outputs": 2}
    assert read_checkers(FILE) == {
        "operators": {"Helped": helped, "Same": helped},
        "refused": ["Bad"],
        "unconstrained": ["Plain"],
    }


@pytest.mark.parametrize(
    "body",
    [
        check('!attrs.count("a")'),
        check('(!attrs.count("a"))'),
        check('attrs.count("a") == 0'),
        'bool const has = static_cast<bool>(attrs.count("a"));' + check("!has"),
        'bool const has = attrs.count("a") > 0;' + check("has == false"),
        'bool has{attrs.count("a")};' + check("!has"),
    ],
)
def test_an_attribute_that_must_be_left_out(body: str) -> None:
    assert entry(body) == {"absent": ["a"]}


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ('auto const v = attrs.get<int32_t>("a", 0);' + check("!v"), [0]),
        ('float const v = attrs.get<float>("a", 1.f);' + check("(v == 1.5f || v == 1.f)"), [1.5, 1]),
        ('int32_t a{attrs.get("a", -2)};' + check("-2 == a"), [-2]),
        ('auto v = attrs.get("a", std::string("avg"));' + check('((v == "avg") || (v == "max"))'), ["avg", "max"]),
        (check('attrs.get<bool>("a", true) == true'), [1]),
        ('auto v = attrs.get<int>("a", 1);' + check("(v == 1 || v == 2)") + check("v == 1"), [1]),
    ],
)  # fmt: skip
def test_an_attribute_that_must_have_a_value(body: str, allowed: list[Any]) -> None:
    assert entry(body) == {"values": {"a": allowed}}


def test_several_conditions_in_one_check() -> None:
    body = 'auto v = attrs.get<int>("b", 0);' + check(
        '(!attrs.count("a")) && !v && (helper(v) || ctx->old())'
    )
    assert entry(body) == {"absent": ["a"], "values": {"b": [0]}, "unread": ["b"]}
    assert entry(check("node.output().size() == 1")) == {"outputs": 1}
    assert entry('auto t = attrs.get<int>("to");' + check("convertDtype(t, &type)")) == "unconstrained"


@pytest.mark.parametrize(
    "body",
    [
        'if (ctx->getOpsetVersion() < 10) {' + check('!attrs.count("a")') + "}",
        "if (early) return; " + check('!attrs.count("a")'),
        "if (x) " + check('attrs.get<int>("a", 0) == 0'),
        'int v = attrs.get<int>("a", 0); v = 0;' + check("v == 0"),
        'int v = attrs.get<int>("a", 0); v++;' + check("!v"),
        'int v = attrs.get<int>("a", 3);' + check("v == 0"),
        'auto v = attrs.get<int>("a", 0) + attrs.get<int>("a", 1);' + check("v == 0"),
        'auto v = attrs.get<int>("a", 0);' + check("v == ctx->limit()"),
        'auto v = attrs.get<std::string>("a", "x");' + check('v == "two words"'),
        'auto v = attrs.get<int>("a", 0);' + check("(!v || ctx->fine())"),
        check('attrs.count("a")'),
        'STATIC_CHECK(ctx->fine() || !attrs.count("a") && "Not.", ErrorCode::kBAD, node, errors, nodeIndex);',
        'if (attrs.count("a")) { ADD_STATIC_ERROR("Not.", ErrorCode::kBAD, node, nodeIndex, errors); }',
    ],
)  # fmt: skip
def test_what_is_not_understood_is_unread(body: str) -> None:
    assert entry(body) == {"unread": ["a"]}


@pytest.mark.parametrize(
    "body",
    [
        "for (auto const& attr : node.attribute()) { look(attr.name()); }",
        "elsewhere(ctx, node, errors, nodeIndex);",
        check("fine(ctx, node, errors, nodeIndex)"),
        "look(attrs);",
        check("!attrs.count(name)"),
    ],
)
def test_where_the_names_are_not_seen_any_is_unread(body: str) -> None:
    assert entry(body) == {"unread": ["*"]}


def test_a_helper_behind_a_condition_is_unread() -> None:
    text = FILE.replace("    sizeHelper(ctx", "    if (ctx->old()) sizeHelper(ctx")
    assert read_checkers(text)["operators"]["Helped"] == {"unread": ["size", "steps"], "outputs": 2}


@pytest.mark.parametrize(
    ("before", "after", "code", "name"),
    [
        ("DEFINE_OP_", "DEFINE_", "source-not-recognized", "DEFINE_OP_CHECKER"),
        ("(Same)", "(Plain)", "source-damaged", "'Plain' twice"),
        ("nodeIndex, 2);\n}", "nodeIndex, 2);\n", "source-damaged", "'Helped'"),
        ("checkHelped(ctx, node, errors, nodeIndex);\n}", "", "source-damaged", "'Same'"),
        ("DEFINE_OP_CHECKER(Same)\n{", "DEFINE_OP_CHECKER(Same)\n", "source-damaged", "'Same'"),
    ],
)
def test_a_damaged_text_is_one_sentence(before: str, after: str, code: str, name: str) -> None:
    assert before in FILE
    with refused(code, name) as caught:
        read_checkers(FILE.replace(before, after))
    assert "\n" not in str(caught.value)


def test_as_a_command(tmp_path: Path) -> None:
    source, output = tmp_path / "checkers.cpp", tmp_path / "table.json"
    source.write_text(FILE, encoding="utf-8")
    main([str(source), str(output), "--source", "a file", "--revision", REVISION, "--tensorrt", "10.9"])
    table = json.loads(output.read_text(encoding="utf-8"))
    assert (table["source"], table["revision"], table["tensorrt"]) == ("a file", REVISION, "10.9")
    assert table["refused"] == ["Bad"]
    assert "other" not in output.read_text(encoding="utf-8"), "no message is stored"
    with refused("source-unreadable", "missing.cpp"):
        main([str(tmp_path / "missing.cpp"), str(output), "--revision", REVISION, "--tensorrt", "10.9"])
    with refused("revision-invalid", "--revision 'main'"):
        table_json(FILE, "a file", "main", "10.9")
    with refused("tensorrt-version-invalid", "new"):
        table_json(FILE, "a file", REVISION, "new")
