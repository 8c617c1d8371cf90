"""A store in a notebook: its runs as objects, and all of them as one flat table.

from skillgraft import Runs
runs = Runs("runs")
runs.to_pandas().groupby(["graft", "sparsity"])["graft/test/accuracy"].mean()
runs["toy_film-tiny-learned"].graft()
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from skillgraft.analysis.summary import heading, results
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import checksums, index, job_state
from skillgraft.store.folders import Store
from skillgraft.store.names import CONFIG, GRAFT, HISTORY, METRICS, PREDICTIONS, STATUS

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from skillgraft.core.graft import Graft

# What a run is, in the columns of the flat table: name in the index → title.
NAMES = {
    "id": "id", "state": "state", "task": "task", "model": "model",
    "config/finetune.kind": "finetune", "selector": "graft", "sparsity": "sparsity",
    "config/shots": "shots", "seed": "seed", "region/size": "size",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of a store. All but `id`, `folder` and `state` raises InputError unless it is complete."""

    folder: Path
    state: str = job_state.COMPLETE

    @property
    def id(self) -> str:
        """The run's name."""
        return self.folder.name

    def file(self, name: str) -> Path:
        """Return the path of a file of the run, which need not be there."""
        if not checksums.is_complete(self.folder):
            raise InputError(f"{self.id}: {self.state}, not complete")
        return self.folder / name

    @property
    def config(self) -> Any:
        """The resolved configuration, an OmegaConf mapping."""
        return OmegaConf.load(self.file(CONFIG))

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured, as metrics.json has it: model → split → metric."""
        return read_json(self.file(METRICS))

    def graft(self) -> Graft:
        """Return the graft."""
        from skillgraft.core.graft import Graft

        return Graft.load(self.file(GRAFT))

    def predictions(self) -> pd.DataFrame:
        """Return class probabilities `p/<label>`, one row per example, model and split."""
        import pandas as pd

        return pd.read_parquet(self.file(PREDICTIONS))

    def history(self) -> pd.DataFrame:
        """Return the curves: one row per logged step of fine-tuning, then of mask training.

        Fine-tuning's are with the weights that runs share, and gone once these have been freed.
        """
        import pandas as pd

        shared = read_json(self.file(STATUS))["finetuned"]
        files = (
            Store(self.folder.parent).finetuned(shared) / HISTORY,
            self.file(HISTORY),
        )
        return pd.DataFrame([row for f in files if f.is_file() for row in read_json(f)])

    def __repr__(self) -> str:
        """Return the run's name and state."""
        return f"Run({self.id}, {self.state})"

    def _repr_html_(self) -> str:
        """Return the table that ends a run."""
        import pandas as pd

        if not checksums.is_complete(self.folder):
            return f"<p>{html.escape(repr(self))}</p>"
        titles, lines = results(self.metrics)
        table = pd.DataFrame(
            [line[1:] for line in lines],
            [line[0] for line in lines],
            pd.MultiIndex.from_tuples(titles),
        )
        text = heading(read_json(self.file(STATUS)), self.metrics)
        return f"<p>{html.escape(text)}</p>{table.to_html()}"


class Runs:
    """The runs of a store, complete or not, as they are at each call. Raises InputError without a folder."""

    def __init__(self, root: str | Path = "runs") -> None:
        self.store = Store(root)
        if not self.store.root.is_dir():
            raise InputError(f"{self.store.root}: no such folder")

    def states(self) -> dict[str, str]:
        """Return the state of every run by id; one that is made again still counts as complete."""
        unfinished = {run["id"]: run["state"] for run in job_state.unfinished(self.store)}
        whole = dict(index.columns(self.store.root, ["id", "state"]))
        return dict(sorted({**unfinished, **whole}.items()))

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.states())

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs by id."""
        for name, known in self.states().items():
            yield Run(self.store.run(name), known)

    def __getitem__(self, name: str) -> Run:
        """Return the run of an id, or of the start of one. Raises InputError unless it is one run's."""
        states = self.states()
        found = [name] if name in states else [one for one in states if one.startswith(name)]
        if len(found) != 1:
            some = ", ".join(found[:5]) + ", …" * (len(found) > 5) if found else "none"
            raise InputError(f"{name}: expected the start of one run's id, found {some}")
        return Run(self.store.run(found[0]), states[found[0]])

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per run: what it is, and every metric by its name in metrics.json joined by '/'."""
        import pandas as pd

        from skillgraft.analysis import collect

        whole = collect.collect(self.store)
        known = set(whole["id"]) if len(whole) else set()
        others = [run for run in job_state.unfinished(self.store) if run["id"] not in known]
        found = [c for c in map(str, whole) if "/" in c and not c.startswith("config/")]
        metrics = [c for c in found if not c.endswith("/run")]  # which run an overlap is with
        columns = list(dict.fromkeys([*NAMES, *metrics]))
        parts = [frame.reindex(columns=columns) for frame in (whole, pd.DataFrame(others))]
        table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        return table.rename(columns=NAMES).sort_values("id", ignore_index=True)

    def to_polars(self) -> pl.DataFrame:
        """Return the table of `to_pandas` as polars'. Raises InputError where polars is not installed."""
        try:
            import polars
        except ImportError as error:
            raise InputError('polars is not installed: pip install "skillgraft[polars]"') from error
        return polars.from_pandas(self.to_pandas())

    def __repr__(self) -> str:
        """Return the store and the number of its runs."""
        return f"Runs({str(self.store.root)!r}): {len(self)} runs"
