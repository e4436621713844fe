"""``dualpath calibrate``: measure, serve as the other end, import, merge, show and compare profiles."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.output import JsonOption, emit, say
from dualpath_model.errors import InputError

if TYPE_CHECKING:
    from dualpath_model.profile import PartName, Profile

calibrate_app = typer.Typer(
    help="Measured rates of real machines, as profiles that every model takes.",
    invoke_without_command=True,
    subcommand_metavar="[COMMAND] [ARGS]...",
)

PORT = 18515  # perftest's, so that firewalls know it

OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="PROFILE", help="The profile to write (.json).")
]
LlmOption = Annotated[
    str, typer.Option("--llm", help="Catalog name or a Hugging Face config.json: its shapes count.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="gpu, memory, storage or network; repeatable. Default: all."),
]
PathOption = Annotated[
    Path, typer.Option("--path", metavar="DIR", help="Folder on the storage to measure.")
]
SpaceOption = Annotated[str, typer.Option("--space", help="Most disk space for a moment.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where the kernels run; auto: a GPU if any.")
]
PeerOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where `dualpath calibrate serve` runs; default: a process on this machine.",
    ),
]
SecondsOption = Annotated[float, typer.Option(help="Time to take, all parts together, about.")]
StreamsOption = Annotated[int, typer.Option(min=1, max=64, help="TCP streams.")]


@calibrate_app.callback()
def calibrate(
    context: typer.Context,
    out: OutOption = None,
    llm: LlmOption = "deepseek-v3.2",
    only: OnlyOption = None,
    path: PathOption = Path(),
    space: SpaceOption = "1 GiB",
    device: DeviceOption = "auto",
    peer: PeerOption = None,
    seconds: SecondsOption = 150.0,
) -> None:
    """Without a command: the same as ``calibrate run`` with these options."""
    if context.invoked_subcommand is not None:
        return
    if out is None:
        print(context.get_help())
        raise typer.Exit
    run(
        out=out,
        llm=llm,
        only=only,
        path=path,
        space=space,
        device=device,
        peer=peer,
        seconds=seconds,
    )


@calibrate_app.command()
def run(
    out: OutOption = None,
    llm: LlmOption = "deepseek-v3.2",
    only: OnlyOption = None,
    path: PathOption = Path(),
    space: SpaceOption = "1 GiB",
    device: DeviceOption = "auto",
    tensor: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs over which the heads are split.")
    ] = 1,
    kv_dtype: Annotated[
        Literal["bf16", "fp8", "fp8_ds_mla"] | None,
        typer.Option(help="KV-cache format; default: the LLM's own."),
    ] = None,
    peer: PeerOption = None,
    streams: StreamsOption = 4,
    seconds: SecondsOption = 150.0,
    name: Annotated[str, typer.Option(help="Of the profile; default: host, GPU and day.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    json: JsonOption = None,
) -> None:
    """Measure this machine and write a profile."""
    from app.files import check_targets, write_atomically
    from app.progress import bar
    from calibration.run import Wish, calibrate
    from calibration.run import check as check_wish
    from dualpath_model.catalog.llms import load_llm
    from dualpath_model.llm import KvDtype
    from dualpath_model.profile import PartName, dump
    from dualpath_model.quantities import Dimension, parse, show

    if out is None and json is None:
        raise InputError("--out is missing; give the profile to write, such as --out profile.json")
    check_targets(json, _profile_path(out), None)
    wish = Wish(
        llm=load_llm(llm, Path()),
        folder=path,
        parts=_parts(only),
        kv_dtype=None if kv_dtype is None else KvDtype(kv_dtype),
        device=device,
        tensor=tensor,
        space_bytes=int(parse(space, Dimension.BYTES)),
        peer=peer,
        streams=streams,
        seconds=seconds,
        name=name,
        seed=seed,
    )
    check_wish(wish)
    if PartName.STORAGE in wish.parts:
        needed = show(wish.space_bytes, Dimension.BYTES)
        say(f"uses up to {needed} in {path.resolve()} while it measures storage, then frees it")
    with bar("calibrating", "getting ready") as tell:
        profile = calibrate(wish, tell)
    if out is not None:
        write_atomically(out, dump(profile))
        say(f"wrote {out}")
    emit(json, lambda: profile.model_dump(mode="json"), lambda: _show(profile))


def _parts(only: list[str] | None) -> tuple[PartName, ...]:
    from dualpath_model.errors import unknown_name
    from dualpath_model.profile import PartName

    for text in only or []:
        if text not in list(PartName):
            raise unknown_name("part", text, PartName)
    return tuple(part for part in PartName if not only or part in only)


@calibrate_app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = PORT,
) -> None:
    """Be the other end of a network measurement, until Ctrl-C. No authentication: trusted networks."""
    from calibration.peer import serve as serve_until_interrupted

    serve_until_interrupted(
        host,
        port,
        ready=lambda bound: say(f"listening on {host} port {bound}; Ctrl-C ends it"),
    )


@calibrate_app.command("import")
def import_(
    tool: Annotated[str, typer.Argument(help="fio, iperf3, perftest, nvbandwidth or nccl-tests.")],
    files: Annotated[list[Path], typer.Argument(help="What the tool printed or wrote.")],
    out: OutOption = None,
    host: Annotated[
        str | None, typer.Option(help="Where the tool ran; default: on this machine.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the profile.")] = "",
    json: JsonOption = None,
) -> None:
    """Read the results of another tool as a profile."""
    from app.files import check_targets, write_atomically
    from calibration.importers import import_output
    from calibration.profile import imported, merge
    from dualpath_model.profile import dump

    check_targets(json, _profile_path(out), None)
    _refuse_inputs(files, out, json)
    found = [imported(*import_output(tool, file), host=host, title=name) for file in files]
    profile = merge(found, name=name or found[0].name, files=[str(file) for file in files])
    if out is not None:
        write_atomically(out, dump(profile))
        say(f"wrote {out}")
    emit(json, lambda: profile.model_dump(mode="json"), lambda: _show(profile))


@calibrate_app.command("merge")
def merge_(
    profiles: Annotated[list[Path], typer.Argument(help="Profiles to join.")],
    out: Annotated[Path, typer.Option(metavar="PROFILE", help="The profile to write (.json).")],
    prefer: Annotated[
        Path | None, typer.Option(help="The profile that counts where several have a figure.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the profile.")] = "",
) -> None:
    """Join profiles of which each holds a part, such as storage of one node, the GPU of another."""
    from app.files import check_targets, write_atomically
    from calibration.profile import merge
    from dualpath_model.profile import dump, load_profile

    check_targets(None, _profile_path(out), None)
    _refuse_inputs(profiles, out, None)
    places = [path.resolve() for path in profiles]
    if prefer is not None and prefer.resolve() not in places:
        raise InputError(f"--prefer {prefer} is none of the profiles; give one of them")
    first = None if prefer is None else places.index(prefer.resolve())
    files = [str(path) for path in profiles]
    profile = merge([load_profile(path) for path in profiles], prefer=first, name=name, files=files)
    write_atomically(out, dump(profile))
    say(f"wrote {out}")
    _show(profile)


@calibrate_app.command()
def show(
    profile: Annotated[Path, typer.Argument(help="A profile.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write one picture (.png or .svg).")] = None,
    json: JsonOption = None,
) -> None:
    """Show a profile: figures with intervals, fits, warnings, plots."""
    from app.files import check_targets
    from dualpath_model.profile import load_profile

    check_targets(json, html, picture, reads=profile)
    found = load_profile(profile)
    if html is not None:
        from app.profile_view import write_profile_page

        write_profile_page(found, html)
        say(f"wrote {html}")
    if picture is not None:
        from app.profile_picture import draw_profile

        draw_profile(found, picture)
        say(f"wrote {picture}")
    emit(json, lambda: found.model_dump(mode="json"), lambda: _show(found))


@calibrate_app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A profile.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    json: JsonOption = None,
) -> None:
    """Say what changed beyond noise from one profile to another, and which settings did."""
    from app.files import check_targets
    from calibration.profile import compare as compared
    from calibration.profile import differences
    from dualpath_model.profile import load_profile

    check_targets(json, None, None)
    _refuse_inputs([before, after], None, json)
    old, new = load_profile(before), load_profile(after)
    changes, otherwise = compared(old, new), differences(old, new)
    names = old.name, new.name
    if old.name == new.name:
        names = f"{old.name} ({before})", f"{new.name} ({after})"

    def show() -> None:
        from app.profile_view import show_changes

        show_changes(*names, changes, otherwise)

    def data() -> dict[str, object]:
        rows = [
            {
                **asdict(change),
                "before": change.before and change.before.model_dump(),
                "after": change.after and change.after.model_dump(),
            }
            for change in changes
        ]
        return {
            "before": names[0],
            "after": names[1],
            "differences": [asdict(one) for one in otherwise],
            "figures": rows,
        }

    emit(json, data, show)


def _show(profile: Profile) -> None:
    from app.profile_view import show_profile

    show_profile(profile)


def _profile_path(out: Path | None) -> Path | None:
    if out is not None and out.suffix != ".json":  # else it would be read as YAML
        raise InputError(f"--out {out}: a profile's name ends in .json; give it such a name")
    return out


def _refuse_inputs(inputs: list[Path], out: Path | None, json: str | None) -> None:
    targets = [out] if out is not None else []
    targets += [Path(json)] if json not in (None, "-") else []
    for target in targets:
        if target.resolve() in {path.resolve() for path in inputs}:
            raise InputError(f"{target} is an input; give the output another name")
