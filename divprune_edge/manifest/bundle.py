"""``manifest.json`` as a whole: a bundle's entries together, where they come from, and every file's hash."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from divprune_edge.errors import UserError
from divprune_edge.manifest.fields import BundlePath, DType, Numbering, Positive, Sha256, Strict
from divprune_edge.manifest.graphs import AssembleInfo, GraphInfo, SelectorInfo, VisionInfo
from divprune_edge.manifest.images import Preprocessing
from divprune_edge.manifest.language import LanguageInfo
from divprune_edge.manifest.prompt import Prompt
from divprune_edge.strict_json import is_file, is_folder, read_json

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
DEMO = "demo"
"""``Source.model`` of the bundled checkpoint, which is exported where none is given."""
RESTORE = "copy the bundle again from where it is whole, or export it again"
"""What to do about a file that is missing or is not the one that was exported."""
TILES_AT_ONCE = 8
UNPRUNED = "none"
"""The selector name that stands for handing every visual token to the language model."""


class AdapterSource(Strict):
    """A LoRA adapter that was merged: its folder's name, the base that it names, and the sha256 of its weights."""

    name: str
    base: str | None
    sha256: Sha256


class Source(Strict):
    """Where the weights came from. ``model`` is a hub id or a folder's name, never an absolute path.

    ``adapter`` was merged into them; None where there was none.
    """

    model: str
    revision: str | None
    licence: str | None
    config_sha256: Sha256
    adapter: AdapterSource | None = None

    @property
    def export_command(self) -> str:
        """The command that exports this checkpoint anew; where a folder lay is not known and left to the reader."""
        more = f" --adapter PATH/{self.adapter.name}" if self.adapter is not None else ""
        if self.model == DEMO:
            return f"python -m export llava{more}"
        return f"python -m export llava --model {self.model if '/' in self.model else f'PATH/{self.model}'}{more}"


class Check(Strict):
    """One line of the verification table: ``value`` against ``limit`` in ``unit``."""

    stage: str
    name: str
    value: float
    limit: float | None
    unit: str
    passed: bool
    detail: str = ""


class Verification(Strict):
    """Whether the graphs were compared with PyTorch, how deep, and with what result."""

    status: Literal["verified", "not verified"]
    reason: str = ""
    language_layers: int | None = None
    checks: tuple[Check, ...] = ()


class FileInfo(Strict):
    """Size in bytes and sha256 of one file of the bundle."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Manifest(Strict):
    """The whole manifest. ``files`` lists every file of the bundle except the manifest itself.

    ``precision`` sums up the graphs' own: one name, or ``vision=int8,language=int4``. ``block_size`` is that of
    the int4 graphs' weights, None where there are none; ``calibrated`` says that the language model's were rounded
    by what its layers read, not to the nearest. ``target`` is the device of ``models.targets`` that the bundle was
    made for, if one was named. ``numbering`` says whether what is left of a prompt's images is numbered anew, without a
    gap, or keeps the positions that it would have unpruned.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    family: str
    precision: str
    block_size: Positive | None = None
    calibrated: bool = False
    target: str | None = None
    token_dtype: DType
    numbering: Numbering = "compact"
    vision_encoder: VisionInfo
    assemble: AssembleInfo | None = None
    selectors: tuple[SelectorInfo, ...]
    default_selector: str
    language_model: LanguageInfo
    preprocessing: Preprocessing
    prompt: Prompt
    source: Source
    verification: Verification
    tools: dict[str, str]
    files: dict[BundlePath, FileInfo]

    @property
    def encoder_input(self) -> tuple[Preprocessing, tuple[int, int] | None]:
        """How an image becomes the vision encoder's input, and the height and width of a tile, None where they vary."""
        height, width = self.vision_encoder.image_height, self.vision_encoder.image_width
        return self.preprocessing, None if height is None or width is None else (height, width)

    @property
    def features(self) -> GraphInfo:
        """The graph whose outputs selectors read."""
        return self.assemble or self.vision_encoder

    @property
    def candidates(self) -> int:
        """N: rows that a selector picks from."""
        return self.assemble.rows if self.assemble else self.vision_encoder.tokens

    @property
    def tiles_at_once(self) -> int:
        """Tiles of an image that one run of the encoder takes: its memory grows with them, its speed hardly.

        One where they are of any size, as the largest image is.
        """
        many = self.assemble is not None and self.vision_encoder.image_height is not None
        return min(TILES_AT_ONCE, self.assemble.tiles) if self.assemble and many else 1

    @property
    def groups(self) -> int:
        """How often a selector picks from an image or a clip, at most."""
        if self.assemble is None or self.assemble.per == "image":
            return 1
        return self.assemble.tiles if self.assemble.per == "tile" else max(self.assemble.frames, 1)

    def visual_tokens(self, selector: SelectorInfo | None) -> int:
        """Return how many visual tokens the language model sees of an image, at most; None is no pruning."""
        return self.groups * (selector.keep if selector is not None else self.candidates)

    @property
    def seeing(self) -> list[GraphInfo]:
        """The graphs that make candidates of pixels, in their order."""
        return [self.vision_encoder, *([self.assemble] if self.assemble else [])]

    @model_validator(mode="after")
    def _names_agree(self) -> Manifest:
        ids = [selector.id for selector in self.selectors]
        if len(set(ids)) != len(ids):
            raise ValueError("two selectors share one id")
        if self.default_selector not in [*ids, UNPRUNED]:
            raise ValueError(f"default selector '{self.default_selector}' is not in the bundle")
        given = {output.name for output in self.features.outputs}
        for selector in self.selectors:
            for signal in selector.signals:
                if signal not in given:
                    raise ValueError(
                        f"selector '{selector.id}' needs '{signal}', which the vision encoder lacks"
                    )
        graphs: list[GraphInfo] = [*self.seeing, *self.language_model.graphs, *self.selectors]
        named = [path for graph in graphs for path in (graph.file, *graph.data)]
        named += [selector.stripped for selector in self.selectors if selector.stripped is not None]
        forbidden = self.prompt.forbidden_ids.ranges
        if forbidden and forbidden[-1][1] >= self.language_model.vocabulary:
            raise ValueError(
                f"id {forbidden[-1][1]} is forbidden, but there are {self.language_model.vocabulary} logits"
            )
        # The token table would take such an id for a visual token, of which a decode step has none.
        rows, last = self.language_model.embedding_rows, self.language_model.vocabulary - 1
        if rows <= last and not (forbidden and forbidden[-1][0] <= rows and forbidden[-1][1] == last):
            raise ValueError(f"id {rows} may be sampled, but the embedding has {rows} rows")
        for path in [*named, self.prompt.tokenizer, self.prompt.chat_template]:
            if path not in self.files:
                raise ValueError(f"file '{path}' is used but not listed under 'files'")
        return self

    def to_json(self) -> str:
        """Return the manifest as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read_manifest(bundle: Path) -> Manifest:
    """Read and check ``bundle/manifest.json``.

    Raises:
        UserError: no such bundle, malformed JSON, a newer schema, or a field that does not fit.
    """
    path = bundle / MANIFEST
    if not is_folder(bundle):
        raise UserError(
            f"There is no bundle at '{bundle}': make one with 'python -m export llava'.",
            code="bundle-missing",
        )
    if not is_file(path):
        made = (
            f"; it is a checkpoint: 'python -m export --model {shlex.quote(str(bundle))}' makes a bundle of it"
            if is_file(bundle / "config.json")
            else ""
        )
        raise UserError(
            f"'{bundle}' is not a bundle: it has no {MANIFEST}{made}.", code="bundle-without-manifest"
        )
    data = read_json(path, code="manifest-invalid", unreadable="manifest-unreadable", advice=RESTORE)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"'{path}' has schema version {version}, this divprune-edge reads up to {SCHEMA_VERSION}: "
            "upgrade divprune-edge, or export the bundle again with this one.",
            code="manifest-too-new",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(
            f"'{path}' does not fit the schema at '{where}': {first['msg']}; export the bundle again "
            "with this divprune-edge.",
            code="manifest-invalid",
        ) from error
