"""A run as files: requests, series and cluster as Parquet, the summary as JSON, figures as HTML."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario
from solvers.simulator import series
from solvers.simulator import state as arrays
from solvers.simulator.experiments import Outcome
from solvers.simulator.model import Simulation

_ROWS_AT_ONCE = 1_000_000  # a row group: large runs are written in pieces, not copied whole
_REPEATING = ["turn", "output_tokens", "prefill_engine", "decode_engine"]  # worth a dictionary


def check_folder(path: Path, json: str | None = None) -> None:
    """Raise InputError if ``path`` cannot become a folder of results, before any work is done for it.

    ``json``: a file that is written too, or "-"; it cannot be in that folder.
    """
    if json not in (None, "-") and path.resolve() in Path(str(json)).resolve().parents:
        raise InputError(
            f"{json} is in {path}, which gets a summary.json of its own; choose another"
        )
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not an empty folder; give a new name")
    except OSError as error:
        raise _refused(path, error) from None
    if path.is_mount():  # nothing can be renamed over it
        raise InputError(f"{path} is a mount point; name a folder in it")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: the folder {parent} cannot be written to; choose another")


def write_results(
    outcome: Outcome, scenario: Scenario, found: Mapping[str, Any], summary: str, path: Path
) -> None:
    """Write the files of a run into ``path``: all of them or none.

    ``found`` is the run's data, ``summary`` the same as JSON text. Raises InputError, one sentence, if
    the place cannot be written to or the disk is full.
    """
    from app.figures_simulation import simulation_html

    check_folder(path)
    path = path.resolve()
    try:
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:50]}."))
    except OSError as error:
        raise _refused(path, error) from None
    try:
        _write(requests_tables(outcome.run), aside / "requests.parquet")
        _write(iter([series_table(outcome)]), aside / "series.parquet")
        _write(iter([cluster_table(outcome, scenario)]), aside / "cluster.parquet")
        (aside / "summary.json").write_text(summary + "\n", encoding="utf-8")
        page = simulation_html(scenario, outcome, found)
        (aside / "figures.html").write_text(page, encoding="utf-8")
        aside.chmod(0o777 & ~_umask())
        aside.replace(path)  # an empty folder of that name gives way
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose another")


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def requests_tables(run: Simulation) -> Iterator[dict[str, Any]]:
    """Give the columns of the turns that ended, in pieces of at most a million; one piece of none."""
    for start in range(0, max(1, len(run.rows)), _ROWS_AT_ONCE):
        yield requests_table(run, run.rows[start : start + _ROWS_AT_ONCE])


def requests_table(run: Simulation, rows: np.ndarray) -> dict[str, Any]:
    """Return the columns of turns in the order of ending: times in seconds.

    ``turn`` counts from 0 in each session. ``ttst_s`` and ``tpot_s`` are null where a turn has too few
    tokens for them.
    """
    import pyarrow

    traffic = run.sim.traffic
    of = {name: rows[:, i] for i, name in enumerate(arrays.RESULT_FIELDS)}
    turn, output = of["turn"], traffic.output[of["turn"]]
    times = {f"{name}_s": of[name] / arrays.SECOND for name in arrays.RESULT_TIMES}
    ttst = times["second_token_s"] - times["first_token_s"]
    tpot = (times["ended_s"] - times["second_token_s"]) / np.maximum(output - 2, 1)
    return {
        "agent": np.ascontiguousarray(of["agent"]),
        "turn": turn - traffic.first[of["agent"]],
        "prompt_tokens": traffic.prompt[turn],
        "hit_tokens": traffic.hit[turn],
        "output_tokens": output,
        "prefill_engine": _dictionary(of["prefill"], run.state.numbers["prefill"].engines),
        "decode_engine": _dictionary(of["decode"], run.state.numbers["decode"].engines),
        "read_by_decode_tokens": np.ascontiguousarray(of["on_decode"]),
        **times,
        "ttft_s": times["first_token_s"] - times["submitted_s"],
        "ttst_s": pyarrow.array(ttst, mask=output <= 1),
        "tpot_s": pyarrow.array(tpot, mask=output <= 2),
    }


def samples(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples as two arrays, (S, len(CLUSTER)) and (S, N, len(NODE)).

    A sample that Ctrl-C cut in half is left out.
    """
    taken, nodes = outcome.series, len(outcome.run.state.node_names)
    count = min(len(taken.cluster), len(taken.nodes))
    return (
        np.array(taken.cluster[:count]).reshape(count, len(series.CLUSTER)),
        np.array(taken.nodes[:count]).reshape(count, nodes, len(series.NODE)),
    )


def series_table(outcome: Outcome) -> dict[str, Any]:
    """Return a row for each sample and node."""
    cluster, table = samples(outcome)
    names = outcome.run.state.node_names
    node = np.tile(np.arange(len(names)), len(cluster))
    return {
        "time_s": np.repeat(cluster[:, 0], len(names)),
        "node": _dictionary(node, names),
        "pool": _dictionary(outcome.run.sim.nodes.decode[node], ["prefill", "decode"]),
        **{
            name: _counted(table[:, :, i].reshape(-1), name == "nic_busy")
            for i, name in enumerate(series.NODE)
        },
    }


def cluster_table(outcome: Outcome, scenario: Scenario) -> dict[str, Any]:
    """Return a row for each sample."""
    cluster, _ = samples(outcome)
    table = {
        name: _counted(cluster[:, i], name == "time_s") for i, name in enumerate(series.CLUSTER)
    }
    token_bytes = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    table["working_set_bytes"] = table["working_set_tokens"] * token_bytes
    return table


def _counted(values: np.ndarray, real: bool) -> np.ndarray:
    """Return a column on its own: as it is, or the whole numbers that it counts."""
    return np.ascontiguousarray(values) if real else values.astype(np.int64)


def _dictionary(index: np.ndarray, names: list[str]) -> Any:
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(index.astype(np.int32)), names)


def _write(pieces: Iterator[dict[str, Any]], path: Path) -> None:
    """Write tables of the same columns, at least one, into one file, a row group each."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(next(pieces))
    repeating = [name for name in (*_REPEATING, "node", "pool") if name in table.column_names]
    with parquet.ParquetWriter(
        path, table.schema, compression="zstd", use_dictionary=repeating
    ) as writer:
        writer.write_table(table)
        for piece in pieces:
            writer.write_table(pyarrow.table(piece))
