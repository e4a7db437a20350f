"""Training pictures on disk: drawn once by several processes, read as memory maps.

A folder holds `pixels.npy` uint8 [n, size, size, 3], `owners.npy` uint8 [n, patches] (see
`render_with_owners`), and `things.npy` float32 [n, 5, 5] with shape, colour (indices, -1: none),
x, y and radius per object. Scenes themselves are drawn again from their seed where questions are asked.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ..render import IMAGE_SIZE, PATCH, render_with_owners
from ..scenes import COLORS, MAX_OBJECTS, SHAPES, Scene, Split, sample_scene, scene_rng

CHUNK = 500


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split; `digits` is int8 [n, 3] with -1 where there is none."""

    split: Split
    seed: int
    pixels: NDArray[np.uint8]
    owners: NDArray[np.uint8]
    things: NDArray[np.float32]
    digits: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pixels)

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        return sample_scene(scene_rng(self.split, self.seed, index))


def draw_pictures(
    folder: Path, split: Split, seed: int, count: int, processes: int = 2, size: int = IMAGE_SIZE
) -> Pictures:
    """Draw `count` pictures into `folder`, or open them if they are all there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    stamp = f"{split.name} {seed} {count} {size}"
    if not done.exists() or done.read_text() != stamp:
        done.unlink(missing_ok=True)
        for name, dtype, shape in _arrays(count, size):
            open_memmap(folder / name, "w+", dtype, shape).flush()
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(processes) as pool:
            jobs = [
                pool.submit(_draw_chunk, folder, split, seed, start, min(start + CHUNK, count), size)
                for start in starts
            ]
            for number, job in enumerate(jobs, 1):
                job.result()
                if number % 10 == 0 or number == len(jobs):
                    print(f"pictures: {min(number * CHUNK, count)} of {count} drawn", flush=True)
        done.write_text(stamp)
    opened = {name: np.load(folder / name, mmap_mode="r") for name, _, _ in _arrays(count, size)}
    return Pictures(
        split, seed, opened["pixels.npy"], opened["owners.npy"], opened["things.npy"], opened["digits.npy"]
    )


def _arrays(count: int, size: int) -> tuple[tuple[str, type, tuple[int, ...]], ...]:
    return (
        ("pixels.npy", np.uint8, (count, size, size, 3)),
        ("owners.npy", np.uint8, (count, (size // PATCH) ** 2)),
        ("things.npy", np.float32, (count, MAX_OBJECTS, 5)),
        ("digits.npy", np.int8, (count, 3)),
    )


def _draw_chunk(folder: Path, split: Split, seed: int, start: int, stop: int, size: int) -> None:
    arrays = {name: open_memmap(folder / name, "r+") for name, _, _ in _arrays(0, size)}
    for index in range(start, stop):
        scene = sample_scene(scene_rng(split, seed, index))
        arrays["pixels.npy"][index], arrays["owners.npy"][index] = render_with_owners(scene, size)
        arrays["things.npy"][index], arrays["digits.npy"][index] = _facts(scene)


def _facts(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    things = np.full((MAX_OBJECTS, 5), -1, np.float32)
    for row, thing in enumerate(scene.objects):
        things[row] = (SHAPES.index(thing.shape), COLORS.index(thing.color), thing.x, thing.y, thing.radius)
    digits = np.full(3, -1, np.int8)
    if scene.sign is not None:
        digits[: len(scene.sign.digits)] = [int(d) for d in scene.sign.digits]
    return things, digits
