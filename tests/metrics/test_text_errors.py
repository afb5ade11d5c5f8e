import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.metrics.recognition import Errors, TextErrors

TEXT = st.lists(st.sampled_from(["a", "b", "ab", "ba"]), max_size=7).map(" ".join)


def distance(reference, hypothesis) -> int:
    """Levenshtein's distance by the textbook's table."""
    table = np.arange(len(hypothesis) + 1)
    for number, own in enumerate(reference, 1):
        above, table[0] = table.copy(), number
        for place, other in enumerate(hypothesis, 1):
            table[place] = min(above[place] + 1, table[place - 1] + 1, above[place - 1] + (own != other))
    return int(table[-1])


@given(TEXT, TEXT)
def test_errors_are_a_shortest_way_from_reference_to_hypothesis(reference, hypothesis):
    found = TextErrors.between(reference, hypothesis)
    for errors, one, other in (
        (found.words, reference.split(), hypothesis.split()),
        (found.characters, reference, hypothesis),
    ):
        assert errors.length == len(one)
        assert errors.total == errors.substitutions + errors.deletions + errors.insertions == distance(one, other)
        assert len(one) - errors.deletions + errors.insertions == len(other)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_rates_are_those_of_the_whole_and_no_mean_of_clips(pairs):
    references, hypotheses = ([pair[side] for pair in pairs] for side in (0, 1))
    found = TextErrors.of_all(references, hypotheses).headline
    words = sum(len(text.split()) for text in references)
    errors = sum(distance(one.split(), other.split()) for one, other in pairs)
    assert math.isnan(found["wer"]) if not words else found["wer"] == pytest.approx(errors / words)
    characters = sum(map(len, references))
    wrong = sum(distance(one, other) for one, other in pairs)
    assert math.isnan(found["cer"]) if not characters else found["cer"] == pytest.approx(wrong / characters)


def test_kinds_of_errors():
    found = TextErrors.between("one two three four", "one too three for you")
    assert found.words == Errors(length=4, substitutions=2, deletions=0, insertions=1)
    assert found.words.rate == 0.75
    assert TextErrors.between("a b", "") == TextErrors(Errors(2, 0, 2, 0), Errors(3, 0, 3, 0))
    with pytest.raises(ValueError):
        TextErrors.of_all(["a"], [])
