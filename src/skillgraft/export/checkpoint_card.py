"""What a grafted checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skillgraft.config.choices import Pool
from skillgraft.core.graft import Graft
from skillgraft.core.graft_facts import tasks_of

CARD = """# {model} with a graft of {task}

{size:,} of {graftable:,} graftable parameters ({sparsity:.2e}) have the fine-tuned values of a skillgraft
{selector} region; all others are those of the pre-trained model (base {base}).
"""
DELTA = """# {task} as a task vector of {model}

The fine-tuned less the pre-trained values of a skillgraft {selector} region, {size:,} of {graftable:,}
graftable parameters ({sparsity:.2e}), and zero everywhere else: to be added to the pre-trained model
(base {base}).
"""
LOADER = """
```python
from skillgraft import load_applied
classify = load_applied(folder)
probabilities = classify(["a text", "another"])  # (2, classes); pairs of texts as ("a", "b")
```

Classes in order: {labels}.
"""
HEAD = """
The model is the encoder; the head that was trained with it is in `head.safetensors`, on the {pool} of
the last hidden states{scaled}.{rows} Without skillgraft:

```python
encoder, head = AutoModel.from_pretrained(folder), load_file(f"{{folder}}/head.safetensors")
features = {features}
logits = features @ head["weight"].T + head["bias"]
```
"""
POOLED = {  # the features that a head reads, and how its texts are made
    Pool.first: ("encoder(**batch).last_hidden_state[:, 0]", ""),
    Pool.mean: (
        "(encoder(**batch).last_hidden_state * (m := batch['attention_mask'][..., None])).sum(1)"
        " / m.sum(1)",
        "",
    ),
    Pool.mask: (
        "encoder(**batch).last_hidden_state[batch['input_ids'] == tokenizer.mask_token_id]",
        " The template makes the texts.",
    ),
    Pool.last: (
        "encoder(**batch).last_hidden_state[:, -1]",
        " The template makes the texts, which are padded on the left.",
    ),
}


def card(graft: Graft, about: Mapping[str, Any], delta: bool, classifies: bool) -> str:
    """Return what a checkpoint that `apply` has written says of itself, in Markdown."""
    told = {name: about.get(name) or "several" for name in ("model", "selector")}
    told["task"] = ", ".join(tasks_of(graft))
    text = (DELTA if delta else CARD).format(
        **told, size=graft.size, graftable=graft.graftable, sparsity=graft.sparsity, base=graft.base[:12]
    )  # fmt: skip
    if delta:
        return text
    if classifies and about.get("labels"):
        text += LOADER.format(labels=", ".join(about["labels"]))
    if graft.head:
        pool, norm = Pool(about.get("pool") or Pool.first), about.get("norm")
        features, rows = POOLED[pool]
        if norm is not None:
            features = f"{norm:g} * torch.nn.functional.normalize({features}, dim=-1)"
        scaled = "" if norm is None else f", scaled to the norm {norm:g}"
        text += HEAD.format(pool=pool.value, scaled=scaled, rows=rows, features=features)
    return text
