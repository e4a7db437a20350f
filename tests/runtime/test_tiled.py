"""Images in tiles from an image to the same ids as transformers: unpruned, pruned at once and pruned tile by tile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import IMAGE_TOKEN, TILED_VARIATIONS, grids, make_checkpoint
from exporting import close, export, plan_of
from images_made import noise_image
from PIL import Image
from raising import refused
from tilings import TINY_SHAPES

from divprune_edge import Pipeline
from divprune_edge.export.add_selector import add_selector, add_selectors, left_out
from divprune_edge.manifest import read_manifest
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.selectors.divprune import max_min_select
from divprune_edge.models.signals import CLASS_TOKEN
from divprune_edge.processing.assembly import assembly

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTION = "what is in the picture ?"
LATER = "how many red star ?"
SIDE, STEPS = 5, 64
FAMILIES = ("llava_next", "llava_onevision")
DIALECTS = ("portable", "onnxruntime", "static", "decomposed")
PER = ("image", "tile")
GREEDY = {"max_tokens": STEPS, "ignore_eos": True}
OF_CLASS_TOKEN = {name for name, selector in SELECTORS.items() if set(selector.signals) & set(CLASS_TOKEN)}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_per = pytest.mark.parametrize("per", PER)


@dataclass(frozen=True)
class Stock:
    """transformers' own model and image processor of a checkpoint."""

    folder: Path

    @cached_property
    def model(self) -> Any:
        torch.set_num_threads(1)
        found = transformers.AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        return found.eval()

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def processor(self) -> Any:
        return transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil")

    def pixels(self, *images: Image.Image) -> dict[str, Any]:
        """Return what the processor makes of a prompt's images."""
        return dict(self.processor(images=[list(images)], return_tensors="pt"))

    def features(self, *images: Image.Image) -> list[Any]:
        """Return the rows [m, D] of a prompt's images."""
        with torch.inference_mode():
            return list(self.model.get_image_features(**self.pixels(*images), return_dict=True).pooler_output)

    def ids(self, images: int, *turns: str) -> list[int]:
        """Return the ids of a conversation, one placeholder for each image of its first turn."""
        messages: list[Any] = [
            {"role": "assistant" if at % 2 else "user", "content": [{"type": "text", "text": text}]}
            for at, text in enumerate(turns)
        ]
        messages[0]["content"][:0] = [{"type": "image"}] * images
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text)["input_ids"])

    def generated(self, images: Sequence[Image.Image], question: str = QUESTION) -> list[int]:
        """Return what its own generate answers to the placeholders and pixels of a prompt."""
        place, counts = self.model.config.image_token_id, iter(map(len, self.features(*images)))
        runs = [[i] * next(counts) if i == place else [i] for i in self.ids(len(images), question)]
        return self._generate(
            input_ids=torch.tensor([[i for run in runs for i in run]]), **self.pixels(*images)
        )

    def spliced(self, kept: Any, *turns: str, steps: int = STEPS) -> list[int]:
        """Return the same with the rows [k, D] in the place of the conversation's only image."""
        ids = torch.tensor(self.ids(1, *turns))
        with torch.inference_mode():
            text = self.model.get_input_embeddings()(ids)
        place = int((ids == self.model.config.image_token_id).nonzero()[0])
        rows = torch.cat([text[:place], torch.as_tensor(kept), text[place + 1 :]])[None]
        return self._generate(steps, inputs_embeds=rows)

    def _generate(self, steps: int = STEPS, **inputs: Any) -> list[int]:
        length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        made = self.model.generate(
            **inputs,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            suppress_tokens=[self.model.config.image_token_id],
            eos_token_id=-1,
        )
        return list(made[0, length:].tolist())


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stock]:
    """Return transformers' side of a family's checkpoint; heads of 16, as dialect onnxruntime needs them."""

    @cache
    def get(family: str) -> Stock:
        options = TILED_VARIATIONS[f"{family}, plain"]
        text = {"head_dim": 16} if family == "llava_next" else {"hidden_size": 64}
        folder = make_checkpoint(tmp_path_factory.mktemp(family) / "tiny", **options, text=text)
        return Stock(folder)

    return get


@pytest.fixture(scope="module")
def bundle(stock: Callable[[str], Stock], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a bundle; nobody may write to it."""

    @cache
    def get(
        family: str, per: str = "image", keep: int = 9, dialect: str = "portable", **options: Any
    ) -> Path:
        room = {"capacity": 512} if dialect in ("static", "decomposed") else {}
        plan = plan_of(stock(family).folder, keep, per=per, dialect=dialect, **room, **options)
        return export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder

    return get


@pytest.fixture(scope="module")
def opened(bundle: Callable[..., Path]) -> Callable[..., Pipeline]:
    """Return the same, opened once."""

    @cache
    def get(*key: Any, **options: Any) -> Pipeline:
        return Pipeline(bundle(*key, **options), threads=1)

    return get


def groups(pipeline: Pipeline, image: Image.Image) -> list[Any]:
    """Return the places of the rows that a selector picks from at a time."""
    manifest = pipeline.bundle.manifest
    made = assembly(image.height, image.width, manifest.preprocessing.tiling)
    if manifest.assemble.per == "image":
        return [np.arange(len(made.rows))]
    return [np.flatnonzero(made.tile_of == tile) for tile in range(made.tile_of.max() + 1)]


def kept_by_hand(rows: Any, places: Sequence[Any], keep: int) -> Any:
    """Return which of the rows [m, D] DivPrune keeps of each group, ascending; all where there are no more."""
    kept = []
    for group in places:
        few = len(group) <= keep
        every = np.ones(len(group), bool)
        kept.append(group if few else group[max_min_select(rows[group], every, keep)])
    return np.sort(np.concatenate(kept))


# --- transformers' own -----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dialect", DIALECTS)
def test_unpruned_is_transformers_own_generate(
    family: str, dialect: str, stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    size = [(61, 150), (111, 50), (70, 70), (240, 320)][DIALECTS.index(dialect)]
    pipeline, image = opened(family, dialect=dialect).with_selector("none"), noise_image(*size)
    (rows,) = stock(family).features(image)
    answer = pipeline.ask(image, QUESTION, **GREEDY)
    assert answer.visual_tokens == len(answer.kept_indices) == len(rows)
    assert answer.prompt_tokens == len(rows) + len(stock(family).ids(1, QUESTION)) - 1
    assert list(answer.token_ids) == stock(family).generated([image])
    assert len(set(answer.token_ids)) > 1


@every_family
@every_per
@pytest.mark.parametrize("size", [(70, 70), (131, 77)])
def test_pruned_is_what_is_spliced_by_hand(
    family: str,
    per: str,
    size: tuple[int, int],
    stock: Callable[[str], Stock],
    opened: Callable[..., Pipeline],
) -> None:
    pipeline, image = opened(family, per), noise_image(*size)
    rows = stock(family).features(image)[0].numpy()
    kept = kept_by_hand(rows, groups(pipeline, image), 9)
    answer = pipeline.ask(image, QUESTION, **GREEDY)
    assert answer.kept_indices.tolist() == kept.tolist()
    assert answer.visual_tokens == len(kept) <= pipeline.visual_tokens
    assert list(answer.token_ids) == stock(family).spliced(rows[kept], QUESTION)


@every_family
def test_unpruned_tile_by_tile_is_read_line_by_line(
    family: str, stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    """Rows of tiles that lie abreast take turns."""
    image = noise_image(70, 105)
    answer = opened(family, "tile").with_selector("none").ask(image, QUESTION, **GREEDY)
    assert answer.kept_indices.tolist() == list(range(answer.visual_tokens))
    assert list(answer.token_ids) == stock(family).generated([image])


@every_family
@pytest.mark.parametrize(
    ("per", "keep", "size", "pruned"),
    [("image", 60, (35, 35), False), ("image", 60, (90, 1), False), ("tile", 26, (70, 70), True)],
)
def test_what_has_no_more_rows_than_k_is_not_pruned(
    family: str,
    per: str,
    keep: int,
    size: tuple[int, int],
    pruned: bool,
    stock: Callable[[str], Stock],
    opened: Callable[..., Pipeline],
) -> None:
    """Of a tile at the end of a line one of each five rows is a newline; that alone makes it more than 25."""
    pipeline, image = opened(family, per, keep), noise_image(*size)
    rows = stock(family).features(image)[0].numpy()
    kept = kept_by_hand(rows, groups(pipeline, image), keep)
    assert (len(kept) < len(rows)) == (pruned and family == "llava_next")
    answer = pipeline.ask(image, QUESTION, **GREEDY)
    assert answer.visual_tokens == len(kept)
    assert answer.kept_indices.tolist() == kept.tolist()
    assert list(answer.token_ids) == stock(family).spliced(rows[kept], QUESTION)


@every_family
def test_every_shape_has_as_many_rows_as_transformers_and_the_same(
    family: str, stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    pipeline, reference = opened(family).with_selector("none"), stock(family)
    vision, backend = pipeline.vision, pipeline.backend
    seen_grids, worst = set(), 0.0
    for size in TINY_SHAPES:
        image = noise_image(*size)
        (read,) = vision.read([image])
        (wanted,) = reference.features(image)
        assert vision.count(read, None) == len(wanted) == placeholders(reference, size), size
        seen = vision.see([read], None)
        found = backend.to_host(seen.tokens)[0, seen.rows]
        assert close(found, wanted.numpy()), size
        seen_grids.add(len(read.pixels))
        worst = max(worst, len(wanted))
    assert len(seen_grids) > 2
    assert worst <= pipeline.bundle.manifest.candidates


def placeholders(reference: Stock, size: tuple[int, int]) -> int:
    """Return as many as the family's own processor puts into a prompt; OneVision's needs torchvision to be made."""
    name = {"llava_next": "LlavaNextProcessor", "llava_onevision": "LlavaOnevisionProcessor"}
    config = reference.model.config
    kind = getattr(transformers, name[config.model_type])
    facts = {
        "image_processor": reference.processor,
        "patch_size": config.vision_config.patch_size,
        "num_image_tokens": SIDE**2,
        "num_additional_image_tokens": 0,
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
    }
    processor = kind.__new__(kind)
    vars(processor).update(facts)
    return int(processor._get_number_of_features(*size, 35, 35))


def test_a_prompt_is_next_s_own_processor_s(
    stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    reference, image = stock("llava_next"), noise_image(77, 131)
    processor = transformers.LlavaNextProcessor(
        image_processor=reference.processor,
        tokenizer=reference.tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = f"user : {IMAGE_TOKEN} {QUESTION} assistant :"
    wanted = processor(text=[text], images=[image], return_tensors="np")["input_ids"].shape[1]
    pipeline = opened("llava_next").with_selector("none")
    assert pipeline.ask(image, text, raw_prompt=True, max_tokens=1).prompt_tokens == wanted


@every_family
def test_several_images_are_transformers_own_too(
    family: str, stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    """LLaVA-NeXT cuts each into tiles, LLaVA-OneVision none."""
    images = [noise_image(61, 150), noise_image(90, 40, seed=6)]
    answer = opened(family).with_selector("none").ask(images, QUESTION, **GREEDY)
    rows = [len(one) for one in stock(family).features(*images)]
    assert answer.image_tokens == tuple(rows)
    assert (rows == [26, 26]) == (family == "llava_onevision")
    assert list(answer.token_ids) == stock(family).generated(images)


@every_family
@every_per
def test_chats_and_batches_answer_as_alone(
    family: str, per: str, stock: Callable[[str], Stock], opened: Callable[..., Pipeline]
) -> None:
    pipeline, reference = opened(family, per), stock(family)
    images = [noise_image(70, 70), noise_image(35, 30), noise_image(200, 3)]
    pairs = [(image, text) for image in images for text in (QUESTION, LATER)]
    alone = [pipeline.ask(*pair, **GREEDY) for pair in pairs]
    for answer, wanted in zip(pipeline.ask_batch(pairs, **GREEDY), alone, strict=True):
        assert answer.token_ids == wanted.token_ids
        assert answer.visual_tokens == wanted.visual_tokens
        assert np.array_equal(answer.kept_indices, wanted.kept_indices)
    chat = pipeline.chat(images[0])
    first = chat.ask(QUESTION, max_tokens=6, ignore_eos=True)
    second = chat.ask(LATER, max_tokens=12, ignore_eos=True)
    rows = reference.features(images[0])[0].numpy()[first.kept_indices]
    assert list(second.token_ids) == reference.spliced(rows, QUESTION, first.answer, LATER, steps=12)


# --- selectors -------------------------------------------------------------------------------------------------


def by_hand(pipeline: Pipeline, image: Image.Image, rows: Any) -> list[tuple[Any, Any, dict[str, Any], Any]]:
    """Return tokens, what counts, signals and places of each group that selectors pick from, padded to N.

    ``rows`` are transformers' own [m, D]; signals are those of the encoder, put together here.
    """
    manifest, backend = pipeline.bundle.manifest, pipeline.backend
    (read,) = pipeline.vision.read([image])
    names = [output.name for output in manifest.vision_encoder.outputs[1:]]
    encoded = backend.encode({"pixels": read.pixels}, names)
    made, n = read.assembly, manifest.candidates
    found = []
    for place in groups(pipeline, image):
        signals = {}
        for name in names:
            tiles = backend.to_host(encoded.outputs[name])
            if name == "cls_token":
                signals[name] = tiles[max(made.rows[place[0], 0] - 1, 0) // SIDE**2]
                continue
            table = np.concatenate([np.zeros((1, *tiles.shape[2:]), np.float32), *tiles])
            weights = made.weights[place].reshape(*made.weights[place].shape, *[1] * (tiles.ndim - 2))
            signals[name] = padded((weights * table[made.rows[place]]).sum(axis=1), n)
        found.append((padded(rows[place], n), np.arange(n) < len(place), signals, place))
    return found


def padded(rows: Any, n: int) -> Any:
    return np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])


@every_family
@every_per
def test_every_selector_keeps_what_its_reference_keeps(
    family: str, per: str, stock: Callable[[str], Stock], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Each is added to a bundle that is there; rows and signals are put together by hand."""
    folder = Path(shutil.copytree(bundle(family, per, signals="all"), tmp_path / "bundle"))
    added = {entry.name for _, entry, _ in add_selectors(folder, "all", "6", force=False, verify=True)}
    sentence = left_out(folder, "all")
    assert sentence is not None and "hiprune" in sentence
    raster = {name for name, selector in SELECTORS.items() if selector.raster}
    without = raster if family == "llava_next" else raster | OF_CLASS_TOKEN
    assert added == set(SELECTORS) - without
    with refused("selector-needs-square-grid", "hiprune", "tiles"):
        add_selector(folder, "hiprune", keep=6, prune=None, force=False, verify=False)
    pipeline, image = Pipeline(folder, "none", threads=1), noise_image(77, 131)
    rows = stock(family).features(image)[0].numpy()
    prepared = by_hand(pipeline, image, rows)
    (read,) = pipeline.vision.read([image])
    for name in sorted(added):
        selector, pruned = SELECTORS[name], pipeline.with_selector(name, 6)
        kept, places = [], []
        for tokens, valid, given, place in prepared:
            needed = {signal: given[signal] for signal in selector.signals}
            if len(place) <= 6:
                kept, places = [*kept, *tokens[: len(place)]], [*places, *place]
                continue
            picks = selector.reference(tokens, valid, 6, **needed)
            kept += list(selector.kept(tokens, valid, 6, **needed))
            places += [place[pick] if pick >= 0 else place[0] - 0.5 for pick in picks]
        order = np.argsort(places, kind="stable") if per == "tile" else np.arange(len(places))
        seen = pruned.vision.see([read], pruned.selector)
        wanted = [int(place) if place % 1 == 0 else -1 for place in np.array(places)[order]]
        assert seen.kept_indices.tolist() == wanted, name
        found = pipeline.backend.to_host(seen.tokens)[0, seen.rows]
        assert close(found, np.array(kept)[order]), name
        answer = pruned.ask(image, QUESTION, max_tokens=4, ignore_eos=True)
        assert answer.visual_tokens == len(found)
        assert list(answer.token_ids) == stock(family).spliced(found, QUESTION, steps=4), name


def test_a_square_number_of_rows_is_no_grid(tmp_path: Path) -> None:
    """36 rows of an image of one tile with 4 x 4 tokens, whose lines end in newlines."""
    options = {"vision": {"image_size": 28}, "llava": grids((1, 1), tile=28)}
    folder = make_checkpoint(tmp_path / "tiny", family="llava_next", **options)
    with refused("selector-needs-square-grid", "hiprune", "tiles"):
        plan_of(folder, selector="hiprune")
    made = export(plan_of(folder, 36, signals="all"), tmp_path / "bundle")
    assert made.manifest.candidates == 36
    with refused("selector-needs-square-grid", "hiprune", "tiles"):
        list(add_selectors(made.folder, "hiprune", "9", force=False, verify=False))


def test_an_image_of_features_that_come_to_nothing_is_refused(tmp_path: Path) -> None:
    llava = {**TILED_VARIATIONS["llava_onevision, at most 1 tiles"]["llava"], **grids((1, 36), (1, 1))}
    options = TILED_VARIATIONS["llava_onevision, at most 1 tiles"] | {"llava": llava}
    pipeline = Pipeline(export(plan_of(make_checkpoint(tmp_path / "tiny", **options)), tmp_path / "b").folder)
    assert pipeline.ask(noise_image(20, 100), QUESTION, max_tokens=1).visual_tokens == 9
    with refused("image-too-elongated", "2000 x 2"):
        pipeline.ask(noise_image(2, 2000), QUESTION)
    with refused("image-too-elongated", "2000 x 2"):
        pipeline.ask_batch([(noise_image(20, 100), QUESTION), (noise_image(2, 2000), QUESTION)])


# --- the manifest ----------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[Edit, tuple[object, ...]]] = {
    "rows": (lambda m: m["assemble"].update(rows=99), ("rows is 99",)),
    "sources": (lambda m: m["assemble"].update(sources=3), ("sources is 3",)),
    "fewer tiles": (lambda m: m["assemble"].update(tiles=2), ("tiles is 2",)),
    "more tiles": (lambda m: m["assemble"].update(tiles=200), ("tiles is 200",)),
    "per tile": (lambda m: m["assemble"].update(per="tile"), ("it 30",)),
    "no tiling": (lambda m: m["preprocessing"].update(tiling=None), ("assemble.onnx",)),
    "no graph": (lambda m: m.update(assemble=None), ("vision_encoder.onnx",)),
    "larger grids": (
        lambda m: m["preprocessing"]["tiling"].update(grids=[[350, 350]]),
        ("assemble.onnx", "it 101"),
    ),
    "one grid less": (lambda m: m["preprocessing"]["tiling"]["grids"].pop(2), ("assemble.onnx",)),
    "larger tiles": (
        lambda m: (
            m["preprocessing"].update(shortest_edge=70, crop_height=70, crop_width=70),
            m["preprocessing"]["tiling"].update(tile=70, grids=[[140, 140]]),
        ),
        ("image_height is 35", "it 70"),
    ),
    "side": (lambda m: m["preprocessing"]["tiling"].update(side=6), ("tokens is 25", "it 36")),
    "shrunk": (lambda m: m["preprocessing"]["tiling"].update(max_tiles=7), ("sources is 1", "it 4")),
    "a signal's input": (lambda m: m["assemble"]["inputs"].pop(), ("assemble.onnx",)),
    "type of the rows": (
        lambda m: next(i for i in m["assemble"]["inputs"] if i["name"] == "rows").update(dtype="int32"),
        ("'rows' is int32",),
    ),
}


@pytest.mark.parametrize("kind", EDITS)
def test_numbers_that_do_not_fit_are_refused(kind: str, bundle: Callable[..., Path], tmp_path: Path) -> None:
    edit, values = EDITS[kind]
    folder = Path(shutil.copytree(bundle("llava_next"), tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with refused("manifest-does-not-fit", *values):
        Pipeline(folder, "none", threads=1).ask(noise_image(70, 70), QUESTION, max_tokens=1)


@every_family
@every_per
def test_the_manifest_comes_back(family: str, per: str, bundle: Callable[..., Path], tmp_path: Path) -> None:
    manifest = read_manifest(bundle(family, per))
    assert manifest.assemble is not None
    assert manifest.assemble.per == per
    assert manifest.candidates == manifest.assemble.rows
    assert manifest.groups == (manifest.assemble.tiles if per == "tile" else 1)
    (tmp_path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest


def test_manifests_of_older_exports_have_no_tiles(demo_bundle: Path, tmp_path: Path) -> None:
    data = json.loads((demo_bundle / "manifest.json").read_text(encoding="utf-8"))
    del data["assemble"], data["preprocessing"]["tiling"]
    (tmp_path / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    manifest = read_manifest(tmp_path)
    assert manifest == read_manifest(demo_bundle)
    assert (manifest.assemble, manifest.features, manifest.groups) == (None, manifest.vision_encoder, 1)


# --- the command line ------------------------------------------------------------------------------------------


def test_the_command_line_answers_the_same(
    command: Callable[..., Any], opened: Callable[..., Pipeline], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    image = noise_image(70, 105)
    image.save(tmp_path / "image.png")
    done = command(
        "ask",
        bundle("llava_next", "tile"),
        "--image",
        tmp_path / "image.png",
        "--json",
        "--max-tokens",
        5,
        QUESTION,
    )
    assert (done.code, done.err) == (0, "")
    wanted, found = opened("llava_next", "tile").ask(image, QUESTION, max_tokens=5), json.loads(done.out)
    assert found["token_ids"] == list(wanted.token_ids)
    assert found["kept_indices"] == wanted.kept_indices.tolist()
    shown = command("info", bundle("llava_next", "tile"), "--json")
    assert shown.code == 0
