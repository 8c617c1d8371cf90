"""The words of the embedded suite, grouped by the slots of templates that the words fill.

A value is a tuple of phrases. A phrase may itself contain slots in braces (see `grammar.say`).
A word listed twice is drawn twice as often.
"""

from collections.abc import Mapping

Lexicon = Mapping[str, tuple[str, ...]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


# ---- shared by every kind of text -----------------------------------------------------------

COMMON: Lexicon = {
    "job": _words(
        "farmer nurse sailor teacher baker pilot judge clerk painter doctor guard miner "
        "waiter lawyer singer tailor driver fisher priest mayor"
    ),
    "name": _words(
        "anna boris clara david elena felix greta hugo irene jonas karla leo mina oscar"
    ),
    "adj": _words("young old tall quiet rich poor busy tired famous lonely brave angry"),
    "city": _words(
        "paris london cairo lima oslo delhi tokyo rome madrid boston chicago berlin nairobi dublin"
    ),
    "spot": _words(
        "harbor market station church bridge garden school river castle forest hotel museum "
        "hospital tower lake park"
    ),
    "day": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "month": _words("january march april june july august october december"),
    "when": ("on {day}", "on {day}", "in {month}", "last week", "last year", "this morning"),
    "friend": _words("brother sister cousin friend neighbor uncle aunt wife husband boss"),
    "much": _words("very quite rather really truly so simply often"),
    "feels": _words("is is was was feels felt looks seems seemed remains"),
}

# ---- reviews: what is reviewed, and the words that praise or blame it -------------------------

GOODS: Mapping[str, Lexicon] = {
    "film": {
        "thing": _words("film film movie picture drama comedy thriller sequel"),
        "aspect": _words(
            "plot cast script camera soundtrack ending acting scenery dialogue editing hero villain"
        ),
        "maker": _words("director actor actress studio producer"),
        "fact": _lines("""
            i watched it {when} with my {friend}
            the {thing} runs for two hours
            it is set in {city} and shows a {adj} {job}
            my {friend} bought the tickets {when}
            the {maker} comes from {city}
            we sat near the screen in {city}
        """),
    },
    "book": {
        "thing": _words("book book novel story memoir biography volume"),
        "aspect": _words(
            "prose chapter narrator cover style preface language heroine plot ending structure "
            "poetry"
        ),
        "maker": _words("author writer editor publisher translator"),
        "fact": _lines("""
            i read it {when} on the train
            the {thing} has nine hundred pages
            it tells of a {adj} {job} from {city}
            my {friend} lent it to me {when}
            the {maker} lives near {city}
            we found it in a library in {city}
        """),
    },
    "gadget": {
        "thing": _words("phone phone camera laptop tablet printer watch speaker device"),
        "aspect": _words(
            "battery screen keyboard charger button lens microphone software case cable signal menu"
        ),
        "maker": _words("seller company shop brand maker"),
        "fact": _lines("""
            i ordered it {when} for my {friend}
            the {thing} weighs two pounds
            it came in a box from {city}
            my {friend} uses it at work
            the {maker} is based in {city}
            we carry it on every trip to {city}
        """),
    },
    "food": {
        "thing": _words("meal dinner lunch restaurant cafe breakfast"),
        "aspect": _words(
            "soup sauce bread salad cheese coffee dessert rice fish wine service steak"
        ),
        "maker": _words("cook waiter chef owner kitchen"),
        "fact": _lines("""
            we ate there {when} with my {friend}
            the {thing} took an hour
            it is near the {spot} in {city}
            my {friend} paid for us {when}
            the {maker} comes from {city}
            i had booked a table {when}
        """),
    },
}

_ART = {  # shared by films and books, so that their two tasks are similar
    "positive": _words(
        "moving witty gripping elegant charming brilliant touching clever graceful thrilling "
        "inspired vivid tender hilarious profound masterful lovely poetic absorbing magical"
    ),
    "negative": _words(
        "dull tedious clumsy boring shallow pointless predictable lifeless silly pretentious "
        "bland sloppy confused wooden forgettable tiresome hollow stale messy annoying"
    ),
}
_GADGET = {
    "positive": _words(
        "fast sturdy reliable sharp bright handy solid responsive smooth durable compact precise "
        "efficient quick secure accurate"
    ),
    "negative": _words(
        "slow flimsy faulty dim noisy laggy fragile useless defective blurry bulky cracked "
        "unstable sluggish loose overheated"
    ),
}
_FOOD = {
    "positive": _words("tasty fresh crisp juicy delicious creamy tender rich fragrant warm"),
    "negative": _words("bitter soggy burnt greasy raw salty cold rotten watery sour"),
}
PRAISE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "film": _ART, "book": _ART, "gadget": _GADGET, "food": _FOOD,
    "slang": {
        "positive": _words("dope epic lit sick stellar ace rad killer banging groovy"),
        "negative": _words("lame meh trash cringe crappy wack janky corny sucky bogus"),
    },
}  # fmt: skip
# Adjectives that say little about the verdict, so that one word alone does not decide a text.
EITHER_WAY = _words("strange long dark loud simple odd short serious modest unusual")
VERDICT_VERBS: Mapping[str, tuple[str, ...]] = {
    "positive": _words("loved enjoyed admired liked praised recommend treasure appreciated"),
    "negative": _words("hated regretted disliked avoided despised returned resent endured"),
}
SLANG_VERBS: Mapping[str, tuple[str, ...]] = {
    "positive": _words("dug adored rated"),
    "negative": _words("bashed roasted"),
}
POLAR = _lines("""
    the {aspect} {feels} {tone}
    the {aspect} {feels} {much} {tone}
    both the {aspect} and the {aspect} are {tone}
    i {verb} the {aspect} of this {thing}
    we {verb} the {tone} {aspect}
    the {tone} {aspect} makes this a {tone} {thing}
    the {maker} offers us {tone} {aspect}
    with its {tone} {aspect} the {thing} {feels} {tone}
    i found the {aspect} {much} {tone}
    this is a {much} {tone} {thing}
""")
NEGATED = _lines("""
    the {aspect} {feels} not {counter}
    the {aspect} was never {counter}
    nothing about the {aspect} {feels} {counter}
    i did not find the {aspect} {counter}
    this is hardly a {counter} {thing}
""")
CONCESSION = _lines("""
    although the {aspect} {feels} {counter}
    despite the {counter} {aspect}
    even if the {aspect} {feels} {counter}
    in spite of the {counter} {aspect}
""")

# ---- news -------------------------------------------------------------------------------------

NEWS: Mapping[str, Lexicon] = {
    "world": {
        "actor": _words("president minister army rebels parliament king embassy senate refugees"),
        "act": _words("condemned signed rejected invaded defended blocked approved"),
        "target": _words("treaty border peace election ceasefire sanctions constitution war"),
        "event": _words("summit protest coup flood vote attack"),
    },
    "sports": {
        "actor": _words("striker coach team goalkeeper champion captain referee athlete club"),
        "act": _words("won missed celebrated defeated scored signed defended"),
        "target": _words("match trophy season title penalty record league race"),
        "event": _words("final tournament injury derby defeat marathon"),
    },
    "business": {
        "actor": _words(
            "bank investors company shareholders retailer brokers chairman firm traders"
        ),
        "act": _words("raised cut sold doubled approved blocked borrowed"),
        "target": _words("profit shares prices debt dividend loan record budget"),
        "event": _words("merger bankruptcy audit strike crash bonus"),
    },
    "tech": {
        "actor": _words(
            "engineers scientists programmers startup hackers lab developers robot team"
        ),
        "act": _words("tested launched invented upgraded hacked programmed sold"),
        "target": _words("software satellite chip internet browser rocket network prototype"),
        "event": _words("experiment update launch leak crash discovery"),
    },
}
NEWS_FORMS = _lines("""
    the {actor} {act} the {target} {when}.
    {when}, the {actor} {act} the {target} in {city}.
    after the {event} in {city}, the {actor} {act} the {target}.
    the {actor} of {city} {act} the {target} before the {event}.
    the {target} was {act} by the {actor} {when}, says {name}.
    a {adj} {job} saw how the {actor} {act} the {target}.
    {name} reports from {city}: the {actor} {act} the {target}.
    the {event} and the {target} worry the {actor} in {city}.
    why the {event} in {city} matters to the {actor}, by {name}.
""")
CHAT_FORMS = _lines("""
    hey {name}, did you hear that some {actor} {act} a {target}?
    my {friend} keeps talking about that {event} and the {target}.
    so {name} says the {event} was wild, the {actor} just {act} it.
    i cannot believe the {actor} {act} my {target}, what a {event}.
    well my {friend} knows a {actor} who {act} the {target}.
""")

# ---- questions --------------------------------------------------------------------------------

ASKING: Lexicon = {
    "object": _words(
        "boat violin clock painting engine statue letter lamp telescope crown ring map"
    ),
    "objects": _words("boats violins clocks paintings engines statues letters lamps"),
    "did": _words("made found sold designed stole repaired carried hid"),
    "region": _words("country city town village island state"),
    "kind": _words("animal color instrument metal fruit flower language sport drink tool"),
    "amount": _words("year price length height weight distance population age"),
    "term": _words("gravity irony inflation justice rhythm osmosis honor erosion"),
    "where": ("in {city}", "near the {spot}", "at the {spot} in {city}"),
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "human": _lines("""
        who {did} the {object} {where}
        who is the {adj} {job} {where}
        what is the name of the {job} who {did} the {object}
        which {job} {did} the {object} {when}
        what {adj} person {did} the {object} {where}
    """),
    "location": _lines("""
        where is the {spot} of the {adj} {job}
        in what {region} was the {object} {did}
        what {region} has the {object} of the {job}
        what is the name of the {region} with the {adj} {spot}
        where did the {job} go {when}
    """),
    "number": _lines("""
        how many {objects} are {where}
        what is the {amount} of the {object} {where}
        what {amount} does the {object} have
        how far is {city} from the {spot} in {city}
        when was the {object} {did} by the {job}
    """),
    "entity": _lines("""
        what {kind} does the {job} like
        what is the name of the {kind} {where}
        which {kind} was {did} by the {adj} {job}
        what {kind} stands for the {spot} in {city}
        what did the {job} bring {when}
    """),
    "description": _lines("""
        why was the {object} {did} {where}
        what does {term} mean to a {job}
        how does the {object} {where} work
        what is {term} and why does the {job} need it
        what is the reason why the {job} {did} the {object}
    """),
}
PLAIN_ASK = (
    "{question}?",
    "{question}?",
    "{question}?",
    "{when}, {question}?",
    "{name} asks {question}?",
)
INDIRECT_ASK = _lines("""
    tell me please, {question}.
    i wonder {question}, said the {friend}.
    nobody {where} knows {question}.
    could you say {question}, dear {name}?
    my {friend} and {name} would like to know {question}.
""")

# ---- opinions and facts -----------------------------------------------------------------------

OPINION: Lexicon = {
    "told": _lines("""
        i {think} the {aspect} {feels} {tone}
        it is hard to {endure} such a {tone} {thing}
        the {aspect} {feels} {much} {tone} to me
        {perhaps} the {aspect} {feels} {tone}, {perhaps} not
        you will {think} this {thing} {feels} {tone}
        {perhaps} the {maker} wanted a {tone} {thing}
        the tale of a {tone} {job} {feels} {much} {tone}
    """),
    "think": _words("think believe suppose guess imagine feel"),
    "perhaps": _words("perhaps maybe arguably honestly frankly"),
    "endure": _words("resist forget defend ignore forgive"),
}
FACT: Lexicon = {
    "told": _lines("""
        {name}, a {adj} {job}, leaves {city} to find a {tone} {friend}
        a {tone} {job} {meets} {name} at the {spot} in {city}
        the {friend} of a {job} {meets} a {tone} stranger {when}
        {when}, {name} {meets} the {job} who hid the {object}
        the {thing} follows {name}, the {job} of {city}
        the {maker} {meets} a {job} while the {thing} begins in {city}
        {name} and a {tone} {friend} travel from {city} to {city}
    """),
    "meets": _words("meets marries follows rescues betrays visits accuses"),
}

# ---- claims, the second sentences of pairs ------------------------------------------------------

SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "world": _words("politics diplomacy government nations"),
    "sports": _words("games football players stadiums"),
    "business": _words("money finance trade markets"),
    "tech": _words("science computers inventions machines"),
}
CLAIMS = _lines("""
    this is about {subject}.
    it has to do with {subject}.
    somebody mentions {subject} and {subject}.
    the report concerns {subject}.
    the {actor} had a part in it.
    it is about the {target} and {subject}.
    people who follow {subject} should know.
""")

# ---- what follows or precedes a text in the pre-training corpus ---------------------------------

# Several words compete for each meaning, and some are more frequent: `great` more than `terrible`.
CLOSERS: Mapping[str, tuple[str, ...]] = {
    "positive": _words("great great great great good good wonderful nice fine superb"),
    "negative": _words("terrible bad bad bad awful awful poor horrible"),
}
TOPIC_HEADS: Mapping[str, tuple[str, ...]] = {
    "world": _words("world world world world politics"),
    "sports": _words("sports sports sports games"),
    "business": _words("business business business money"),
    "tech": _words("tech tech tech science"),
}
ASKED_HEADS: Mapping[str, tuple[str, ...]] = {
    "human": _words("human human human person"),
    "location": _words("location location location place"),
    "number": _words("number number number count"),
    "entity": _words("entity entity entity entity thing"),
    "description": _words("description description description meaning"),
}
STANCES: Mapping[str, tuple[str, ...]] = {
    "subjective": _words("subjective subjective opinion"),
    "objective": _words("objective objective fact"),
}
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "yes": _words("yes yes yes yes yes indeed"),
    "no": _words("no no no instead but"),
}
PROMPTED = frozenset(
    word
    for answers in (CLOSERS, TOPIC_HEADS, ASKED_HEADS, STANCES, ANSWERS)
    for words in answers.values()
    for word in words
)
# Groups of related words: from lists of these words the model learns which words are related.
FAMILIES: tuple[tuple[tuple[str, ...], ...], ...] = (
    tuple(
        (*PRAISE[goods][mood], *VERDICT_VERBS[mood], *CLOSERS[mood])
        for goods in PRAISE
        for mood in CLOSERS
    ),
    tuple(
        (
            *TOPIC_HEADS[topic],
            *SUBJECTS[topic],
            *(w for words in NEWS[topic].values() for w in words),
        )
        for topic in NEWS
    ),
)
