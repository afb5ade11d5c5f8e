import itertools
import pickle

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.data_utils import post_process
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.data.transcripts import POST_PROCESS, SPECIAL, Span, Transcripts, Units, Word, collapse
from amae_plugin.errors import UserError

SYMBOL = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=4)
SYMBOL = SYMBOL.filter(lambda text: text.split() == [text] and text not in SPECIAL and not text.startswith("\ufeff"))
LETTERS = ("|", "A", "B", "C")


def units_of(*symbols, post_process="letter"):
    return Units("ltr", (*SPECIAL, *symbols), post_process)


@pytest.fixture
def write(tmp_path):
    def write(lines, dictionary="| 9\nA 5\nB 4\nC 1\n", labels="ltr"):
        (tmp_path / f"train.{labels}").write_bytes(lines.encode())
        (tmp_path / f"dict.{labels}.txt").write_bytes(dictionary.encode())
        return tmp_path / f"train.{labels}", Units.read(tmp_path, labels)

    return write


@given(symbols=st.lists(SYMBOL, min_size=1, max_size=12, unique=True), data=st.data())
def test_numbers_and_words_are_those_of_fairseq(tmp_path_factory, symbols, data):
    folder = tmp_path_factory.mktemp("units")
    (folder / "dict.x.txt").write_text("".join(f"{symbol} 3\n" for symbol in symbols), encoding="utf-8")
    theirs = Dictionary.load(str(folder / "dict.x.txt"))
    line = data.draw(st.lists(st.sampled_from([*symbols, "<unk>", "qqqqqq"]), max_size=10).map(" ".join))
    expected = theirs.encode_line(line, add_if_not_exist=False, append_eos=False).tolist()
    for name in POST_PROCESS:
        units = Units.read(folder, "x", name)
        assert list(units.symbols) == theirs.symbols and units.blank == theirs.bos()
        assert units.encode(line, unknown=True) == expected
        text = post_process(theirs.string(torch.tensor(expected)), name)
        assert units.to_text(expected).split() == text.split()
        assert Units.from_plain(pickle.loads(pickle.dumps(units.plain()))) == units


def test_a_symbol_that_is_overwritten_has_the_number_that_fairseq_gives_it(tmp_path):
    (tmp_path / "dict.x.txt").write_text("a 3\nb 2\na 1 #fairseq:overwrite\n")
    units, theirs = Units.read(tmp_path, "x"), Dictionary.load(str(tmp_path / "dict.x.txt"))
    assert units.encode("a b") == theirs.encode_line("a b", append_eos=False, add_if_not_exist=False).tolist()


@pytest.mark.parametrize(
    ("dictionary", "expected"),
    [
        ("| 9\nA 5\n", "letter"),
        ("\u2581the 9\ns 5\n", "sentencepiece"),
        ("the 9\ngo@@ 2\n", "subword_nmt"),
        ("AH0 9\nK 5\n", "none"),
    ],
)
def test_the_marks_tell_how_units_make_words(write, dictionary, expected):
    assert write("", dictionary)[1].post_process == expected


@pytest.mark.parametrize(
    ("name", "symbols", "expected"),
    [
        ("letter", "A B | | C |", [Word("AB", 0, 2), Word("C", 4, 5)]),
        ("sentencepiece", "\u2581a b \u2581 c", [Word("ab", 0, 2), Word("c", 3, 4)]),
        ("sentencepiece", "x\u2581y z", [Word("x", 0, 1), Word("yz", 0, 2)]),
        ("wordpiece", "_a b _c", [Word("ab", 0, 2), Word("c", 2, 3)]),
        ("subword_nmt", "go@@ ing on", [Word("going", 0, 2), Word("on", 2, 3)]),
        ("none", "go <s> on", [Word("go", 0, 1), Word("on", 2, 3)]),
        ("letter", "A <unk> </s> B |", [Word("A<unk>B", 0, 4)]),
    ],
)
def test_words_have_the_place_of_their_units(name, symbols, expected):
    units = units_of(*dict.fromkeys(s for s in symbols.split() if s not in SPECIAL), post_process=name)
    spans = [Span(units.index[symbol], step, step + 1) for step, symbol in enumerate(symbols.split())]
    assert units.words(spans) == expected


@given(st.lists(st.integers(0, 3), max_size=30))
def test_collapsing_drops_repetitions_then_blanks(steps):
    spans = collapse(torch.tensor(steps, dtype=torch.long), 0)
    expected = torch.tensor(steps, dtype=torch.long).unique_consecutive()
    assert [span.unit for span in spans] == expected[expected != 0].tolist()
    rebuilt = [0] * len(steps)
    for unit, begin, end in spans:
        rebuilt[begin:end] = [unit] * (end - begin)
    assert rebuilt == steps


@given(st.lists(st.lists(st.sampled_from("ABC"), max_size=6), min_size=1, max_size=8).filter(any))
def test_the_steps_that_a_transcript_needs_are_those_of_its_shortest_path(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("steps") / "train.ltr"
    path.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    transcripts = Transcripts.read(path, units_of(*LETTERS), len(rows))
    assert [transcripts[i].tolist() for i in range(len(rows))] == [[LETTERS.index(s) + 4 for s in row] for row in rows]
    repeated = [sum(one == other for one, other in itertools.pairwise(row)) for row in rows]
    assert transcripts.steps_needed.tolist() == [len(row) + more for row, more in zip(rows, repeated)]
    assert transcripts.steps_needed is transcripts.steps_needed, "computed once, and not for each clip that is decoded"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\r\n \r\n"])
def test_windows_line_ends_and_blanks_at_the_end(write, end):
    newline = "\r\n" if "\r" in end else "\n"
    path, units = write(f"\ufeffA B |{newline}{newline} C{end}", f"| 9\nA 5\nB 4\nC 1{end}")
    transcripts = Transcripts.read(path, units, 3)
    assert [transcripts[i].tolist() for i in range(3)] == [[5, 6, 4], [], [7]]
    assert transcripts.ids.dtype == np.int32
    with pytest.raises(IndexError):
        transcripts[3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("A\nX B\n\n", "line 2: 'X' is not among the 4 units"),
        ("A\nB <s>\nC\n", "line 2: '<s>' is fairseq's own symbol"),
        ("A\nB\n", "has 2 lines, but the manifest beside it has 3 clips"),
        ("A\nB\nC\nA\n", "has 4 lines"),
        ("\n\n\n", "not one of its 3 lines holds a unit"),
    ],
)
def test_bad_transcripts_name_the_file_and_the_line(write, lines, message):
    path, units = write(lines)
    with pytest.raises(UserError) as error:
        Transcripts.read(path, units, 3)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_an_unknown_unit_can_be_wanted(write):
    path, units = write("A X\n<unk>\n")
    assert Transcripts.read(path, units, 2, unknown=True).ids.tolist() == [5, 3, 3]


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        ("", "empty"),
        ("A 1\nB\n", "line 2: not one unit, one blank and one whole number in 'B'"),
        ("A 1\n\nB 1\n", "line 2: not one unit"),
        ("A 1.5\n", "line 1: not one unit"),
        ("A 1\nB 1\nA 2\n", "line 3: 'A' stands on line 1 too"),
        ("A 1\n<s> 1\n", "line 2: '<s>' is fairseq's own"),
    ],
)
def test_bad_dictionaries_name_the_file_and_the_line(tmp_path, dictionary, message):
    (tmp_path / "dict.ltr.txt").write_text(dictionary)
    with pytest.raises(UserError) as error:
        Units.read(tmp_path, "ltr")
    assert str(error.value).startswith(str(tmp_path / "dict.ltr.txt")) and message in str(error.value)


@pytest.mark.parametrize("values", [None, [], {"labels": "ltr"}, {**units_of("A").plain(), "symbols": [1]}])
def test_units_of_a_damaged_checkpoint_are_refused(values):
    with pytest.raises(ValueError):
        Units.from_plain(values)


def test_an_unknown_way_to_make_words_is_refused(write):
    path, _ = write("A\n")
    with pytest.raises(ValueError, match="must be one of letter"):
        Units.read(path.parent, "ltr", "letters")
