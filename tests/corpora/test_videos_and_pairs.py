"""Manifests of sound and picture: trees of videos, pairs by name, and tables whose clips are videos."""

from pathlib import Path

import pytest
from PIL import Image

from amae_plugin.corpora import audioset, pairs, vggsound, videos
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.pictures import load_picture
from amae_plugin.errors import UserError


def listed(out, split):
    """Name, samples and picture of each clip."""
    manifest = Manifest.read(out / f"{split}.tsv")
    return [(manifest.name(i), int(manifest.sizes[i]), manifest.picture_name(i)) for i in range(len(manifest))]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)


def reasons(out):
    return dict(line.split("\t") for line in (out / "unreadable.tsv").read_text().splitlines())


def test_long_videos_are_cut_and_short_ones_are_whole(tmp_path, video):
    for name, seconds in (("a.mkv", 1.0), ("b.webm", 2.4), ("c/d.MP4", 5.5)):
        video(tmp_path / "tree" / name, seconds)
    videos.build(tmp_path / "tree", tmp_path / "out", seconds=2, valid_fraction=0)
    assert listed(tmp_path / "out", "train") == [
        ("a.mkv", 8_000, "a.mkv"),
        ("b.webm", 19_200, "b.webm"),
        ("c/d.MP4:0:16000", 16_000, "c/d.MP4:0:2000"),
        ("c/d.MP4:16000:16000", 16_000, "c/d.MP4:2000:2000"),
        ("c/d.MP4:32000:12000", 12_000, "c/d.MP4:4000:1500"),
    ]
    manifest = Manifest.read(tmp_path / "out" / "train.tsv")
    # The frames are 0.5 s apart and each is brighter by 10.
    brightness = [float(load_picture(manifest.picture(i), 0.0).float().mean()) / 10 for i in (2, 3, 4)]
    assert brightness == pytest.approx([0, 4, 8], abs=0.6)
    videos.build(tmp_path / "tree", tmp_path / "whole", seconds=0, valid_fraction=0)
    assert [name for name, _, _ in listed(tmp_path / "whole", "train")] == ["a.mkv", "b.webm", "c/d.MP4"]
    with pytest.raises(UserError, match="--seconds -1: must be 0"):
        videos.build(tmp_path / "tree", tmp_path / "out", seconds=-1)


def test_pieces_of_a_video_are_in_one_split(tmp_path, video):
    for number in range(6):
        video(tmp_path / "tree" / "cat" / f"{number}.mkv", 2)
    videos.build(tmp_path / "tree", tmp_path / "out", labels=True, seconds=1, valid_fraction=0.3, test_fraction=0.3)
    splits = ("train", "valid", "test")
    parts = [{name.split(":")[0] for name, _, _ in listed(tmp_path / "out", split)} for split in splits]
    assert [len(part) for part in parts] == [2, 2, 2] and len(set.union(*parts)) == 6
    assert (tmp_path / "out" / "test.lbl").read_text() == "cat\n" * 4


def test_videos_without_sound_or_picture_are_left_out_with_the_reason(tmp_path, video):
    tree = tmp_path / "tree"
    video(tree / "good.mkv")
    video(tree / "silent film.mkv", sound=False)
    video(tree / "radio.mkv", picture=False)
    (tree / "broken.mp4").write_bytes(b"broken" * 50)
    (tree / "notes.wav").touch()
    videos.build(tree, tmp_path / "out", valid_fraction=0)
    assert listed(tmp_path / "out", "train") == [("good.mkv", 4_000, "good.mkv")]
    found = reasons(tmp_path / "out")
    assert found.pop("broken.mp4").startswith("not a format that soundfile or PyAV know")
    assert found == {"radio.mkv": "has sound but no picture", "silent film.mkv": "has no audio stream"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no videos; looked for the extensions mp4 mkv"):
        videos.build(tmp_path / "empty", tmp_path / "none")


def test_a_sound_belongs_to_the_picture_of_the_longest_beginning_of_its_name(tmp_path, sound):
    tree = tmp_path / "tree"
    for name in ("cat.png", "cat.svg", "cat_big.jpg", "CAT.png", "sub/dog.PNG", "a.b.png", "lone.png"):
        if name.endswith("svg"):
            (tree / name).write_text("<svg/>")
        else:
            picture(tree / name)
    for name in (
        "cat.wav", "cat_desc.wav", "cat_desc_fr.flac", "cat_big_fr.wav", "cats.wav", "CAT.wav", "cat.fr.wav",
        "sub/dog_1.wav", "sub/cat.wav", "a.b.wav", "a.wav",
    ):  # fmt: skip
        sound(tree / name)
    corpus = pairs.build(tree, tmp_path / "out", valid_fraction=0)
    assert {name: image for name, _, image in listed(tmp_path / "out", "train")} == {
        "cat.wav": "cat.png",
        "cat_desc.wav": "cat.png",
        "cat_desc_fr.flac": "cat.png",
        "cat.fr.wav": "cat.png",
        "cat_big_fr.wav": "cat_big.jpg",
        "CAT.wav": "CAT.png",
        "sub/dog_1.wav": "sub/dog.PNG",
        "a.b.wav": "a.b.png",
    }
    assert corpus.warnings == (
        "sounds without a picture, left out: 3: a.wav, cats.wav, sub/cat.wav",
        "pictures without a sound, left out: 1: lone.png",
    )


def test_pictures_are_held_out_with_all_their_sounds(tmp_path, sound):
    for number in range(10):
        picture(tmp_path / "tree" / f"{number}.png")
        for language in ("", "_fr", "_de"):
            sound(tmp_path / "tree" / f"{number}{language}.wav")
    corpus = pairs.build(tmp_path / "tree", tmp_path / "out", valid_fraction=0.2, test_fraction=0.2)
    assert corpus.summary.clips == {"train": 18, "valid": 6, "test": 6}
    parts = [{image for _, _, image in listed(tmp_path / "out", split)} for split in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10


def test_pictures_of_another_tree_and_bad_ones(tmp_path, sound):
    for name in ("a/1", "a/2", "b/1", "b/3"):
        sound(tmp_path / "sounds" / f"{name}.wav")
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "b" / "3.png").write_text("<svg/>")
    (tmp_path / "sounds" / "b" / "1.wav").write_bytes(b"broken" * 50)
    out = tmp_path / "out"
    corpus = pairs.build(tmp_path / "sounds", out, pictures=tmp_path / "images", labels=True, valid_fraction=0)
    assert listed(out, "train") == [(f"a/{n}.wav", 800, f"{tmp_path}/images/a/{n}.png") for n in (1, 2)]
    assert load_picture(Manifest.read(out / "train.tsv").picture(0)).shape == (3, 4, 4)
    assert set(reasons(out)) == {f"{tmp_path}/images/b/3.png", "b/1.wav"}
    assert "b: none of its clips can be read, so it is no class" in corpus.warnings
    with pytest.raises(UserError, match=r"of 4 sounds and 0 pictures, none belong together"):
        pairs.build(tmp_path / "sounds", out)


def test_pictures_in_a_folder_above(tmp_path, sound, monkeypatch):
    for name in ("a", "b"):
        sound(tmp_path / "sounds" / f"{name}.wav")
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "b.png").write_text("<svg/>")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    pairs.build(Path("../sounds"), Path("out"), pictures=Path("../images"), valid_fraction=0)
    assert listed(Path("out"), "train") == [("a.wav", 800, f"{tmp_path}/images/a.png")]
    assert set(reasons(Path("out"))) == {f"{tmp_path}/images/b.png"}


def write_table(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def test_vggsound_with_clips_and_whole_videos(tmp_path, video):
    table = write_table(
        tmp_path / "vggsound.csv",
        [
            "-clip000001,30,cat growling,train",
            'whole000002,3,"subway, metro",train',
            "titled00004,10,cat growling,train",
            "clip0000003,120,cat growling,test",
        ],
    )
    for name, seconds in {
        "-clip000001_000030.mp4": 16,
        "whole000002.mkv": 16,
        "A cat [titled00004].mkv": 18,
        "clip0000003.webm": 1,
    }.items():
        video(tmp_path / "clips" / "a" / name, seconds)
    corpus = vggsound.build(table, None, tmp_path / "out", videos=tmp_path / "clips")
    assert listed(tmp_path / "out", "train") == [
        ("a/-clip000001_000030.mp4", 128_000, "a/-clip000001_000030.mp4"),
        ("a/whole000002.mkv:24000:80000", 80_000, "a/whole000002.mkv:3000:10000"),
        ("a/A cat [titled00004].mkv:80000:64000", 64_000, "a/A cat [titled00004].mkv:10000:8000"),
    ]
    assert listed(tmp_path / "out", "valid") == listed(tmp_path / "out", "test")
    assert (tmp_path / "out" / "labels.txt").read_text() == "cat growling\nsubway / metro\n"
    assert (tmp_path / "out" / "train.lbl").read_text() == "cat growling\nsubway / metro\ncat growling\n"
    assert "train: 3 clips, as published there are 183,730" in corpus.warnings
    vggsound.build(table, tmp_path / "clips", tmp_path / "sound")
    manifest = Manifest.read(tmp_path / "sound" / "train.tsv")
    assert not manifest.has_pictures and manifest.sizes.tolist() == [128_000, 80_000, 64_000]
    for row in ("id,1,cat", "id,1,cat,valid", "id,x,cat,train", ",1,cat,train", "id,1,,test"):
        with pytest.raises(UserError, match="line 2: expected 'id,start_seconds,label,train"):
            table = write_table(tmp_path / "bad.csv", ["a,1,cat,train", row])
            vggsound.build(table, None, tmp_path / "out", videos=tmp_path)


def test_audioset_with_videos(tmp_path, video, sound):
    write_table(tmp_path / "labels.csv", ["index,mid,display_name", "0,/m/a,A"])
    table = write_table(tmp_path / "train.csv", ['clip0, 0.000, 10.000, "/m/a"'])
    video(tmp_path / "clips" / "Yclip0.mkv")
    sound(tmp_path / "clips" / "Yclip0.flac")
    for folders, expected in (
        ({"audio": None, "videos": tmp_path / "clips"}, f"{tmp_path}/clips\nYclip0.mkv\t4000\tYclip0.mkv\n"),
        ({"audio": tmp_path / "clips"}, f"{tmp_path}/clips\nYclip0.flac\t800\n"),
    ):
        audioset.build([str(table)], labels=tmp_path / "labels.csv", out=tmp_path / "out", **folders)
        assert (tmp_path / "out" / "train.tsv").read_text() == expected
