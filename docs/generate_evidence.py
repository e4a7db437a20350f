"""Write what is known, and how, from ``docs/evidence.toml`` into README and ``docs/evidence.md``.

It stands between ``<!-- evidence: NAME -->`` and ``<!-- /evidence -->``, where NAME is ``levels``, ``summary``, or
``components`` for a section of each: ``make evidence``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.files import write_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "evidence.toml"
PAGES = (ROOT / "README.md", ROOT / "docs" / "evidence.md")
MARKED = re.compile(r"(?<=<!-- evidence: )(\w+)( -->\n).*?(?=<!-- /evidence -->)", re.DOTALL)


@dataclass(frozen=True)
class Known:
    """One statement: what was checked, how, at which level, and the ids of the targets that it speaks of.

    ``rewritten``: the code that was checked has been rewritten since.
    """

    what: str
    how: str
    level: str
    targets: tuple[str, ...]
    rewritten: bool


@dataclass(frozen=True)
class Component:
    """A part of the project, the page of docs/ that describes it, and all that is known of it."""

    title: str
    page: str
    known: tuple[Known, ...]

    @property
    def heading(self) -> str:
        """The title as a sentence begins."""
        return self.title[0].upper() + self.title[1:]

    @property
    def anchor(self) -> str:
        """What a heading is linked by."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Evidence:
    """The data: meanings of levels, titles and architectures of targets, components by their id."""

    levels: dict[str, str]
    targets: dict[str, tuple[str, str]]
    components: dict[str, Component]

    def text(self, name: str) -> str:
        """Return what a marker asks for."""
        if name == "levels":
            return _table(["level", "meaning"], self.levels.items())
        if name == "summary":
            rows = (
                [f"[{c.title}](docs/evidence.md#{c.anchor})", *self._last(c)]
                for c in self.components.values()
            )
            return _table(["", *(f"{title} ({sm})" for title, sm in self.targets.values())], rows)
        return "\n".join(map(self._section, self.components.values()))

    def _section(self, component: Component) -> str:
        rows = (
            [
                known.what,
                known.how,
                self._architectures(known),
                f"({known.level})" if known.rewritten else known.level,
            ]
            for known in component.known
        )
        table = _table(["statement", "how it is known", "for", "level"], rows)
        return f"## {component.heading}\n\nDescribed in [{component.page}]({component.page}).\n\n{table}"

    def _last(self, component: Component) -> list[str]:
        order = list(self.levels)
        levels = {
            target: [k.level for k in component.known if target in k.targets and not k.rewritten]
            for target in self.targets
        }
        return [max(found, key=order.index, default=order[0]) for found in levels.values()]

    def _architectures(self, known: Known) -> str:
        everything = set(known.targets) == set(self.targets)
        return "any" if everything else ", ".join(self.targets[target][1] for target in known.targets)


def read(path: Path = DATA) -> Evidence:
    """Read the data; a level or target that is not defined is a ValueError."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    levels = {level["name"]: level["meaning"] for level in data["level"]}
    targets = {target["id"]: (target["title"], target["sm"]) for target in data["target"]}
    components = {
        entry["id"]: Component(
            entry["title"],
            entry["page"],
            tuple(
                Known(
                    known["what"],
                    known["how"],
                    known["level"],
                    tuple(known.get("targets", targets)),
                    known.get("rewritten", False),
                )
                for known in entry["known"]
            ),
        )
        for entry in data["component"]
    }
    for name, component in components.items():
        for known in component.known:
            if known.level not in levels or not set(known.targets) <= set(targets):
                raise ValueError(
                    f"'{name}' has level '{known.level}' for {known.targets}: one is not defined."
                )
    return Evidence(levels, targets, components)


def filled(text: str, evidence: Evidence) -> str:
    """Return a page with its tables as the data has them."""
    return MARKED.sub(lambda found: f"{found[1]}{found[2]}{evidence.text(found[1])}", text)


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    for page in PAGES:
        write_whole(page, filled(page.read_text(encoding="utf-8"), read()))
