"""Texts as fairseq's label files: normalisation, units and their dictionaries."""

import pytest
from fairseq.data import Dictionary
from fairseq.data.data_utils import post_process
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.corpora.transcripts import KINDS, UnitFiles, check_text, normalize
from amae_plugin.data.transcripts import Units
from amae_plugin.errors import UserError

POST_PROCESS = {"ltr": "letter", "wrd": None, "spm": "sentencepiece"}
TEXT = st.text(max_size=40).filter(lambda text: check_text(text) is None).map(normalize).filter(bool)


@pytest.fixture(scope="module")
def pieces():
    return UnitFiles.learn("spm", ["to be or not to be", "that is the question"] * 3, vocab_size=21)


@pytest.fixture
def write(tmp_path):
    """Writes the files of units."""

    def write(units):
        for name, content in units.files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


@settings(max_examples=100)
@given(text=TEXT)
@pytest.mark.parametrize("labels", KINDS)
def test_units_spell_their_text_for_fairseq_and_for_this_package(labels, text, pieces):
    units = pieces if labels == "spm" else UnitFiles.learn(labels, [text])
    line = units.line(text)
    assert post_process(line, POST_PROCESS[labels]) == text
    symbols = ("<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(line.split()))
    own = Units(labels, symbols, POST_PROCESS[labels] or "none")
    assert own.to_text(own.encode(line)) == text


def test_letters_are_those_of_the_script_of_fairseq():
    units = UnitFiles.learn("ltr", ["TO BE", "BET"])
    assert units.line("TO BE") == "T O | B E |"  # " ".join(list("TO BE".replace(" ", "|"))) + " |"
    # Most frequent first, as Dictionary.finalize sorts: equal counts by symbol.
    assert units.files == {"dict.ltr.txt": b"| 3\nB 2\nE 2\nT 2\nO 1\n"}


@pytest.mark.parametrize("labels", KINDS)
def test_fairseq_reads_the_dictionary_and_knows_every_unit(labels, write):
    train, others = ["to be or not to be", "that is the question"] * 3, ["žluťoučký kůň"]
    units = UnitFiles.learn(labels, train, others, vocab_size=29)
    dictionary = Dictionary.load(str(write(units) / f"dict.{labels}.txt"))
    assert {dictionary[number] for number in range(4, len(dictionary))} == units.symbols
    assert dictionary.count[4:] == sorted(dictionary.count[4:], reverse=True)
    for text in (*train, *others):
        ids = dictionary.encode_line(units.line(text), append_eos=False, add_if_not_exist=False)
        assert post_process(dictionary.string(ids), POST_PROCESS[labels]) == text
    if labels == "spm":
        assert len(dictionary) == 29


@pytest.mark.parametrize("labels", KINDS)
def test_units_of_other_manifests(labels, write):
    train = ["to be or not to be", "that is the question"] * 3
    learned = UnitFiles.learn(labels, train, vocab_size=21)
    read = UnitFiles.read(labels, write(learned))
    assert (read.symbols, read.files, read.line(train[0])) == (learned.symbols, learned.files, learned.line(train[0]))
    assert read.unknown({"train": train}) == []
    (warning,) = read.unknown({"train": train, "test": ["bebě bě"]})
    assert warning.startswith("test: ") and "task.on_unknown_unit=unk" in warning


def test_units_that_cannot_be_read_or_learned(tmp_path, write):
    with pytest.raises(UserError, match=r"dict\.ltr\.txt: cannot read"):
        UnitFiles.read("ltr", tmp_path)
    write(UnitFiles.learn("spm", ["to be"], vocab_size=9))
    for content in (b"", b"other"):
        (tmp_path / "spm.model").write_bytes(content)
        with pytest.raises(UserError, match=r"spm\.model: not a model of sentencepiece"):
            UnitFiles.read("spm", tmp_path)
    (tmp_path / "spm.model").unlink()
    with pytest.raises(UserError, match=r"spm\.model: cannot read"):
        UnitFiles.read("spm", tmp_path)
    for size, reason in ((4, "above 4"), (5, "at least 9"), (50, "at most 9 for this")):
        with pytest.raises(UserError, match=f"--vocab-size {size}: must be {reason}"):
            UnitFiles.learn("spm", ["to be"], vocab_size=size)
    for labels in KINDS:
        with pytest.raises(UserError, match="train: no clip with a text"):
            UnitFiles.learn(labels, [], ["to be"])


@pytest.mark.parametrize(
    ("written", "options", "text"),
    [
        ("Vítejte,  v nejkrásnějším\u00a0městě!", ("lower", "remove"), "vítejte v nejkrásnějším městě"),
        ("Vítejte,  v\u2003městě!", ("keep", "keep"), "Vítejte, v městě!"),
        ("Don\u2019t — “say” 'yes'", ("upper", "remove"), "DON'T SAY YES"),
        ("it`s don\u00b4t `quoted` \u2018too\u2019", ("lower", "remove"), "it's don't quoted too"),
        ("rock-'n'-roll, C:\\DIR; 5 €/kg", ("lower", "remove"), "rock n roll c dir 5 kg"),
        ("Stra\u00dfe E\u0301", ("lower", "remove"), "straße é"),
        ("soft\u00adhyphen\ufeff zero\u200bwidth \u202bturned", ("keep", "keep"), "softhyphen zero width turned"),
        ("joined\u200cin क्\u200dष", ("lower", "remove"), "joined\u200cin क्\u200dष"),
        ("हिन्दी में।", ("lower", "remove"), "हिन्दी में"),
        ("so \U0001f469\u200d\U0001f4bb \u2764\ufe0f good", ("lower", "remove"), "so good"),
        ("'_a\u00b4_b_' it'_s", ("lower", "remove"), "a b it s"),
        ("...?!", ("lower", "remove"), ""),
    ],
)
def test_normalisation(written, options, text):
    assert check_text(written) is None
    assert normalize(written, *options) == text


@settings(max_examples=100)
@given(text=TEXT, case=st.sampled_from(["lower", "upper", "keep"]), punctuation=st.sampled_from(["remove", "keep"]))
def test_a_normalised_text_is_normalised(text, case, punctuation):
    once = normalize(text, case, punctuation)
    assert normalize(once, case, punctuation) == once


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a|b", "'|' in the text"),
        ("a \u2581b", "which begins a word of sentencepiece"),
        ("a\x07b", "the control character '\\x07'"),
        ("a\x85b", "the control character"),
        ("caf\ufffd", "U+FFFD"),
        ("a <unk> b", "'<unk>' in the text"),
        ("<s>", "'<s>' in the text"),
    ],
)
def test_what_no_transcript_holds(text, problem):
    assert problem in check_text(text)
