import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.data.labels import Labels, read_names, write_labels, write_names
from amae_plugin.errors import UserError

NAME = (
    st.text(st.characters(exclude_characters=",\n\r\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=20)
    .map(str.strip)
    .filter(bool)
)


@pytest.fixture
def write(tmp_path):
    def write(lbl, names="a\nb\nc\n"):
        (tmp_path / "train.lbl").write_bytes(lbl if isinstance(lbl, bytes) else lbl.encode())
        (tmp_path / "labels.txt").write_bytes(names.encode())
        return tmp_path / "train.lbl", tmp_path / "labels.txt"

    return write


@settings(max_examples=60)
@given(data=st.data(), names=st.lists(NAME, min_size=1, max_size=8, unique=True))
def test_what_is_written_is_read(tmp_path_factory, data, names):
    folder = tmp_path_factory.mktemp("labels")
    rows = data.draw(st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True), max_size=12))
    write_names(folder / "labels.txt", names)
    write_labels(folder / "train.lbl", rows)
    labels = Labels.read(folder / "train.lbl", folder / "labels.txt", len(rows), multi=True)
    assert labels.names == tuple(names)
    assert len(labels) == len(rows)
    for index, row in enumerate(rows):
        assert [names[i] for i in labels[index]] == row
        hot = labels.multi_hot(index)
        assert hot.dtype == torch.float32 and hot.shape == (len(names),)
        assert {names[i] for i in hot.nonzero()[:, 0]} == set(row)
    assert labels.counts().tolist() == [sum(name in row for row in rows) for name in names]


def test_one_label_a_clip(write):
    labels = Labels.read(*write("b\na\nc\nb\n"), 4)
    assert labels.ids.tolist() == [1, 0, 2, 1]
    assert labels.ids.dtype == np.int32
    assert labels.multi_hot(2).tolist() == [0.0, 0.0, 1.0]
    assert labels.counts().tolist() == [1, 2, 1]
    with pytest.raises(IndexError):
        labels[4]


def test_several_labels_are_arrays_and_pickle(write):
    labels = Labels.read(*write("b\na,c\n"), 2, multi=True)
    assert labels.ids.tolist() == [1, 0, 2]
    assert labels.offsets.tolist() == [0, 1, 3]
    assert pickle.loads(pickle.dumps(labels))[1].tolist() == [0, 2]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\r\n \r\n"])
def test_windows_line_ends_blanks_and_repeated_labels(write, end):
    newline = "\r\n" if "\r" in end else "\n"
    paths = write("\ufeff" + newline.join(["b", "a , c,a"]) + end, newline.join(["a", "b", "c"]) + end)
    labels = Labels.read(*paths, 2, multi=True)
    assert [labels[i].tolist() for i in range(2)] == [[1], [0, 2]]


@pytest.mark.parametrize(
    ("lbl", "multi", "line", "hint"),
    [
        ("a\nd\nb\n", False, 2, "'d' is not among the 3 classes"),
        ("a\nb,d\nb\n", True, 2, "'d' is not among"),
        ("a\n\nb\n", False, 2, "empty"),
        ("a\nb,\nb\n", True, 2, "''"),
        ("a\nb\na,c\n", False, 3, "2 labels in 'a,c' where one is expected"),
    ],
)
def test_a_bad_line_is_named(write, lbl, multi, line, hint):
    lbl_path, names_path = write(lbl)
    with pytest.raises(UserError, match=hint) as error:
        Labels.read(lbl_path, names_path, 3, multi=multi)
    assert f"{lbl_path}, line {line}: " in str(error.value)


def test_of_many_bad_lines_a_few_are_named_and_all_are_counted(write):
    lbl_path, names_path = write("a\n" + "d\n" * 9 + "a,b\n")
    with pytest.raises(UserError) as error:
        Labels.read(lbl_path, names_path, 11)
    first, *others = str(error.value).split("\n")
    assert first.startswith(f"{lbl_path}, line 2: 'd' is not among the 3 classes of {names_path}; ")
    assert [other.split(":")[0] for other in others[:-1]] == [f"  line {number}" for number in (3, 4, 5, 6)]
    assert others[-1] == "  10 bad lines in all"


@pytest.mark.parametrize("length", [0, 2, 4])
def test_a_wrong_number_of_lines(write, length):
    with pytest.raises(UserError, match=rf"train\.lbl has 3 lines, but .* {length} clips"):
        Labels.read(*write("a\nb\nc\n"), length)


def test_missing_and_unreadable_files(tmp_path, write):
    lbl_path, names_path = write("a\n")
    with pytest.raises(UserError, match=r"none\.lbl.*amae manifest"):
        Labels.read(tmp_path / "none.lbl", names_path, 1)
    with pytest.raises(UserError, match=r"none\.txt"):
        Labels.read(lbl_path, tmp_path / "none.txt", 1)
    with pytest.raises(UserError, match="not UTF-8"):
        Labels.read(*write(b"\xff\xfe\n"), 1)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(UserError, match=r"train\.lbl: not UTF-8 text but UTF-16"):
            Labels.read(*write("a\n".encode(encoding)), 1)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ("a\n\nb\n", "line 2: empty"),
        ("a\nb\na\n", "line 3: 'a' stands on line 1 too"),
        ("a\nMale speech, man speaking\n", "line 2: a comma"),
        ("\n", "empty"),
    ],
)
def test_bad_class_lists(write, names, hint):
    _, names_path = write("a\n", names)
    with pytest.raises(UserError, match=hint):
        read_names(names_path)


@pytest.mark.parametrize("name", ["", " ", "a,b", "a\nb", " a", "\ufeffa", "caf\udce9"])
def test_class_names_that_could_not_be_read_back_are_refused(tmp_path, name):
    path = tmp_path / "labels.txt"
    path.write_text("old\n")
    with pytest.raises(UserError, match=r"labels\.txt: .* cannot be a class: .*; rename it"):
        write_names(path, ["fine", name])
    assert path.read_text() == "old\n"


def test_labels_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "train.lbl"
    write_labels(path, [["a"]])
    with pytest.raises(UnicodeEncodeError):
        write_labels(path, [["b"], ["caf\udce9"]])
    assert path.read_text() == "a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_large_file_is_a_few_arrays(tmp_path, write):
    clips = 100_000
    labels = Labels.read(*write("a\nb,c\n" * (clips // 2)), clips, multi=True)
    assert labels.ids.nbytes + labels.offsets.nbytes == 4 * (clips * 3 // 2) + 8 * (clips + 1)
