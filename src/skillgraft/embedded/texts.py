"""Single texts of the embedded suite: each function returns one text for one label."""

from skillgraft.embedded import lexicon as lex
from skillgraft.embedded.grammar import Dice, say
from skillgraft.embedded.lexicon import Lexicon

AMBIGUOUS = 0.05  # share of texts with equally strong evidence for and against the label


def toned(goods: str, mood: str, slang: bool = False) -> Lexicon:
    """Return the words for goods in a mood; `tone` and `verb` express the mood, `counter` the opposite."""
    praise = lex.PRAISE["slang" if slang else goods]
    verbs = lex.SLANG_VERBS if slang else lex.VERDICT_VERBS
    other = "negative" if mood == "positive" else "positive"
    words = {
        "tone": praise[mood] * 4 + lex.EITHER_WAY,
        "counter": praise[other],
        "verb": verbs[mood],
    }
    return {**lex.GOODS[goods], **words}


def opinion(dice: Dice, goods: str, mood: str) -> str:
    """Return a clause, without a full stop, that praises or blames goods."""
    return say(dice, dice.pick(lex.POLAR), toned(goods, mood))


def review(dice: Dice, label: str, goods: str, style: str = "plain") -> str:
    """Return a review of a film, book, gadget or food whose main clauses express the label.

    Styles: `slang` (other words of praise and blame), `long` (more facts and concessions) and
    `negated` (says what the thing is not).
    """
    words = toned(goods, label, style == "slang")
    if dice.chance(AMBIGUOUS):
        both = [opinion(dice, goods, mood) for mood in ("negative", "positive")]
        return ", but ".join(dice.shuffled(both)) + "."
    negated = 0.6 if style == "negated" else 0.08

    def polar() -> str:
        return say(dice, dice.pick(lex.NEGATED if dice.chance(negated) else lex.POLAR), words)

    verdict = polar()
    if dice.chance(0.5 if style == "long" else 0.2):
        verdict = f"{say(dice, dice.pick(lex.CONCESSION), words)}, {verdict}"
    elif dice.chance(0.5):
        verdict = f"{verdict} and {polar()}"
    facts = [say(dice, "{fact}", words) for _ in range(2 if style == "long" else 1)]
    if style != "long" and dice.chance(0.5):
        facts = []
    return ". ".join(dice.shuffled([verdict, *facts])) + "."


def news(dice: Dice, label: str, style: str = "plain") -> str:
    """Return news on a topic; half of all texts have one word from another topic; style `chat` is gossip."""
    topics = tuple(lex.NEWS)
    other = dice.pick([topic for topic in topics if topic != label])
    own = dict(lex.NEWS[label])
    stray = dice.pick(tuple(own))
    if dice.chance(0.5):
        own[stray] = lex.NEWS[other][stray]
    if dice.chance(AMBIGUOUS):
        own["actor"], own["target"] = lex.NEWS[other]["actor"], lex.NEWS[other]["target"]
    return say(dice, dice.pick(lex.CHAT_FORMS if style == "chat" else lex.NEWS_FORMS), own)


def question(dice: Dice, label: str, style: str = "plain") -> str:
    """Return a question for the label's kind of answer; style `indirect` makes it part of a sentence."""
    forms = lex.INDIRECT_ASK if style == "indirect" else lex.PLAIN_ASK
    asked = dice.pick(lex.QUESTIONS[label])
    return say(dice, dice.pick(forms), {"question": (asked,)}, lex.ASKING)


def stance(dice: Dice, label: str, goods: str = "film") -> str:
    """Return an opinion (`subjective`) or a fact (`objective`), both with evaluative words."""
    praise = lex.PRAISE[goods]
    words = {**lex.ASKING, **lex.GOODS[goods], "tone": (*praise["positive"], *praise["negative"])}
    kind = lex.OPINION if label == "subjective" else lex.FACT
    return say(dice, "{told}. {fact}." if dice.chance(0.3) else "{told}.", words, kind)
