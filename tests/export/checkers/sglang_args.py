"""SGLang's own parsers on our commands: ``serve``, ``refused`` or ``router``, then a JSON list of them.

``refused`` says of each command why it is not taken (None: it is), so that many cost one start.

Real: the parser with its 532 flags, the merging of ``--config``, and the checks that the server runs on
what it parsed before it loads anything. Empty modules stand for what these never call (kernels, model
classes); nothing of the server is started.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.machinery
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

LEFT_OUT = (
    "IPython",
    "IPython.display",
    "triton",
    "triton.language",
    "triton.runtime",
    "triton.runtime.cache",
    "sglang.srt.configs",
    "sglang.srt.configs.hybrid_arch",
    "sglang.srt.connector",
    "sglang_router.sglang_router_rs",
)


class Empty(types.ModuleType):
    """A module whose every name is a function that returns its argument, so that decorators pass."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given, **_: given[0] if given and callable(given[0]) else None


def leave_out() -> None:
    for name in LEFT_OUT:
        module = Empty(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    # the router asks it for the choices of two flags that we do not set
    sys.modules["sglang_router.sglang_router_rs"].get_available_tool_call_parsers = lambda: []


def serve(commands: list[list[str]]) -> list[dict[str, Any]]:
    """Parse each command as the server does, and run its checks of what we set."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    parser = argparse.ArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    extra = extra_config_parser()
    answers = []
    for words in commands:
        merged = ConfigArgumentMerger(parser).merge_config_with_args(words)
        asked = parser.parse_args(merged)
        args = ServerArgs.from_cli_args(asked)
        run_checks(args)
        view = resolving_view(args)
        given = {
            action.dest: getattr(asked, action.dest)
            for action in parser._actions
            if action.dest != "help" and getattr(asked, action.dest) != action.default
        }
        config = view.hicache_storage_backend_extra_config
        answers.append(
            {
                "given": given,
                "chunk": view.chunked_prefill_size,
                "attn_dp_size": view.attn_dp_size,
                "dp_size": view.dp_size,
                "disable_radix_cache": view.disable_radix_cache,
                "hicache_mem_layout": view.hicache_mem_layout,
                "hicache_host_memory_fraction": view.hicache_host_memory_fraction,
                "extra": None if config is None else extra(config),
            }
        )
    return answers


def refused(commands: list[list[str]]) -> list[str | None]:
    said: list[str | None] = []
    for words in commands:
        parser = io.StringIO()
        try:
            with contextlib.redirect_stderr(parser):
                serve([words])
            said.append(None)
        except SystemExit:
            said.append(f"refused by the parser: {parser.getvalue()[-300:]}")
        except (ValueError, AssertionError, NotImplementedError) as error:
            said.append(str(error))
    return said


def run_checks(args: Any) -> None:
    """Run the hooks in the order of ``arg_groups/pipeline.py``; others read weights or devices."""
    from sglang.srt.arg_groups.cuda_graph_hook import parse_cuda_graph_config
    from sglang.srt.arg_groups.hicache_hook import handle_hicache, handle_hicache_ratio_default
    from sglang.srt.arg_groups.kv_cache_hook import handle_cache_compatibility
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.arg_groups.parallel_hook import (
        handle_data_parallelism,
        handle_deprecated_dp_attention,
    )
    from sglang.srt.arg_groups.pd_disaggregation_hook import handle_pd_disaggregation
    from sglang.srt.arg_groups.serving_hook import handle_load_balance_method

    handle_deprecated_dp_attention(args)
    handle_hicache_ratio_default(args)
    handle_pd_disaggregation(args)
    handle_hicache(args)
    if resolving_view(args).chunked_prefill_size is not None:  # else the GPU's memory decides
        parse_cuda_graph_config(args)
        handle_data_parallelism(args)
    handle_load_balance_method(args)
    handle_cache_compatibility(args)
    view = resolving_view(args)
    # check_server_args, which reads the model's config first, has this
    if view.chunked_prefill_size and view.chunked_prefill_size % view.page_size:
        raise ValueError("chunked_prefill_size must be divisible by page_size")
    if view.ep_size > 1 and view.ep_size * view.moe_dp_size != view.tp_size:
        raise ValueError("ep_size * moe_dp_size must be equal to tp_size")


def extra_config_parser() -> Any:
    """Return ``parse_storage_backend_extra_config``, cut out: its module needs a GPU's kernels."""
    import sglang

    root = Path(sglang.__path__[0]) / "srt" / "mem_cache" / "hybrid_cache"
    tree = ast.parse((root / "hybrid_cache_controller.py").read_text())
    name = "parse_storage_backend_extra_config"
    (found,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    found.decorator_list = []
    space: dict[str, Any] = {"json": json, "os": os}
    head = ast.parse("from __future__ import annotations").body
    module = ast.Module(body=[*head, found], type_ignores=[])
    exec(compile(ast.fix_missing_locations(module), name, "exec"), space)
    return space[name]


def router(commands: list[list[str]]) -> list[dict[str, Any]]:
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    RouterArgs.add_cli_args(parser)
    answers = []
    for words in commands:
        args = RouterArgs.from_cli_args(parser.parse_args(words))
        answers.append(
            {
                "pd": args.pd_disaggregation,
                "prefill": args.prefill_urls,
                "decode": args.decode_urls,
                "policy": args.policy,
                "port": args.port,
            }
        )
    return answers


if __name__ == "__main__":
    leave_out()
    what = {"serve": serve, "refused": refused, "router": router}[sys.argv[1]]
    asked = json.loads(Path(sys.argv[2]).read_text())
    try:
        found = what(asked)
    except SystemExit as error:
        print(f"refused by the parser ({error.code})")
        sys.exit(3)
    except (ValueError, AssertionError, NotImplementedError) as error:
        print(f"refused: {error}")
        sys.exit(3)
    print(json.dumps(found))
