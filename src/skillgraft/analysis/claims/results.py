"""The result of a sweep as plain values: its verdict.json, and the file that `grafts claims --out` writes.

A file of `--out` has the verdict and how the runs were made. One function makes the table of statements
for all that show them: the terminal, the report and the READMEs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.evaluation.intervals import Interval
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import folders
from skillgraft.store.names import PROVENANCE, RECORD
from skillgraft.store.sweep_records import jobs_of, run_ids

if TYPE_CHECKING:
    from skillgraft.analysis.claims.statements import ClaimResult


def verdict(record: Mapping[str, Any], outcome: ClaimResult, runs: int) -> dict[str, Any]:
    """Return what verdict.json has of a sweep: nothing that differs where the same runs are made again."""
    return {
        "claim": record["claim"]["name"],
        "runs": runs,
        "statements": [statement.record() for statement in outcome.statements],
        "notes": outcome.notes,
    }


def publish(store: folders.Store, found: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write a file per verdict: the verdict, the sweep's command, and when, where and of which code it is."""
    out.mkdir(parents=True, exist_ok=True)
    for verdict in found:
        record = read_json(store.sweeps / verdict["folder"] / RECORD)
        files = [store.root / name / PROVENANCE for name in run_ids(record, jobs_of(record))]
        origin = made(record["started"], [read_json(file) for file in files if file.is_file()])
        content = {
            "sweep": verdict["sweep"],
            "command": record["command"],
            "made": origin,
            **verdict,
        }
        write_json(out / f"{verdict['sweep']}.json", content)


def made(started: float, provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return date, machine, commit, seeds and seconds of a sweep's runs.

    Args:
        started: When the sweep was started, in seconds since 1970.
        provenance: The provenance.json of each run.
    """
    devices = {f"{run['device']['name']} ({run['device']['machine']})" for run in provenance}
    commits = {str(run["code"]["commit"]) for run in provenance if run.get("code")}
    return {
        "date": datetime.fromtimestamp(started, UTC).date().isoformat(),
        "machine": ", ".join(sorted(devices)),
        "commit": ", ".join(sorted(commits)),
        "seeds": sorted({run["seed"] for run in provenance}),
        "seconds": round(sum(sum(run["seconds"].values()) for run in provenance)),
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results in a folder's JSON files, in the order of their names.

    Raises:
        InputError: A file holds something else.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            content = read_json(file)
        except ValueError as error:
            raise InputError(f"{file}: not JSON ({error})") from error
        if not isinstance(content, dict) or not {"sweep", "made"} <= set(content):
            raise InputError(f"{file}: no result of a sweep; grafts claims STORE --out writes them")
        found.append(content)
    return found


def statement_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a row per statement of several results: the paper's figure, mean [interval] and n, verdict."""
    return [
        {
            "sweep": result["sweep"],
            "statement": statement["statement"],
            "paper": statement["paper"],
            "measured": shown(statement["measured"]),
            "verdict": statement["verdict"],
        }
        for result in found
        for statement in result.get("statements", ())
    ]


def shown(value: Any) -> str:
    """Return a value of a result as text: an interval, a mean with its deviation, or the value itself."""
    if value is None:
        return "–"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 100):
        return f"{value:,.0f}"  # a count
    if not isinstance(value, Mapping):
        return f"{value:.3f}" if isinstance(value, float) else str(value)
    if "sd" in value:
        form = ",.0f" if value["mean"] >= 100 else ".3f"
        return f"{value['mean']:{form}} ± {value['sd']:{form}}"
    return str(Interval(**value))
