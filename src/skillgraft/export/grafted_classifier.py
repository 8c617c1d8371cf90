"""A grafted checkpoint that classifies texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import nn

from skillgraft.config.choices import Kind, Pool
from skillgraft.config.schema import TaskConfig
from skillgraft.export.checkpoints import INFERENCE_SPEC
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.rows import Row

if TYPE_CHECKING:
    import numpy as np

    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks.encoder import Encoder


@dataclass(frozen=True)
class GraftedClassifier:
    """A grafted checkpoint that classifies texts as its run did; `labels` are the classes in order."""

    classifier: Classifier
    encoder: Encoder
    labels: list[str]

    def __call__(self, texts: Sequence[str | tuple[str, str]], batch_size: int = 64) -> np.ndarray:
        """Return (N, classes) float32 class probabilities of texts, or of pairs of texts."""
        from skillgraft.evaluation.predict import predict

        pairs = ((text, None) if isinstance(text, str) else text for text in texts)
        examples = self.encoder([Row(first, second, 0) for first, second in pairs])
        pad = self.encoder.tokenizer.pad_token_id or 0
        return predict(self.classifier, examples, pad, batch_size)


def load_applied(folder: str | Path) -> GraftedClassifier:
    """Return the classifier of texts that `grafts apply` has written to a folder.

    Raises InputError for another folder, or where the task that the prompt is made of is not known.
    """
    from skillgraft.models import families, pretrained
    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks import encoder as encoders
    from skillgraft.tasks import tokens

    folder = Path(folder)
    if not (folder / INFERENCE_SPEC).is_file():
        raise InputError(
            f"{folder}: no {INFERENCE_SPEC}: not written by `grafts apply` of a run or a head"
        )
    known = files.read_json(folder / INFERENCE_SPEC)
    kind, pool = Kind(known["finetune"]), Pool(known["pool"]) if known["pool"] else None
    tokenizer, config = pretrained.load_tokenizer(folder), pretrained.load_config(folder)
    loaded, _ = pretrained.load_pretrained(kind, folder, config, known["attention"])
    words, head = None, None
    if kind is Kind.linear:
        tensors = load_file(folder / "head.safetensors")
        head = nn.utils.skip_init(nn.Linear, *reversed(tensors["weight"].shape))
        head.load_state_dict(tensors)
    else:
        task = TaskConfig(folder.name, known["template"], known["labels"], known["verbalizer"])
        words = tokens.words_to_ids(task, tokenizer)
    classifier = Classifier(
        loaded, (), words=words, head=head, pool=pool, norm=known["norm"],
        causal=kind is Kind.autoregressive,
    )  # fmt: skip
    length = known["max_length"] or families.longest_input(classifier)
    encoder = encoders.encoder(tokenizer, kind, pool, known["template"], length)
    if encoder.template is None and (encoder.causal or pool is Pool.mask):
        raise InputError(f"{folder}: the template is not known; apply the run, not its graft alone")
    return GraftedClassifier(classifier.eval(), encoder, known["labels"])
