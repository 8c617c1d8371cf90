"""Choose the parameters that fine-tuning trains: all graftable ones, biases (BitFit), or LoRA's updates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skillgraft.config.choices import Trainable
from skillgraft.config.schema import RunConfig
from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.seeds import derive


@contextmanager
def trainable(classifier: Classifier, cfg: RunConfig) -> Iterator[None]:
    """Make the parameters that `finetune.trainable` names trainable inside a `with` block.

    `full` trains all graftable parameters, `bias` only biases (BitFit, Ben Zaken et al., ACL 2022), and
    `lora` low-rank updates (Hu et al., ICLR 2022). At the end of the block low-rank updates are merged
    into the dense matrices, so that Δ exists for every choice.
    """
    options = cfg.finetune
    if options.trainable is Trainable.full:
        yield
        return
    if options.trainable is Trainable.bias:
        for name, parameter in classifier.graftable.items():
            parameter.requires_grad_(name.endswith("bias"))
        if not any(parameter.requires_grad for parameter in classifier.graftable.values()):
            raise InputError(
                "finetune.trainable=bias: this model's graftable parameters have no bias"
            )
        yield
    else:
        with low_rank(classifier, cfg):
            yield
    for parameter in classifier.graftable.values():
        parameter.requires_grad_(True)


@contextmanager
def low_rank(classifier: Classifier, cfg: RunConfig) -> Iterator[None]:
    """Give every graftable matrix a trainable low-rank update inside a `with` block, merged at its end."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            'finetune.trainable=lora needs peft: pip install "skillgraft[lora]"'
        ) from error
    options = cfg.finetune
    assert options.rank is not None
    assert options.alpha is not None
    ours = {id(parameter) for parameter in classifier.graftable.values()}
    matrices = [
        name
        for name, module in classifier.model.named_modules()
        if id(getattr(module, "weight", None)) in ours and module.weight.ndim == 2
    ]
    if not matrices:
        raise InputError(
            "finetune.trainable=lora: no graftable parameter of this model is a matrix"
        )
    # GPT-2's Conv1D stores its matrix transposed, (in, out)
    transposed = any(type(classifier.model.get_submodule(n)).__name__ == "Conv1D" for n in matrices)
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=matrices,
        fan_in_fan_out=transposed,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft reads an attribute that transformers 5 deprecates
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        torch.manual_seed(derive(cfg.seed, "model", "lora"))
        adapted = peft.get_peft_model(classifier.model, settings)
    yield
    adapted.merge_and_unload()
