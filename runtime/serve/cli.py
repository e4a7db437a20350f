"""``python -m runtime serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from divprune_edge.runtime.options import (
    BundleArgument,
    KeepOption,
    SelectorOption,
    ThreadsOption,
    WarmUpOption,
)

KEY_VARIABLE = "DIVPRUNE_API_KEY"


def serve_command(
    bundle: BundleArgument,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    backend: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    selector: SelectorOption = None,
    keep: KeepOption = None,
    threads: ThreadsOption = None,
    warm_up: WarmUpOption = False,
    slots: Annotated[
        int | None, typer.Option(help="Answers written at once; each takes a KV cache.", show_default="8")
    ] = None,
    chunk: Annotated[
        int, typer.Option("--prefill-chunk", help="Tokens of prompts between two steps of other answers.")
    ] = 256,
    image_cache: Annotated[
        int, typer.Option("--image-cache", metavar="MIB", help="For what images gave; 0 keeps nothing.")
    ] = 256,
    prefix_cache: Annotated[
        int, typer.Option("--prefix-cache", metavar="MIB", help="For prompts' beginnings; 0 keeps nothing.")
    ] = 256,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another limit, such as max_tokens=512; several times."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the API key, instead of {KEY_VARIABLE}.")
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Listen beyond this machine without an API key.")
    ] = False,
    url_host: Annotated[
        list[str] | None,
        typer.Option("--url-host", metavar="HOST", help="Fetch images from this host, too; several times."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model.", show_default="the bundle's folder")
    ] = None,
) -> None:
    """Answer over HTTP, as OpenAI's chat completions; a page to try it is at the server's address.

    What a client may ask for: docs/serving.md.
    """
    from dataclasses import replace
    from importlib.util import find_spec

    from divprune_edge.errors import UserError
    from divprune_edge.runtime.serve.limits import ServerLimits
    from divprune_edge.runtime.serve.settings import Settings, read_key

    missing = [one for one in ("fastapi", "uvicorn", "prometheus_client") if find_spec(one) is None]
    if missing:
        raise UserError(
            f"'serve' needs {', '.join(missing)}, not installed here: 'python -m pip install fastapi uvicorn "
            "prometheus-client'.",
            code="serve-not-installed",
        )
    for option, value, least in (
        ("--prefill-chunk", chunk, 1),
        ("--image-cache", image_cache, 0),
        ("--prefix-cache", prefix_cache, 0),
    ):
        if not least <= value < 1 << 20:
            raise UserError(
                f"{option} is {value}, expected {least} to {(1 << 20) - 1}.", code="count-out-of-range"
            )
    limits = ServerLimits().changed(limit or ())
    if slots is not None:
        limits = replace(limits, slots=slots)
    key = read_key(api_key_file, os.environ.get(KEY_VARIABLE))
    settings = Settings(host, port, key, open_to_all, tuple(url_host or ()), name)

    from divprune_edge.runtime.pipeline import Pipeline
    from divprune_edge.runtime.serve.allocator import collect_often, give_back
    from divprune_edge.runtime.serve.engine import Engine
    from divprune_edge.runtime.serve.server import serve

    give_back()
    pipeline = Pipeline(bundle, selector, keep, backend, threads, warm_up=warm_up)
    engine = Engine(
        pipeline, limits, chunk=chunk, image_cache=image_cache << 20, prefix_cache=prefix_cache << 20
    )
    collect_often()
    serve(pipeline, limits, settings, engine)
