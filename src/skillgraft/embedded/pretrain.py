"""Rebuild the tokenizer and the pre-trained model of the embedded suite.

    python -m skillgraft.embedded.pretrain                     # the shipped model, 5 minutes
    python -m skillgraft.embedded.pretrain --steps 20 --out x  # a try

A BERT with 4 layers of 128 units is pre-trained by masked language modeling on `generator.corpus`. Two
runs on one machine write the same bytes: the number of threads is fixed, and all random numbers come from
one seed.
"""

import argparse
import math
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from skillgraft.embedded import MODEL
from skillgraft.embedded.generator import corpus
from skillgraft.embedded.lexicon import PROMPTED

THREADS = 1  # part of the result: another number of threads adds floats in another order
SEED = 0
STEPS = 2500
BATCH = 64  # documents per step
MASKED = 0.25  # share of tokens that are predicted
MASKED_ANSWERS = 0.6  # the same share for label words, of which a short training sees few
PEAK_LR = 2e-3
WARM_UP = 0.1  # share of the steps in which the learning rate rises
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DOCUMENTS = 20_000  # for the vocabulary and the initial word vectors, whatever the steps
INIT_STD = 0.06  # BERT's 0.02 suits 768 units; a model with 128 units learns far slower with 0.02


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a lower-casing tokenizer with one token for each word and each punctuation mark."""
    words = {word for text in corpus(DOCUMENTS) for word in re.findall(r"\w+|[^\w\s]", text)}
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def word_vectors(tokenizer: PreTrainedTokenizerFast, size: int) -> Tensor:
    """Return unit vectors of the words, (V, size), which are close for words that share documents.

    The vectors factorize the matrix of positive pointwise mutual information (PPMI) of two words in one
    document, max(0, log p(v, w) / (p(v) p(w))), by its largest eigenvalues.
    """
    documents = tokenizer(list(corpus(DOCUMENTS)), add_special_tokens=False)["input_ids"]
    holds = torch.zeros(DOCUMENTS, len(tokenizer))  # (documents, V): 1 where a word occurs
    for row, ids in enumerate(documents):
        holds[row, ids] = 1
    share = holds.mean(0)  # p(v), (V,)
    together = holds.T @ holds / DOCUMENTS  # p(v, w), (V, V)
    information = (together / torch.outer(share, share).clamp(min=1e-9)).clamp(min=1).log()
    values, vectors = torch.linalg.eigh(information.fill_diagonal_(0))  # in ascending order
    return F.normalize(vectors[:, -size:] * values[-size:].sqrt(), dim=1)


def build_model(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    """Return the untrained model, with parameters from torch's global generator.

    The word embeddings start at `word_vectors`: a training this short would not learn by itself which
    words are related.
    """
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
            pad_token_id=0,
            initializer_range=INIT_STD,
        )
    )
    words = model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        # unit vectors times INIT_STD · √size have elements of standard deviation INIT_STD
        words.copy_(word_vectors(tokenizer, words.shape[1]) * INIT_STD * words.shape[1] ** 0.5)
        words[: len(SPECIAL)].normal_(std=INIT_STD)
    return model


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield input ids and attention mask of new documents, both (BATCH, length), without end.

    Four batches at a time are sorted by length, so that batches have less padding.
    """
    for seed in count(1):
        texts = sorted(corpus(4 * BATCH, seed), key=len)
        for at in torch.randperm(4).tolist():
            batch = texts[at * BATCH : (at + 1) * BATCH]
            encoded = tokenizer(batch, padding=True, return_tensors="pt")
            yield encoded["input_ids"], encoded["attention_mask"]


def mask_rates(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return, for each token of the vocabulary, the probability that the token is predicted, (V,)."""
    rates = torch.full((len(tokenizer),), MASKED)
    rates[tokenizer.convert_tokens_to_ids(sorted(PROMPTED))] = MASKED_ANSWERS
    rates[: len(SPECIAL)] = 0
    return rates


def mask_words(ids: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Return corrupted ids and the bool mask of the positions to predict, both with the shape of `ids`.

    As in BERT (Devlin et al., NAACL 2019), 80 % of these positions become the mask token, 10 % a random
    word, and 10 % keep their token.
    """
    chosen = torch.rand(ids.shape) < rates[ids]
    fate = torch.rand(ids.shape)
    random_words = torch.randint(len(SPECIAL), len(rates), ids.shape)
    corrupted = torch.where(chosen & (fate < 0.8), SPECIAL.index("[MASK]"), ids)
    return torch.where(chosen & (fate >= 0.9), random_words, corrupted), chosen


def masked_loss(model: BertForMaskedLM, ids: Tensor, attention: Tensor, rates: Tensor) -> Tensor:
    """Return the mean cross-entropy at the predicted positions, the only ones where the head is computed."""
    corrupted, chosen = mask_words(ids, rates)
    hidden = model.bert(corrupted, attention_mask=attention).last_hidden_state  # (B, length, 128)
    return F.cross_entropy(model.cls(hidden[chosen]), ids[chosen])


def rate(step: int, steps: int) -> float:
    """Return the factor of the peak learning rate at a step: a linear warm-up, then a cosine to zero."""
    warm_up = max(1, int(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def pretrain(out: Path, steps: int) -> None:
    """Pre-train for a number of steps, and write the tokenizer and the model in fp16 to the folder `out`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tokenizer = build_tokenizer()
        rates = mask_rates(tokenizer)
        model = build_model(tokenizer).eval()  # a training this short needs no dropout
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
        for step, (ids, attention) in zip(range(steps), batches(tokenizer), strict=False):
            loss = masked_loss(model, ids, attention, rates)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == steps - 1:
                print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    torch.set_num_threads(threads)
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)


def main() -> None:
    """Read the command line and pre-train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    args = parser.parse_args()
    pretrain(args.out, args.steps)


if __name__ == "__main__":
    main()
