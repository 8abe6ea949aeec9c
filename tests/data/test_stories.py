"""The built-in stories are many, well-formed and reproducible, and their ends depend on their beginnings."""

import hashlib
import re

from mosaics_jax.data.documents import read_documents
from mosaics_jax.data.stories import stories, write_corpus


def test_thousands_of_distinct_stories_and_no_shared_ones():
    train, validation = set(stories(0, 4000)), set(stories(1, 1000))
    assert len(train) == 4000 and len(validation) == 1000
    assert not train & validation


def test_stories_are_well_formed(story_texts):
    for story in story_texts:
        assert 100 <= len(story.split()) <= 230
        assert not re.search(r"[\[\]{}|_]|  | [.,!?]|[.,]{2}|\n\n", story), story
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", story, re.IGNORECASE), story
        assert not re.search(r'(^|\n|[.!?] )"?[a-z]', story), story  # sentences begin with a capital
        assert story.count('"') % 2 == 0 and re.search(r'[.!?]"?$', story), story


def test_the_vocabulary_is_small():
    words = {word for story in stories(2, 3000) for word in re.findall(r"[a-z']+", story.lower())}
    assert 600 <= len(words) <= 1000


def test_the_end_repeats_a_name_from_the_beginning(story_texts):
    """The last third of every story contains a name from its first third."""
    for story in story_texts:
        words = re.findall(r"\b[A-Z][a-z]+\b", story)
        third = len(words) // 3
        names = {word for word in words if len(re.findall(rf"\b{word}\b", story)) > 2} & set(words[:third])
        assert names & set(words[-third:]), story


def test_stories_stay_the_same():
    """Under any Python, numpy and hash seed. Only a change of words or plots may change this digest."""
    text = "\n".join(stories(7, 20))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7d7f7d8e3b9dc323"
    assert list(stories(7, 3)) == list(stories(7, 20))[:3]


def test_corpus_file_is_read_back(tmp_path):
    write_corpus(tmp_path / "train.txt", seed=5, count=30)
    assert list(read_documents([str(tmp_path / "train.txt")])) == list(stories(5, 30))
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]
