"""The built-in corpus: short children's stories from a seeded generator, so that nothing needs a download.

Every story is made up of our own sentences: a plot, and people, things and places to fill it with. A name and a thing
that are given at the beginning decide the end (who lost what, and who gets it back), which makes the stories a test of
memory over about a hundred words. They are simpler than written text: losses on them compare with each other only.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

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

Item = TypeVar("Item")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(an? )?(\w+)\}", re.IGNORECASE)


def stories(seed: int, count: int) -> Iterator[str]:
    """Yields ``count`` stories of about 130 to 210 words; story i depends on ``seed`` and i alone."""
    for index in range(count):
        yield _story(_Dice(seed, index))


def write_corpus(path: str | Path, seed: int, count: int) -> None:
    """Writes ``stories(seed, count)`` to a file in the format of BabiStories, one JSON string a line."""
    lines = (json.dumps(story, ensure_ascii=False) + "\n" for story in stories(seed, count))
    staging.write_file(path, "".join(lines).encode())


class _Dice:
    """Choices from the raw bits of a counter-based generator, the same under any version of Python and numpy."""

    def __init__(self, seed: int, index: int):
        self._bits = np.random.Philox(key=np.array([seed % 2**64, index], np.uint64))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self._bits.random_raw()) % len(items)]

    def pick_two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two different items."""
        first = int(self._bits.random_raw()) % len(items)
        step = 1 + int(self._bits.random_raw()) % (len(items) - 1)
        return items[first], items[(first + step) % len(items)]


def _story(dice: _Dice) -> str:
    words = _cast(dice)
    return _fill(dice.pick(PLOTS), words, dice)


def _cast(dice: _Dice) -> dict[str, str]:
    """The people, things and places of one story, by the slot they fill."""
    children = [(name, "girl") for name in GIRLS.split("|")] + [(name, "boy") for name in BOYS.split("|")]
    (hero, hero_sex), (friend, friend_sex) = dice.pick_two(children)
    words = {"hero": hero, "friend": friend}

    if dice.pick((True, False, False)):
        words["kind"] = f"young {dice.pick(ANIMALS.split('|'))}"
    else:
        words["kind"] = f"{dice.pick(('little', 'small', 'young'))} {hero_sex}"
    pet, (elder, trade, elder_sex) = dice.pick(PETS.split("|")), dice.pick(ELDERS)
    for prefix, sex in (("", hero_sex), ("friend_", friend_sex), ("elder_", elder_sex)):
        words |= {prefix + form: pronoun for form, pronoun in PRONOUNS[sex].items()}
    looks, nouns, mishaps = dice.pick(THINGS)
    hard_looks, hard_nouns, _ = THINGS[0]
    noun = dice.pick(nouns.split("|"))
    tool, tool_place, trouble, rescue = dice.pick(TOOLS)
    mishap, repair = dice.pick(mishaps)
    skill, failure, advice = dice.pick(SKILLS)
    place, other_place = dice.pick_two(PLACES.split("|"))
    spot, other_spot = dice.pick_two(SPOTS.split("|"))
    return words | {
        "elder": elder,
        "trade": trade,
        "pet": pet,
        "pet_name": dice.pick(PET_NAMES.split("|")),
        "collar": dice.pick(COLLARS.split("|")),
        "small_animal": dice.pick(SMALL_ANIMALS.split("|")),
        "thing": f"{dice.pick(looks.split('|'))} {noun}",
        "noun": noun,
        "hard_thing": f"{dice.pick(hard_looks.split('|'))} {dice.pick(hard_nouns.split('|'))}",
        "tool": tool,
        "tool_place": tool_place,
        "trouble": trouble,
        "rescue": rescue,
        "mishap": mishap,
        "repair": repair,
        "skill": skill,
        "failure": failure,
        "advice": advice,
        "giver": dice.pick(GIVERS.split("|")),
        "place": place,
        "other_place": other_place,
        "spot": spot,
        "other_spot": other_spot,
        "creature": dice.pick(CREATURES.split("|")),
    }


def _fill(template: str, words: dict[str, str], dice: _Dice) -> str:
    """Takes one of each ``[this|that]``, then fills the slots: ``{place}``, ``{a thing}`` with "a" or "an".

    Our words begin with a vowel exactly where they sound like one.
    """

    def fill_slot(match: re.Match[str]) -> str:
        article, slot = match.groups()
        word = words[slot[0].lower() + slot[1:]]
        if article:
            word = f"{article[0]}n {word}" if word[0] in "aeiou" else f"{article[0]} {word}"
        return word[0].upper() + word[1:] if slot[0].isupper() else word

    while CHOICE.search(template) or SLOT.search(template):
        template = CHOICE.sub(lambda match: dice.pick(match[1].split("|")), template)
        template = SLOT.sub(fill_slot, template)
    return template
