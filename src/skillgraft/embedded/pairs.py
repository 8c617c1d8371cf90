"""Sentence pairs of the embedded suite, for entailment and for paraphrase tasks."""

from skillgraft.embedded import lexicon as lex
from skillgraft.embedded.grammar import Dice, say
from skillgraft.embedded.texts import news, opinion

Pair = tuple[str, str]


# Some topics are more frequent than others, and praise is more frequent than blame. As in real data sets
# of pairs (Gururangan et al., NAACL 2018), the second sentence alone reveals a part of the label, and both
# sentences together reveal the rest.
TALKED_OF = (*("world",) * 3, *("sports",) * 3, "business", "tech")
PRAISED = 0.75


def entail(dice: Dice, label: str, style: str = "plain") -> Pair:
    """Return news, and a claim about the same topic (`entailment`) or another; styles are those of `news`."""
    topic = claimed = dice.pick(TALKED_OF)
    if label == "not_entailment":
        claimed = dice.pick([other for other in lex.NEWS if other != topic])
    claim = say(dice, dice.pick(lex.CLAIMS), lex.NEWS[claimed], {"subject": lex.SUBJECTS[claimed]})
    return news(dice, topic, style), claim


def paraphrase(dice: Dice, label: str, goods: tuple[str, ...] = ("film", "book", "gadget")) -> Pair:
    """Return two opinions on one kind of goods, with the same verdict (`equivalent`) or opposite verdicts."""
    kind = dice.pick(goods)
    mood, other = ("positive", "negative") if dice.chance(PRAISED) else ("negative", "positive")
    again = mood if label == "equivalent" else other
    return f"{opinion(dice, kind, mood)}.", f"{opinion(dice, kind, again)}."
