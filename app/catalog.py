"""``dualpath trace``, ``llm`` and ``node``: what recordings contain, and what the catalog has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from app.output import JsonOption, emit

trace_app = typer.Typer(help="Recorded sessions.", no_args_is_help=True)
llm_app = typer.Typer(help="LLM architectures: KV bytes, FLOPs.", no_args_is_help=True)
node_app = typer.Typer(help="Machines of the catalog.", no_args_is_help=True)


@trace_app.command("stats")
def trace_stats(
    path: Annotated[Path, typer.Argument(help="A file or folder of recorded sessions.")],
    llm: Annotated[
        list[str] | None, typer.Option(help="LLM for the byte figures; repeatable.")
    ] = None,
    scope: Annotated[
        Literal["session", "global"] | None,
        typer.Option(help="Where a block counts as seen (default: as the format means it)."),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Largest inflated size of one file (default 2 GiB).")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Say what a folder or file of recorded sessions contains."""
    from app.statistics import trace_statistics
    from dualpath_model.quantities import Dimension, parse

    limit = None if max_bytes is None else int(parse(max_bytes, Dimension.BYTES))
    found = trace_statistics(path, llm or ["deepseek-v3.2"], scope=scope, max_inflated_bytes=limit)

    def show() -> None:
        from app.show import show_trace_statistics

        show_trace_statistics(found)

    emit(json, lambda: found, show)


@llm_app.command("list")
def llm_list(json: JsonOption = None) -> None:
    """List the LLMs of the catalog."""
    from app.statistics import llm_summary
    from dualpath_model.catalog.llms import llm_names

    found = {name: llm_summary(name) for name in llm_names()}

    def show() -> None:
        from app.show import show_llms

        show_llms(found)

    emit(json, lambda: found, show)


@llm_app.command("show")
def llm_show(
    name: Annotated[str, typer.Argument(help="Catalog name, or a Hugging Face config.json.")],
    json: JsonOption = None,
) -> None:
    """Show one LLM: shape, KV bytes, parameters, sources."""
    from app.statistics import llm_details

    found = llm_details(name)

    def show() -> None:
        from app.show import show_fields

        show_fields(name, found)

    emit(json, lambda: found, show)


@llm_app.command("cache-compute")
def llm_cache_compute(
    names: Annotated[
        list[str] | None, typer.Argument(help="Catalog names; default: the paper's Table 1.")
    ] = None,
    append: Annotated[str, typer.Option(help="Appended tokens.")] = "429",
    context: Annotated[
        list[str] | None, typer.Option(help="Cached tokens (16K is 16,000); repeatable.")
    ] = None,
    kv_dtype: Annotated[
        Literal["bf16", "fp8", "fp8_ds_mla"] | None,
        typer.Option(help="KV-cache format; default: the LLM's own."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Print KV bytes to load per FLOP to compute (the paper's Table 1)."""
    from app.statistics import TABLE_1_LLMS, cache_compute
    from dualpath_model.quantities import parse_count

    contexts = [parse_count(text) for text in (context or ["16K", "64K"])]
    found = {
        name: cache_compute(name, contexts, parse_count(append), kv_dtype)
        for name in (names or TABLE_1_LLMS)
    }

    def show() -> None:
        from app.show import show_cache_compute

        show_cache_compute(found)

    emit(json, lambda: found, show)


@node_app.command("list")
def node_list(json: JsonOption = None) -> None:
    """List the machines of the catalog."""
    from app.statistics import node_summary
    from dualpath_model.catalog.nodes import node_names

    found = {name: node_summary(name) for name in node_names()}

    def show() -> None:
        from app.show import show_nodes

        show_nodes(found)

    emit(json, lambda: found, show)
