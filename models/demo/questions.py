"""Questions about a scene, and the expected answers: only what a person could answer from the picture.

Nine types. A question is asked only where its answer is beyond doubt: "the circle" only if there is
exactly one, "bigger" only from a ratio of 1.4, "left of" only with a clear distance, "top left"
only for a centre clearly inside that ninth of the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .scenes import COLORS, MAX_OBJECTS, SHAPES, Object, Scene

TYPES = ("color", "shape", "count", "exist", "where", "at", "bigger", "relation", "digits")

REGIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""The nine parts of a picture in raster order."""

REGION_MARGIN = 0.05
BIGGER_RATIO, BIGGER_AREA_RATIO = 1.4, 1.25
SMALL_RADIUS, BIG_RADIUS = 0.1, 0.122
RELATION_DISTANCE, RELATION_SLOPE = 0.15, 0.7

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {shape}?",
        "What colour is the {shape}?",
        "Which color does the {shape} have?",
        "Name the color of the {shape}.",
    ),
    "shape": (
        "What shape is the {color} one?",
        "Which shape is {color}?",
        "What shape is the {color} thing?",
        "What is the {color} shape?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} do you see?",
        "How many {things} are in the picture?",
        "Count the {things}.",
    ),
    "exist": (
        "Is there a {thing}?",
        "Do you see a {thing}?",
        "Can you see a {thing}?",
        "Is a {thing} in the picture?",
    ),
    "where": ("Where is the {a}?", "In which part of the picture is the {a}?", "Where do you see the {a}?"),
    "at": ("What is at the {region}?", "What is in the {region}?", "Which shape is at the {region}?"),
    "bigger": ("Is the {a} bigger than the {b}?", "Is the {a} larger than the {b}?"),
    "smaller": ("Is the {a} smaller than the {b}?",),
    "left": ("Is the {a} left of the {b}?", "Is the {a} to the left of the {b}?"),
    "right": ("Is the {a} right of the {b}?", "Is the {a} to the right of the {b}?"),
    "above": ("Is the {a} above the {b}?",),
    "below": ("Is the {a} below the {b}?", "Is the {a} under the {b}?"),
    "size": ("Is the {a} big?",),
    "bigger-smaller": ("Is the {a} bigger or smaller than the {b}?",),
    "left-right": ("Is the {a} left or right of the {b}?", "Is the {a} to the left or right of the {b}?"),
    "above-below": ("Is the {a} above or below the {b}?",),
    "digits": (
        "What number is on the sign?",
        "Which number do you see?",
        "Read the number.",
        "What does the sign say?",
    ),
}


@dataclass(frozen=True)
class Question:
    """`form` names the balance group: within it every answer is asked for equally often."""

    type: str
    form: str
    text: str
    answer: str


class Asker:
    """Picks questions so that the answers of every form stay balanced over many scenes.

    The choice depends on the scenes and on the answers given so far alone, never on a model.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.asked: Counter[tuple[str, str]] = Counter()

    def ask(self, scene: Scene, type_: str) -> Question | None:
        """One question of a type, or None if the scene admits none (or only overrepresented answers)."""
        options = candidates(scene, type_)
        if not options:
            return None
        forms = sorted({form for form, _, _ in options})
        form = forms[self.rng.integers(len(forms))]
        by_answer: dict[str, list[dict[str, str]]] = {}
        for other, answer, slots in options:
            if other == form:
                by_answer.setdefault(answer, []).append(slots)
        fewest = min(self.asked[form, answer] for answer in by_answer)
        rarest = sorted(answer for answer in by_answer if self.asked[form, answer] == fewest)
        answer = rarest[self.rng.integers(len(rarest))]
        if fewest > self._floor(form) + SLACK:
            return None
        self.asked[form, answer] += 1
        slots = by_answer[answer][self.rng.integers(len(by_answer[answer]))]
        templates = TEMPLATES[form if form in TEMPLATES else type_]
        text = templates[self.rng.integers(len(templates))].format(**slots)
        return Question(type_, form, text, answer)

    def _floor(self, form: str) -> int:
        """How often the rarest of the form's possible answers was asked for."""
        answers = ANSWERS[form]
        return min(self.asked[form, answer] for answer in answers) if answers else 10**9


SLACK = 3
"""No answer may be ahead of the rarest answer of its form by more than this."""

Candidate = tuple[str, str, dict[str, str]]  # form, answer, slots of the template


def _unique(scene: Scene, **wanted: str) -> Object | None:
    found = [o for o in scene.objects if all(getattr(o, name) == value for name, value in wanted.items())]
    return found[0] if len(found) == 1 else None


def references(scene: Scene, thing: Object) -> list[str]:
    """Phrases that mean exactly this object: 'red circle', 'circle', 'red shape'."""
    names = []
    if _unique(scene, color=thing.color, shape=thing.shape):
        names.append(f"{thing.color} {thing.shape}")
    if _unique(scene, shape=thing.shape):
        names.append(thing.shape)
    if _unique(scene, color=thing.color):
        names.append(f"{thing.color} shape")
    return names


def region_of(x: float, y: float) -> str | None:
    """The ninth of the picture that a point lies clearly inside, if any."""
    columns = []
    for value in (x, y):
        third = min(2, int(value * 3))
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < REGION_MARGIN:
            return None
        columns.append(third)
    return REGIONS[columns[1] * 3 + columns[0]]


def _colors(scene: Scene) -> Iterator[Candidate]:
    for shape in SHAPES:
        if thing := _unique(scene, shape=shape):
            yield "color", thing.color, {"shape": shape}


def _shapes(scene: Scene) -> Iterator[Candidate]:
    for color in COLORS:
        if thing := _unique(scene, color=color):
            yield "shape", thing.shape, {"color": color}


def plural(shape: str) -> str:
    """'crosses', 'circles', …"""
    return "crosses" if shape == "cross" else shape + "s"


def _counts(scene: Scene) -> Iterator[Candidate]:
    yield "count-all", str(len(scene.objects)), {"things": "shapes"}
    for color in COLORS:
        number = sum(o.color == color for o in scene.objects)
        if number <= 3:
            yield "count-color", str(number), {"things": f"{color} shapes"}
    for shape in SHAPES:
        number = sum(o.shape == shape for o in scene.objects)
        if number <= 3:
            yield "count-shape", str(number), {"things": plural(shape)}


def _exists(scene: Scene) -> Iterator[Candidate]:
    colors, shapes = {o.color for o in scene.objects}, {o.shape for o in scene.objects}
    pairs = {(o.color, o.shape) for o in scene.objects}
    for color in COLORS:
        yield "exist-color", _yes(color in colors), {"thing": f"{color} shape"}
        for shape in SHAPES:
            # A missing pair is asked for where its colour or its shape is there: the hard half.
            if (color, shape) in pairs or color in colors or shape in shapes:
                yield "exist-pair", _yes((color, shape) in pairs), {"thing": f"{color} {shape}"}
    for shape in SHAPES:
        yield "exist-shape", _yes(shape in shapes), {"thing": shape}


def _wheres(scene: Scene) -> Iterator[Candidate]:
    for thing in scene.objects:
        if region := region_of(thing.x, thing.y):
            for name in references(scene, thing):
                yield "where", region, {"a": name}


def _ats(scene: Scene) -> Iterator[Candidate]:
    """A region that holds one shape clearly, and no part of another thing's middle near it."""
    for thing in scene.objects:
        region = region_of(thing.x, thing.y)
        if region is None:
            continue
        row, column = divmod(REGIONS.index(region), 3)
        others = [(o.x, o.y) for o in scene.objects if o is not thing]
        if scene.sign is not None:
            others.append((scene.sign.x, scene.sign.y))
        if not any(_near(x, column) and _near(y, row) for x, y in others):
            yield "at", f"{thing.color} {thing.shape}", {"region": region}


def _near(value: float, third: int) -> bool:
    return third / 3 - REGION_MARGIN < value < (third + 1) / 3 + REGION_MARGIN


def _pairs(scene: Scene) -> Iterator[tuple[Object, Object, str, str]]:
    for a in scene.objects:
        for b in scene.objects:
            if a is not b:
                for name in references(scene, a):
                    for other in references(scene, b):
                        yield a, b, name, other


def _biggers(scene: Scene) -> Iterator[Candidate]:
    for a, b, name, other in _pairs(scene):
        if max(a.radius, b.radius) < BIGGER_RATIO * min(a.radius, b.radius):
            continue
        big, small = (a, b) if a.radius > b.radius else (b, a)
        if big.area >= BIGGER_AREA_RATIO * small.area:
            yield "bigger", _yes(big is a), {"a": name, "b": other}
            yield "smaller", _yes(small is a), {"a": name, "b": other}
            yield "bigger-smaller", "bigger" if big is a else "smaller", {"a": name, "b": other}


def _relations(scene: Scene) -> Iterator[Candidate]:
    for a, b, name, other in _pairs(scene):
        dx, dy = b.x - a.x, b.y - a.y
        slots = {"a": name, "b": other}
        if abs(dx) >= max(RELATION_DISTANCE, RELATION_SLOPE * abs(dy)):
            yield "left", _yes(dx > 0), slots
            yield "right", _yes(dx < 0), slots
            yield "left-right", "left" if dx > 0 else "right", slots
        if abs(dy) >= max(RELATION_DISTANCE, RELATION_SLOPE * abs(dx)):
            yield "above", _yes(dy > 0), slots
            yield "below", _yes(dy < 0), slots
            yield "above-below", "above" if dy > 0 else "below", slots


def _sizes(scene: Scene) -> Iterator[Candidate]:
    for thing in scene.objects:
        if not SMALL_RADIUS < thing.radius < BIG_RADIUS:
            for name in references(scene, thing):
                yield "size", _yes(thing.radius >= BIG_RADIUS), {"a": name}


def _digits(scene: Scene) -> Iterator[Candidate]:
    if scene.sign is not None:
        yield "digits", scene.sign.digits, {}


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


CANDIDATES: dict[str, Callable[[Scene], Iterator[Candidate]]] = {
    "color": _colors,
    "shape": _shapes,
    "count": _counts,
    "exist": _exists,
    "where": _wheres,
    "at": _ats,
    "bigger": _biggers,
    "relation": _relations,
    "digits": _digits,
    "size": _sizes,
}


@lru_cache(maxsize=64)
def candidates(scene: Scene, type_: str) -> tuple[Candidate, ...]:
    """Everything that may be asked about a scene, with the true answers."""
    return tuple(CANDIDATES[type_](scene))


_YES_NO_FORMS = (
    "size",
    "exist-color",
    "exist-shape",
    "exist-pair",
    "bigger",
    "smaller",
    "left",
    "right",
    "above",
    "below",
)
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "count-all": tuple(str(n) for n in range(2, MAX_OBJECTS + 1)),
    "count-color": ("0", "1", "2", "3"),
    "count-shape": ("0", "1", "2", "3"),
    "where": REGIONS,
    "at": tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES),
    "bigger-smaller": ("bigger", "smaller"),
    "left-right": ("left", "right"),
    "above-below": ("above", "below"),
    "digits": (),
} | dict.fromkeys(_YES_NO_FORMS, ("yes", "no"))
"""Possible answers per form; the digits of a number are drawn uniformly and need no balancing."""
