import shutil
from pathlib import PurePosixPath

import pytest

from amae_plugin.corpora.audioset import _match_ytid, build
from amae_plugin.data.labels import read_names
from amae_plugin.errors import UserError

CLASSES = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/t/dd00088,"Gurgling"
"""
HEADER = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
"""
# Ids as YouTube makes them: with a leading dash, a leading Y, and what looks like a start.
FILES = {
    "--PJHxphWEs": "balanced/--PJHxphWEs.wav",
    "YxlGt805lTA": "Y/YxlGt805lTA.flac",
    "xlGt805lTA0": "Y/YxlGt805lTA0.wav",
    "abcdefghi_3": "abcdefghi_3_30.000.ogg",
    "0123456789a": "deep/er/Y0123456789a_30.000_40.000.WAV",
    "-0RWZT-miFs": "-0RWZT-miFs_420000.flac",
}


@pytest.fixture
def corpus(tmp_path, sound):
    for name in FILES.values():
        sound(tmp_path / "audio" / name)
    sound(tmp_path / "audio" / "unrelated.wav")
    (tmp_path / "audio" / "--PJHxphWEs.txt").write_text("not audio")
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    (tmp_path / "balanced_train_segments.csv").write_text(
        HEADER
        + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        + 'YxlGt805lTA, 0.000, 10.000, "/m/09x0r"\n'
        + 'xlGt805lTA0, 0.000, 10.000, "/m/05zppz"\n'
    )
    (tmp_path / "unbalanced_train_segments.csv").write_text(
        HEADER + 'abcdefghi_3, 30.000, 40.000, "/m/05zppz,/m/09x0r"\n'
    )
    (tmp_path / "eval_segments.csv").write_text(
        HEADER.replace("\n", "\r\n")
        + '0123456789a, 30.000, 40.000, "/m/05zppz"\r\n'
        + "-0RWZT-miFs,420.000,430.000,/m/05zppz,/m/09x0r\r\n"
    )
    return tmp_path


def write(corpus, *tables, **options):
    tables = tables or ("balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv")
    paths = [
        "=".join((*table.split("=")[:-1], str(corpus / table.split("=")[-1]))) if "=" in table else str(corpus / table)
        for table in tables
    ]
    return build(paths, corpus / "audio", corpus / "class_labels_indices.csv", corpus / "out", **options)


def test_tables_and_clips_by_the_usual_names(corpus, rows):
    result = write(corpus)
    out = corpus / "out"
    assert read_names(out / "labels.txt") == ("/m/09x0r", "/m/05zppz", "/t/dd00088")
    assert (out / "class_labels_indices.csv").read_text() == CLASSES
    assert rows(out, "train") == [
        (FILES["--PJHxphWEs"], "/m/09x0r", "/t/dd00088"),
        (FILES["YxlGt805lTA"], "/m/09x0r"),
        (FILES["xlGt805lTA0"], "/m/05zppz"),
        (FILES["abcdefghi_3"], "/m/05zppz", "/m/09x0r"),
    ]
    assert rows(out, "test") == [
        (FILES["0123456789a"], "/m/05zppz"),
        (FILES["-0RWZT-miFs"], "/m/05zppz", "/m/09x0r"),
    ]
    assert rows(out, "valid") == rows(out, "test")
    assert "balanced_train_segments: 3 clips, as published there are 22,160" in result.warnings
    assert "classes: 3 mids, as published there are 527" in result.warnings


def test_a_file_without_times_that_is_much_longer_than_its_clip_is_the_whole_video(corpus, sound, rows):
    (corpus / "audio" / FILES["abcdefghi_3"]).unlink()
    for name in ("A dog [abcdefghi_3].wav", FILES["-0RWZT-miFs"], FILES["YxlGt805lTA"]):
        sound(corpus / "audio" / name, 15.5, 8_000)
    (corpus / "unbalanced_train_segments.csv").write_text(HEADER + 'abcdefghi_3, 4.500, 13.000, "/m/09x0r"\n')
    write(corpus)
    pieces = {name for split in ("train", "test") for name, *_ in rows(corpus / "out", split) if name.count(":")}
    assert pieces == {"A dog [abcdefghi_3].wav:36000:68000", f"{FILES['YxlGt805lTA']}:0:80000"}


def test_splits_may_be_named(corpus, rows):
    write(corpus, "train=eval_segments.csv", "valid=unbalanced_train_segments.csv")
    assert len(rows(corpus / "out", "train")) == 2
    assert len(rows(corpus / "out", "valid")) == 1
    assert not (corpus / "out" / "test.tsv").exists()
    shutil.copy(corpus / "eval_segments.csv", corpus / "mine.csv")
    with pytest.raises(UserError, match=r"mine\.csv: the name does not tell the split; write train="):
        write(corpus, "mine.csv")


def test_clips_that_are_gone(corpus, rows):
    (corpus / "audio" / FILES["abcdefghi_3"]).unlink()
    looked_for = r"may be named <YTID>, .*, <title> \[<YTID>\]:"
    missing = r"abcdefghi_3 \(unbalanced_train_segments\.csv\)"
    with pytest.raises(UserError, match=rf"1 of 6 files.*{looked_for}\n  {missing}"):
        write(corpus)
    result = write(corpus, allow_missing=True)
    assert len(rows(corpus / "out", "train")) == 3
    assert any("1 of 6 files" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "name",
    [
        "25UwLvYW-8o.wav",
        "Y25UwLvYW-8o.wav",
        "25UwLvYW-8o_390.0-400.0.wav",
        "25UwLvYW-8o_390000_400000.flac",
        "Y25UwLvYW-8o_390_400.wav",
        "25UwLvYW-8o-390-400.m4a",
        "25UwLvYW-8o_390s.mp3",
        "id_25UwLvYW-8o.wav",
        "Dogs [and cats] barking [25UwLvYW-8o].opus",
        "Dogs barking-25UwLvYW-8o.m4a",
        "Dogs [25UwLvYW-8o]_390.0_400.0.wav",
    ],
)
def test_names_that_downloaders_give(name):
    others = {"abcdefghi_3", "25UwLvYW-8O", "5UwLvYW-8o_"}
    assert _match_ytid(PurePosixPath(name).stem, {"25UwLvYW-8o", *others}) == "25UwLvYW-8o"
    assert _match_ytid(PurePosixPath(name).stem, others) is None


def test_links_that_loop_and_folders_that_are_links(corpus, rows):
    (corpus / "audio" / "loop").symlink_to(corpus / "audio")
    (corpus / "audio" / "deep").rename(corpus / "elsewhere")
    (corpus / "audio" / "deep").symlink_to(corpus / "elsewhere")
    write(corpus)
    assert len(rows(corpus / "out", "test")) == 2


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('abc, 0.000, 10.000, "/m/unknown"\n', "line 4: '/m/unknown' is not a class of"),
        ("abc, 0.000, 10.000\n", "line 4: expected"),
        ('abc, 0.000, 10.000, "/m/09x0r,"\n', "line 4: expected"),
        ('abc, 10.000, 10.000, "/m/09x0r"\n', "line 4: expected"),
        ('abc, start, end, "/m/09x0r"\n', "line 4: expected"),
    ],
)
def test_malformed_tables(corpus, line, hint):
    (corpus / "balanced_train_segments.csv").write_text(HEADER + line)
    with pytest.raises(UserError, match=hint):
        write(corpus)


def test_of_many_malformed_lines_a_few_are_named_and_all_are_counted(corpus):
    (corpus / "balanced_train_segments.csv").write_text(HEADER + "abc, 0.000, 10.000\n" * 7)
    with pytest.raises(UserError, match=r"line 4: expected(.|\n)*\n  line 8: expected .*\n  7 bad lines in all$"):
        write(corpus)


def test_malformed_classes(corpus):
    path = corpus / "class_labels_indices.csv"
    path.write_text(CLASSES.replace("1,/m", "2,/m"))
    with pytest.raises(UserError, match=r"line 3: expected the class of index 1"):
        write(corpus)
    path.write_text("mid,name\n")
    with pytest.raises(UserError, match="line 1: expected 'index,mid"):
        write(corpus)
    path.unlink()
    with pytest.raises(UserError, match="cannot read the table"):
        write(corpus)
