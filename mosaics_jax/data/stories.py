"""The built-in corpus: short children's stories from a seeded generator, so that a first run needs no download.

A story is a plot whose slots are filled with people, things and places. A name and a thing from its beginning determine
its end (who lost what, and who gets it back), so that the stories test memory over about a hundred words. They are
simpler than written text: losses on these stories compare with each other only.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mosaics_jax.data.random_bits import RandomChoices
from mosaics_jax.data.story_words import (
    ANIMALS,
    BOYS,
    COLLARS,
    CREATURES,
    ELDERS,
    GIRLS,
    GIVERS,
    PET_NAMES,
    PETS,
    PLACES,
    PLOTS,
    PRONOUNS,
    SKILLS,
    SMALL_ANIMALS,
    SPOTS,
    THINGS,
    TOOLS,
)
from mosaics_jax.runtime import staging

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(an? )?(\w+)\}", re.IGNORECASE)


def stories(seed: int, count: int) -> Iterator[str]:
    """Yields ``count`` stories of about 130 to 210 words. Story i depends on ``seed`` and i only."""
    for index in range(count):
        choices = RandomChoices(seed, index)
        words = _cast(choices)
        yield _fill(choices.pick(PLOTS), words, choices)


def write_corpus(path: str | Path, seed: int, count: int) -> None:
    """Writes ``stories(seed, count)`` to a file in the format of BabiStories: one JSON string per line."""
    lines = (json.dumps(story, ensure_ascii=False) + "\n" for story in stories(seed, count))
    staging.write_file(path, "".join(lines).encode())


def _cast(choices: RandomChoices) -> dict[str, str]:
    """The people, things and places of one story, keyed by the slots that they fill."""
    children = [(name, "girl") for name in GIRLS.split("|")] + [(name, "boy") for name in BOYS.split("|")]
    (hero, hero_sex), (friend, friend_sex) = choices.pick_two(children)
    words = {"hero": hero, "friend": friend}

    if choices.pick((True, False, False)):
        words["kind"] = f"young {choices.pick(ANIMALS.split('|'))}"
    else:
        words["kind"] = f"{choices.pick(('little', 'small', 'young'))} {hero_sex}"
    pet, (elder, trade, elder_sex) = choices.pick(PETS.split("|")), choices.pick(ELDERS)
    for prefix, sex in (("", hero_sex), ("friend_", friend_sex), ("elder_", elder_sex)):
        words |= {prefix + form: pronoun for form, pronoun in PRONOUNS[sex].items()}
    looks, nouns, mishaps = choices.pick(THINGS)
    hard_looks, hard_nouns, _ = THINGS[0]
    noun = choices.pick(nouns.split("|"))
    tool, tool_place, trouble, rescue = choices.pick(TOOLS)
    mishap, repair = choices.pick(mishaps)
    skill, failure, advice = choices.pick(SKILLS)
    place, other_place = choices.pick_two(PLACES.split("|"))
    spot, other_spot = choices.pick_two(SPOTS.split("|"))
    return words | {
        "elder": elder,
        "trade": trade,
        "pet": pet,
        "pet_name": choices.pick(PET_NAMES.split("|")),
        "collar": choices.pick(COLLARS.split("|")),
        "small_animal": choices.pick(SMALL_ANIMALS.split("|")),
        "thing": f"{choices.pick(looks.split('|'))} {noun}",
        "noun": noun,
        "hard_thing": f"{choices.pick(hard_looks.split('|'))} {choices.pick(hard_nouns.split('|'))}",
        "tool": tool,
        "tool_place": tool_place,
        "trouble": trouble,
        "rescue": rescue,
        "mishap": mishap,
        "repair": repair,
        "skill": skill,
        "failure": failure,
        "advice": advice,
        "giver": choices.pick(GIVERS.split("|")),
        "place": place,
        "other_place": other_place,
        "spot": spot,
        "other_spot": other_spot,
        "creature": choices.pick(CREATURES.split("|")),
    }


def _fill(template: str, words: dict[str, str], choices: RandomChoices) -> str:
    """Picks one option of each ``[this|that]`` and fills the slots: ``{place}``, or ``{a thing}`` with "a" or "an".

    The article follows spelling, since every word of the stories that begins with a vowel letter sounds like one.
    """

    def fill_slot(match: re.Match[str]) -> str:
        article, slot = match.groups()
        word = words[slot[0].lower() + slot[1:]]
        if article:
            word = f"{article[0]}n {word}" if word[0] in "aeiou" else f"{article[0]} {word}"
        return word[0].upper() + word[1:] if slot[0].isupper() else word

    while CHOICE.search(template) or SLOT.search(template):
        template = CHOICE.sub(lambda match: choices.pick(match[1].split("|")), template)
        template = SLOT.sub(fill_slot, template)
    return template
