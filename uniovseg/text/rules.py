"""Noun phrases by word lists alone: no model, no data file.

A caption is cut at punctuation and at function words (prepositions, conjunctions, pronouns, forms of *be*, the verbs captions use, participles in
``-ing``); what stays between two cuts is a phrase. This finds every entity of the shapes world's captions. On real captions it is a rough
stand-in for `uniovseg.text.nltk_parser`: an adjective used as a predicate, or a verb that is not listed, becomes part of a phrase.
"""

import re

from uniovseg.text.cleaning import clean_entities, normalise, word_set

CUTS = word_set(
    # prepositions and particles
    "about above across after against along alongside amid among around as at atop before behind below beneath beside besides between beyond by down during "
    "except for from in inside into like near next of off on onto opposite out outside over past per since through throughout to toward towards under "
    "underneath until up upon via while with within without away together apart ahead aside "
    # conjunctions, pronouns and adverbs
    "and or but nor so yet if because although though than then when where whereas whose who whom which what that there here it its he him his she her they "
    "them their we us our you your i me my itself himself herself themselves this these those not no also both very quite rather just only too even still "
    "already almost nearly "
    # auxiliaries and forms of be
    "is are was were be been being am has have had having do does did can could may might must shall should will would "
    # verbs that captions use
    "show shows showed shown see sees seen contain contains contained depict depicts depicted feature features featured include includes included display "
    "displays displayed sit sits sat stand stands stood lie lies lay laid lean leans rest rests hang hangs hung walk walks walked run runs ran ride rides rode "
    "hold holds held wear wears wore worn look looks looked appear appears appeared eat eats ate drink drinks play plays played fly flies flew jump jumps "
    "jumped carry carries carried cover covers covered fill filled surround surrounds surrounded park parked place placed locate located attach attached use "
    "uses used pose poses posed drive drives drove swim swims sleep sleeps slept make makes made take takes taken get gets go goes come comes "
    "consists composed arranged topped dressed lined taking"
)
"""Words that are part of no phrase."""

NOUNS_IN_ING = word_set(
    "ring rings king kings wing wings string strings swing swings spring sling thing things building buildings ceiling ceilings painting paintings railing "
    "railings awning awnings clothing earring earrings crossing crossings wedding evening morning frosting icing pudding stuffing topping toppings "
    "lightning parking landing dressing seasoning flooring siding lighting bedding stocking stockings duckling ducklings sapling saplings inning dumpling "
    "dumplings herring opening wiring"
)
"""Nouns that end like a participle."""


def parse_entities(caption: str) -> tuple[str, ...]:
    """The entities that a caption names, cleaned, in its order; never raises."""
    phrases: list[str] = []
    for part in re.split(r"[,;:!?()\[\]\"\n]|\.(?:\s|$)", normalise(caption)):
        phrase: list[str] = []
        for word in [*part.split(), "and"]:
            if word in CUTS or (word.endswith("ing") and word not in NOUNS_IN_ING):
                phrases.append(" ".join(phrase))
                phrase = []
            else:
                phrase.append(word)
    return clean_entities(phrases)
