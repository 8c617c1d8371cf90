"""The graft: a value that holds a region with its fine-tuned and pre-trained values."""

from __future__ import annotations

import hashlib
import html
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from skillgraft import hub, region
from skillgraft.errors import InputError
from skillgraft.region import Layout

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

M = TypeVar("M", bound=nn.Module)
FORMAT = 1  # of the file; a reader refuses a newer one
MODULES = {  # kinds of module in a transformer block, by name (method: section 3, `module`)
    "attention in": r"c_attn\.",  # GPT-2's query, key and value in one matrix
    "query": r"(query|q_lin|q_proj|query_proj)\.|\.q_bias$",
    "key": r"(key|k_lin|k_proj|key_proj)\.",
    "value": r"(value|v_lin|v_proj|value_proj)\.|\.v_bias$",
    "LayerNorm": r"(LayerNorm|layer_?norm|ln_\d|[qk]_norm)\.",
    "attention output": r"(attention|attn)\.(output\.dense|out_lin|out_proj|o_proj|c_proj)\.",
    "MLP in": r"(intermediate\.dense|lin1|fc1|c_fc|gate_proj|up_proj)\.",
    "MLP out": r"(output\.dense|lin2|fc2|down_proj|mlp\.c_proj)\.",
}


class GraftError(InputError):
    """A graft that does not fit the model, or a file that is not whole."""


class Target(NamedTuple):
    """Where one tensor of a region lies in a model: its flat indices, and the model's values there."""

    name: str
    parameter: nn.Parameter
    indices: Tensor
    before: Tensor

    def write(self, values: Tensor) -> None:
        """Write values at the indices, in place."""
        at = self.indices.to(self.parameter.device)  # the model may have moved inside the block
        region.write_at(self.parameter.data, at, values.to(self.parameter))


@dataclass(frozen=True, eq=False)
class Graft:
    """θ_pre + γ⊙Δ, as what of it differs from θ_pre.

    `indices`, `values` and `pretrained` map each graftable parameter's name to sorted flat indices
    (int64), the fine-tuned values there and the pre-trained values there; `shapes` to its shape.
    `base` is the digest of all graftable pre-trained tensors. `head` holds a new linear head.
    """

    indices: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    pretrained: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        chosen: Tensor,
        pretrained: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        meta: Mapping[str, Any] | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> Graft:
        """Return the graft of sorted flat indices `chosen`, counted through `pretrained` in its order."""
        layout = Layout.of(pretrained)
        indices = {name: part.cpu() for name, part in layout.split(chosen).items()}

        def at(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: tensors[n].detach().cpu().take(i) for n, i in indices.items()}

        return cls(
            indices,
            at(finetuned),
            at(pretrained),
            layout.shapes,
            region.digest(pretrained),
            dict(meta or {}),
            {name: tensor.detach().cpu().clone() for name, tensor in (head or {}).items()},
        )

    # ------------------------------------------------------------------------------ the region

    @property
    def layout(self) -> Layout:
        """How the graftable tensors lie in one flat vector."""
        return Layout(self.shapes)

    @property
    def size(self) -> int:
        """‖γ‖₀, the number of entries in the region."""
        return sum(index.numel() for index in self.indices.values())

    @property
    def graftable(self) -> int:
        """The number of graftable parameters."""
        return self.layout.total

    @property
    def sparsity(self) -> float:
        """The measured share of graftable parameters that the region keeps."""
        return self.size / self.graftable if self.graftable else 0.0

    @property
    def tasks(self) -> list[str]:
        """The tasks whose regions are in it: one, or those of its parents."""
        return list(dict.fromkeys(named_tasks(self.meta)))

    def region(self) -> Tensor:
        """Return the sorted flat indices of the region through all graftable tensors, int64."""
        return self.layout.join(self.indices)

    def sizes(self) -> dict[str, int]:
        """Return the region's number of entries in each tensor."""
        return {name: index.numel() for name, index in self.indices.items()}

    def by_layer(self) -> dict[str, float]:
        """Return the share of the region in each transformer block, by its number."""
        return region.shares(self.sizes(), layer_of)

    def by_module(self) -> dict[str, float]:
        """Return the share of the region in each kind of module."""
        return region.shares(self.sizes(), module_of)

    def overlap(self, other: Graft) -> dict[str, float | None]:
        """Return `iou`, `a_in_b`, `b_in_a` and `chance` of two regions of one base model."""
        self._same_base(other)
        theirs = self.layout.join(other.indices)  # in this graft's order of tensors
        return region.overlap(self.region(), theirs, self.graftable)

    def iou(self, other: Graft) -> float:
        """Return |A∩B| / |A∪B|; two empty regions have 0."""
        return self.overlap(other)["iou"] or 0.0

    def _same_base(self, other: Graft) -> None:
        if self.base != other.base:
            raise GraftError(
                f"the grafts have different base models: {self.describe()} and {other.describe()}"
            )

    def describe(self) -> str:
        """Return the base model's name and the start of its digest."""
        return f"{self.meta.get('model', 'unnamed')} ({self.base[:12]})"

    def facts(self) -> dict[str, str]:
        """Return what there is to say of the graft in a few lines, each with its name."""
        told = {"selector": "selector", "sparsity asked": "asked_sparsity", "rule": "rule"}
        told |= {"fine-tuning": "finetune", "seed": "seed"}
        return {
            "base model": self.describe(),
            "task": ", ".join(self.tasks),
            "region": f"{self.size:,} of {self.graftable:,} parameters ({self.sparsity:.2e})",
            **{name: str(self.meta[k]) for name, k in told.items() if self.meta.get(k) is not None},
            "mostly in layers": most(self.by_layer()),
            "mostly in modules": most(self.by_module()),
        }

    def __repr__(self) -> str:
        """Return one line: size, sparsity, base model, task, selector, and where most of it is."""
        about = [f"{key}={self.meta[key]}" for key in ("task", "selector") if key in self.meta]
        if self.size:
            layer, module = most(self.by_layer(), 1), most(self.by_module(), 1)
            about.append(f"layer {layer}, {module}")
        return (
            f"Graft({self.size:,} of {self.graftable:,} = {self.sparsity:.2e}, "
            f"base {', '.join([self.describe(), *about])})"
        )

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        rows = (map(html.escape, pair) for pair in self.facts().items())
        cells = (f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    # ------------------------------------------------------------------------------- algebra

    def __or__(self, other: Graft) -> Graft:
        """Return the union; a shared entry gets the mean of the two values."""
        return union([self, other])

    def __and__(self, other: Graft) -> Graft:
        """Return the intersection, with this graft's values."""
        return intersection([self, other])

    # ------------------------------------------------------------------------------- applying

    def apply(self, model: M) -> M:
        """Write the graft into `model` in place and return it; nothing is written where it does not fit.

        The stored pre-trained values are compared, not the whole model. Raises GraftError.
        """
        for target in self.targets(model):
            target.write(self.values[target.name])
        return model

    def applied(self, model: M) -> AbstractContextManager[M]:
        """Apply the graft inside a `with` block and undo it exactly at its end."""
        return active(model, self)

    def targets(self, model: nn.Module) -> list[Target]:
        """Return where in the model each tensor of the region goes, after every check. Raises GraftError."""
        wanted = sorted(name for name, index in self.indices.items() if index.numel())
        found = self._matches(wanted, dict(model.named_parameters()))
        targets = []
        for name in wanted:
            parameter = found[name]
            if tuple(parameter.shape) != tuple(self.shapes[name]):
                raise GraftError(
                    f"{name}: the model's shape is {tuple(parameter.shape)}, "
                    f"the graft's {tuple(self.shapes[name])}"
                )
            index = self.indices[name].to(parameter.device)
            before = parameter.data.take(index)
            if not torch.equal(before, self.pretrained[name].to(parameter)):
                raise GraftError(
                    f"{name}: the model's values are not those of the graft's base, {self.describe()}"
                )
            targets.append(Target(name, parameter, index, before))
        return targets

    def _matches(
        self, wanted: list[str], parameters: dict[str, nn.Parameter]
    ) -> dict[str, nn.Parameter]:
        """Return the parameter of each wanted name: all of them behind one and the same prefix.

        The model may have a prefix that the graft lacks (a wrapper, an LM class) or lack the one
        that the graft has (a graft learned on the LM class, applied to the encoder). Names may end
        in each other, so all the graft's names decide between prefixes, not only the wanted.
        """
        if not wanted:
            return {}
        starts = {name.partition(".")[0] for name in self.shapes}
        common = f"{starts.pop()}." if len(starts) == 1 else ""
        for drop in dict.fromkeys(["", common]):
            stems = {name: name.removeprefix(drop) for name in self.shapes}
            first = stems[wanted[0]]
            ending = [full for full in parameters if f".{full}".endswith(f".{first}")]
            fitting = [
                prefix
                for prefix in (full.removesuffix(first) for full in ending)
                if all(prefix + stems[name] in parameters for name in wanted)
            ]
            whole = [p for p in fitting if all(p + stem in parameters for stem in stems.values())]
            best = [p for p in whole if not p] or whole or fitting
            if len(best) > 1:
                raise GraftError(f"the graft fits the model in {len(best)} places: {best}")
            if best:
                return {name: parameters[best[0] + stems[name]] for name in wanted}
        ends = [
            name for name in wanted if not any(f".{p}".endswith(f".{name}") for p in parameters)
        ]
        missing = f"has no parameter {ends[0]}" if ends else "lacks some of the graft's names"
        raise GraftError(f"the model {missing} (base {self.describe()})")

    # -------------------------------------------------------------------------------- the file

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; indices are int32 where they fit."""
        path = Path(path)
        small = max(self.layout.sizes, default=0) < 2**31
        kind = torch.int32 if small else torch.int64
        tensors = {f"indices/{n}": i.to(kind) for n, i in self.indices.items() if i.numel()}
        tensors |= {f"values/{n}": self.values[n] for n, i in self.indices.items() if i.numel()}
        tensors |= {
            f"pretrained/{n}": self.pretrained[n] for n, i in self.indices.items() if i.numel()
        }
        tensors |= {f"head/{name}": tensor for name, tensor in self.head.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        header = {
            "format": FORMAT,
            "base": self.base,
            "shapes": [[name, list(shape)] for name, shape in self.shapes.items()],
            "meta": dict(self.meta),
            "size": self.size,
            "graftable": self.graftable,
            # of the tensors that have no entry and so are not in the file
            "dtype": str(next(iter(self.values.values()), torch.empty(0)).dtype),
        }
        header["digest"] = digest_of(header, tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".partial")
        scratch.write_bytes(save(tensors, {"skillgraft": json.dumps(header)}))
        scratch.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Graft:
        """Read a graft file; raises GraftError where it is missing, truncated, altered or no graft."""
        path = Path(path)
        if not path.is_file():
            raise GraftError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("skillgraft", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise GraftError(f"{path}: not a whole safetensors file ({error})") from error
        if not isinstance(header, dict) or not isinstance(header.get("format"), int):
            raise GraftError(f"{path}: a safetensors file, but no graft")
        if header["format"] > FORMAT:
            raise GraftError(f"{path}: format {header['format']} is newer than this version reads")
        if header.pop("digest", None) != digest_of(header, tensors):
            raise GraftError(f"{path}: its content does not match its digest: the file was altered")
        shapes = {name: tuple(shape) for name, shape in header["shapes"]}
        empty = torch.empty(0, dtype=getattr(torch, header["dtype"].removeprefix("torch.")))
        none = {"indices": torch.empty(0, dtype=torch.int32)}

        def named(kind: str) -> dict[str, Tensor]:
            return {n: tensors.get(f"{kind}/{n}", none.get(kind, empty)) for n in shapes}

        indices = {name: index.long() for name, index in named("indices").items()}
        values, pretrained = named("values"), named("pretrained")
        check_indices(indices, shapes, path)
        for name, index in indices.items():
            if not index.shape == values[name].shape == pretrained[name].shape:
                raise GraftError(f"{path}: {name}: not as many values as indices")
        head = {n.removeprefix("head/"): t for n, t in tensors.items() if n.startswith("head/")}
        return cls(indices, values, pretrained, shapes, header["base"], header["meta"], head)

    # --------------------------------------------------------------------------------- the hub

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None) -> Graft:
        """Read the graft of a hub repository, checked as a local file is; raises InputError."""
        return cls.load(hub.fetch(repo_id, revision))

    def card(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        base_model: str | None = None,
    ) -> str:
        """Return the graft's model card for the hub.

        `metrics` is the content of a run's metrics.json, `task` its configuration's task, `base_model`
        the pre-trained model's hub id; what is not given is left out.
        """
        facts = {**self.facts(), "sha256 of the graftable base": self.base}
        return hub.card(repo_id, facts, self.meta, metrics, task, base_model)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        base_model: str | None = None,
        private: bool = False,
    ) -> CommitInfo:
        """Put graft, card and metrics into a hub repository, made where it is not there; see `card`.

        Whoever `hf auth login` has logged in, or HF_TOKEN names. Raises InputError.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            self.save(folder / hub.FILE)
            text = self.card(repo_id, metrics=metrics, task=task, base_model=base_model)
            (folder / "README.md").write_text(text, encoding="utf-8")
            if metrics is not None:
                content = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
                (folder / "metrics.json").write_text(content, encoding="utf-8")
            return hub.push(folder, repo_id, private)


@contextmanager
def active(model: M, *grafts: Graft) -> Iterator[M]:
    """Graft a model inside a `with` block, with the union of several grafts, and undo it exactly at its end.

    It takes milliseconds, so that one model can change skills with every request; requests that want
    other skills must not run inside the block. Raises GraftError, with nothing written.
    """
    if not grafts:
        yield model
        return
    graft = grafts[0] if len(grafts) == 1 else union(grafts)
    targets = graft.targets(model)
    try:
        for target in targets:
            target.write(graft.values[target.name])
        yield model
    finally:
        for target in targets:
            target.write(target.before)


def union(grafts: Sequence[Graft]) -> Graft:
    """Return the union of grafts of one base; a shared entry gets the mean of all values it has.

    Of three and more this is not a | b | c, which would weigh the last most.
    """
    first = grafts[0]
    for other in grafts:
        first._same_base(other)
    alike: dict[tuple[torch.dtype, ...], list[str]] = {}  # names whose values fit one vector
    for name in first.shapes:
        alike.setdefault(tuple(graft.values[name].dtype for graft in grafts), []).append(name)
    indices: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    pretrained: dict[str, Tensor] = {}
    for names in alike.values():
        layout = Layout({name: first.shapes[name] for name in names})
        every = torch.cat([layout.join(graft.indices) for graft in grafts])
        value = torch.cat([graft.values[name] for graft in grafts for name in names])
        index, place = every.unique(return_inverse=True)
        count = torch.bincount(place, minlength=index.numel())
        # in float64, where the sum of large fp16 values is finite
        total = torch.zeros(index.numel(), dtype=torch.float64).index_add_(0, place, value.double())
        one, before = (torch.empty(index.numel(), dtype=value.dtype) for _ in range(2))
        one[place] = value
        before[place] = torch.cat([graft.pretrained[name] for graft in grafts for name in names])
        mean = torch.where(count > 1, (total / count).to(value.dtype), one)
        parts = layout.split(index)
        sizes = [part.numel() for part in parts.values()]
        indices |= parts
        values |= dict(zip(names, mean.split(sizes), strict=True))
        pretrained |= dict(zip(names, before.split(sizes), strict=True))
    head = first.head if all(same(first.head, graft.head) for graft in grafts) else {}
    return combined(grafts, "union", indices, values, pretrained, head)


def intersection(grafts: Sequence[Graft]) -> Graft:
    """Return the intersection of grafts of one base, with the first one's values."""
    first = grafts[0]
    for other in grafts:
        first._same_base(other)
    indices, values, pretrained = {}, {}, {}
    for name, index in first.indices.items():
        shared = torch.ones_like(index, dtype=torch.bool)
        for other in grafts:
            shared &= torch.isin(index, other.indices[name], assume_unique=True)
        indices[name], values[name] = index[shared], first.values[name][shared]
        pretrained[name] = first.pretrained[name][shared]
    return combined(grafts, "intersection", indices, values, pretrained, first.head)


def combined(
    grafts: Sequence[Graft],
    rule: str,
    indices: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
) -> Graft:
    """Return a graft that says which grafts it was made from."""
    first = grafts[0]
    meta = {
        "model": first.meta.get("model"),
        "rule": rule,
        "parents": [dict(graft.meta) for graft in grafts],
    }
    return Graft(indices, values, pretrained, first.shapes, first.base, meta, head)


def digest_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a graft file's header (less its digest) and tensors."""
    return hashlib.sha256((json.dumps(header) + region.digest(tensors)).encode()).hexdigest()


def check_indices(indices: Mapping[str, Tensor], shapes: Mapping[str, tuple], path: Path) -> None:
    """Raise GraftError for an index that is out of range, or not above the one before it."""
    for name, size in zip(shapes, Layout(shapes).sizes, strict=True):
        index = indices[name]
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise GraftError(f"{path}: {name}: an index is out of range (0 to {size - 1})")
        if bool((index.diff() <= 0).any()):
            raise GraftError(f"{path}: {name}: the indices are not sorted and unique")


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two mappings of tensors are equal, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def named_tasks(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks that a graft's region was chosen for: its own, or those of its parents."""
    if "regions" in meta:  # stored grafts, evaluated on another task
        yield from meta["regions"]
    elif "parents" in meta:
        for parent in meta["parents"]:
            yield from named_tasks(parent)
    else:
        yield str(meta.get("task", "unnamed"))


def most(shares: Mapping[str, float], count: int = 3) -> str:
    """Return the groups with the largest shares of a region, in percent: '3 (41 %), 2 (30 %)'."""
    order = sorted((group for group in shares if shares[group]), key=lambda group: -shares[group])
    return ", ".join(f"{group} ({round(100 * shares[group])} %)" for group in order[:count])


def layer_of(name: str) -> str:
    """Return the number of the transformer block in a parameter's name, or 'other'."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return match[1] if match else "other"


def module_of(name: str) -> str:
    """Return the kind of module a parameter belongs to, or 'other'."""
    return next((kind for kind, pattern in MODULES.items() if re.search(pattern, name)), "other")
