"""Several images in one question: two scenes side by side in a prompt, and a clip in which one shape moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .questions import Asker, Question, references
from .scenes import Object, Scene, is_free, reach_of

ORDINALS = ("first", "second")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NEAREST, FARTHEST = 0.2, 0.32
"""How far a shape moves during a clip, as a fraction of the image's side."""

STILL_TYPES = ("color", "shape", "count", "exist")
"""What a clip is asked of beside motion: what no motion changes."""

WHICH_MORE = ("Which picture has more shapes?", "In which picture are more shapes?")
WHICH_WAY = ("Which way does the {a} move?", "Where does the {a} move?")
WHAT_MOVES = ("What moves?", "Which shape moves?")

TEXTS = (*ORDINALS, *DIRECTIONS, *WHICH_MORE, *WHICH_WAY, *WHAT_MOVES, "In the picture,")
"""Texts with all the words of these questions that the others may lack."""


@dataclass(frozen=True)
class DrawnClip:
    """A scene, in which shape number `thing` moves `distance` in a direction, from the first frame to the last."""

    scene: Scene
    thing: int
    direction: str
    distance: float

    def frame(self, share: float) -> Scene:
        """The scene when this share of the motion is done, 0 to 1."""
        moved = _moved(self.scene.objects[self.thing], self.direction, share * self.distance)
        objects = [moved if i == self.thing else thing for i, thing in enumerate(self.scene.objects)]
        return replace(self.scene, objects=tuple(objects))

    def frames(self, count: int) -> list[Scene]:
        """So many frames, evenly spaced in time."""
        return [self.frame(i / (count - 1)) for i in range(count)]


def sample_clip(scene: Scene, rng: np.random.Generator) -> DrawnClip | None:
    """A motion that stays in the image and meets nothing, if the scene has room for one."""
    distance = float(rng.uniform(NEAREST, FARTHEST))
    ways = [(i, name) for i in range(len(scene.objects)) for name in DIRECTIONS]
    for choice in rng.permutation(len(ways)):
        thing, direction = ways[choice]
        clip = DrawnClip(scene, thing, direction, distance)
        if all(_is_clear(clip.frame(share), clip.thing) for share in np.linspace(0, 1, 5)):
            return clip
    return None


def ask_clip(clip: DrawnClip, asker: Asker, rng: np.random.Generator) -> list[Question]:
    """Questions: where a shape moves, which one does, and one of each type that motion leaves alone."""
    thing = clip.scene.objects[clip.thing]
    found = [Question("moves", "moves", str(rng.choice(WHAT_MOVES)), f"{thing.color} {thing.shape}")]
    if names := references(clip.scene, thing):
        text = str(rng.choice(WHICH_WAY)).format(a=rng.choice(names))
        found.append(Question("motion", "motion", text, clip.direction))
    still = (asker.ask(clip.scene, kind) for kind in STILL_TYPES)
    return [*found, *(question for question in still if question is not None)]


def ask_pair(
    scenes: Sequence[Scene], asker: Asker, rng: np.random.Generator, mix: Sequence[str]
) -> list[Question]:
    """Questions of the types in `mix`, each about one of two images by name, and which image has more shapes."""
    found = []
    for kind in mix:
        which = int(rng.integers(2))
        if (question := asker.ask(scenes[which], kind)) is not None:
            text = f"In the {ORDINALS[which]} picture, {question.text[0].lower()}{question.text[1:]}"
            found.append(replace(question, text=text))
    first, second = (len(scene.objects) for scene in scenes)
    if first != second:
        more = ORDINALS[int(second > first)]
        found.append(Question("more", "more", str(rng.choice(WHICH_MORE)), more))
    return found


def _moved(thing: Object, direction: str, distance: float) -> Object:
    across, down = DIRECTIONS[direction]
    return replace(thing, x=thing.x + across * distance, y=thing.y + down * distance)


def _is_clear(scene: Scene, index: int) -> bool:
    """Whether a shape is inside the image and apart from all others and the sign."""
    thing = scene.objects[index]
    others = scene.objects[:index] + scene.objects[index + 1 :]
    reach = reach_of(thing.shape, thing.radius)
    inside = all(reach < value < 1 - reach for value in (thing.x, thing.y))
    return inside and is_free(thing.x, thing.y, reach, others, scene.sign)
