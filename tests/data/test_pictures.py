"""Stills and videos as they are found: the picture is what a viewer shows, or there is a clear reason."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from amae_plugin.data import pictures
from amae_plugin.data.audio import AudioError
from amae_plugin.data.images import ImageInput
from amae_plugin.data.manifest import Picture
from amae_plugin.data.pictures import Window, load_picture

SIZE = (64, 48)  # width and height
STEP = 10  # by which each frame of a video is brighter than the one before


def write_video(
    path: Path,
    codec: str = "libx264",
    times: Sequence[int] = tuple(range(0, 2_000, 100)),
    rotation: int = 0,
    pixel_ratio: Fraction | None = None,
    **options: str,
) -> Path:
    """Write frames that get brighter, with a white corner at the upper left, shown from these milliseconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if pixel_ratio is not None:
            stream.sample_aspect_ratio = pixel_ratio
        for number, time in enumerate(times):
            pixels = np.full((SIZE[1], SIZE[0], 3), number * STEP, np.uint8)
            pixels[:8, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number(pixels: torch.Tensor) -> float:
    """The number of a frame by its brightness."""
    return float(pixels[:, 24:, 32:].float().mean()) / STEP


def reason(path: Path, **place: float) -> str:
    with pytest.raises(AudioError) as error:
        load_picture(Picture(str(path), **place))
    assert str(error.value).startswith(f"cannot use {path}")
    return str(error.value.reason)


VIDEOS = [
    ("a.mp4", "libx264", {}),
    ("a.mp4", "libx264", {"g": "7", "bf": "3", "b-pyramid": "strict"}),
    ("a.mkv", "libx264", {"bf": "3"}),
    ("a.mov", "mpeg4", {}),
    ("a.avi", "mpeg4", {"g": "5"}),
    ("a.ts", "libx264", {"g": "5"}),
    ("a.webm", "libvpx", {}),
    ("a.webm", "libvpx-vp9", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), VIDEOS)
def test_the_frame_is_the_one_that_is_shown_at_the_time(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    path = write_video(tmp_path / name, codec, **options)
    found = [number(load_picture(Picture(str(path)), each / 20)) for each in range(20)]
    # FFmpeg states a length for MPEG-TS that is a frame shorter.
    assert found == pytest.approx(range(20), abs=1.1 if name == "a.ts" else 0.45)
    assert number(load_picture(Picture(str(path)), 0.0)) == pytest.approx(0, abs=0.2)
    assert number(load_picture(Picture(str(path)), 1.0)) == pytest.approx(19, abs=0.2)


TIMES = [0, 100, 900, 950, 960, 2000, 2500, 2600, 2700, 2800, *range(2810, 2900, 10), 3000]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_frame_rate(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, times=TIMES, bf="3")
    for time in (0, 50, 150, 899, 905, 955, 1990, 2499, 2815, 2889, 2950):
        shown = load_picture(Picture(str(path), 0.0, 3.0), time / 3000)
        assert number(shown) == pytest.approx(np.searchsorted(TIMES, time, side="right") - 1, abs=0.3), time


def test_frames_that_are_left_out_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", bf="3", g="250")
    positions = [each / 7 for each in range(8)]
    fast = [load_picture(Picture(str(path)), position) for position in positions]
    monkeypatch.setattr(pictures, "_MARGIN", 10**6)
    assert all(torch.equal(load_picture(Picture(str(path)), place), image) for place, image in zip(positions, fast))


def test_pieces_and_windows_name_their_time(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    assert number(load_picture(Picture(path, 1.0, 0.5), 0.5)) == pytest.approx(12, abs=0.3)
    assert number(load_picture(Picture(path, 1.0, 0.5), 0.5, Window(10, 0.3))) == pytest.approx(12, abs=0.3)
    # Heard is 0.4 s of 2 s, from 1.6 s x 0.75 on.
    for position, expected in ((0.0, 12), (0.5, 14), (0.99, 15)):
        assert number(load_picture(Picture(path), position, Window(0.4, 0.75))) == pytest.approx(expected, abs=0.3)
    assert number(load_picture(Picture(path, 0.5, 1.0), 0.0, Window(0.4, 1.0))) == pytest.approx(11, abs=0.3)
    assert "its video ends at 2 s" in reason(tmp_path / "a.mp4", start_s=2.0, length_s=1.0)


@pytest.mark.parametrize(
    ("rotation", "size", "corner"), [(-90, SIZE[::-1], (0, -1)), (90, SIZE[::-1], (-1, 0)), (180, SIZE, (-1, -1))]
)
def test_a_phone_that_was_turned(tmp_path: Path, rotation: int, size: tuple, corner: tuple) -> None:
    image = load_picture(Picture(str(write_video(tmp_path / "a.mp4", rotation=rotation))), 0.0)
    assert tuple(image.shape) == (3, *size[::-1])
    corners = {(row, column): int(image[0, row, column]) for row in (0, -1) for column in (0, -1)}
    assert corners.pop(corner) > 200 and max(corners.values()) < 60


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pixel_ratio=Fraction(2, 1))
    assert load_picture(Picture(str(path))).shape == (3, 48, 128)


def test_videos_that_hold_no_picture_or_only_a_part_of_it(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", g="1").read_bytes()
    (tmp_path / "part.mkv").write_bytes(whole[: len(whole) * 3 // 4])
    assert number(load_picture(Picture(str(tmp_path / "part.mkv")), 0.1)) == pytest.approx(2, abs=0.3)
    assert 5 < number(load_picture(Picture(str(tmp_path / "part.mkv")), 1.0)) < 18
    video = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(video[: len(video) // 2])  # its index is at the end
    assert "not a picture or a video that Pillow or PyAV know, or damaged" in reason(tmp_path / "cut.mp4")
    start, end = video.index(b"mdat") + 4, video.index(b"moov") - 4
    (tmp_path / "zeros.mp4").write_bytes(video[:start] + bytes(end - start) + video[end:])
    assert "no frame of its video can be decoded" in reason(tmp_path / "zeros.mp4")


def test_sound_without_a_picture(tmp_path: Path) -> None:
    for name, cover in (("a.mp4", False), ("b.mp4", True)):
        with av.open(str(tmp_path / name), "w") as container:
            sound = container.add_stream("aac", rate=16_000, layout="mono")
            image = container.add_stream("mjpeg", rate=1) if cover else None
            if image is not None:
                image.width, image.height, image.pix_fmt = 16, 16, "yuvj420p"
                image.disposition = av.stream.Disposition.attached_pic
                frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
                container.mux(image.encode(frame))
                container.mux(image.encode(None))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16_000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    assert reason(tmp_path / "a.mp4") == "has sound but no picture"
    assert reason(tmp_path / "b.mp4") == "has a cover picture but no video"


def rgba() -> np.ndarray:
    """Red, half transparent blue, and black that cannot be seen: (10, 30, 4)."""
    pixels = np.zeros((10, 30, 4), np.uint8)
    pixels[:, :10], pixels[:, 10:20] = (255, 0, 0, 255), (0, 0, 255, 128)
    return pixels


COLOURS = [(255, 0, 0), (127, 127, 255), (255, 255, 255)]


def palette() -> Image.Image:
    image = Image.new("P", (30, 10))
    image.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    image.putdata([(place % 30) // 10 for place in range(300)])
    return image


GREY = np.repeat(np.array([0, 100, 255], np.uint8), 10)[None].repeat(10, 0)
GREYS = [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
CMYK = Image.fromarray(np.dstack([rgba()[..., :3], np.zeros((10, 30), np.uint8)]), "CMYK")
STILLS = {
    "rgba.png": (Image.fromarray(rgba()), {}, COLOURS),
    "rgba.webp": (Image.fromarray(rgba()), {"lossless": True}, COLOURS),
    "rgba.tiff": (Image.fromarray(rgba()), {}, COLOURS),
    "palette.png": (palette(), {}, [(255, 0, 0), (0, 0, 255), (9, 9, 9)]),
    "palette.gif": (palette(), {"transparency": 2}, [(255, 0, 0), (0, 0, 255), (255, 255, 255)]),
    "transparent palette.png": (palette(), {"transparency": b"\xff\x80\0"}, COLOURS),
    "grey.png": (Image.fromarray(GREY), {}, GREYS),
    "transparent grey.png": (Image.fromarray(GREY), {"transparency": 100}, [GREYS[0], GREYS[2], GREYS[2]]),
    "alpha.png": (
        Image.fromarray(np.dstack([GREY, rgba()[..., 3]]), "LA"),
        {},
        [(0,) * 3, (177,) * 3, (255,) * 3],
    ),
    "16 bits.png": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREYS),
    "16 bits.tiff": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREYS),
    "16 bits.pgm": (Image.fromarray(GREY.astype(np.int32) * 257), {}, GREYS),
    "one bit.png": (Image.fromarray(GREY > 99), {}, [(0,) * 3, (255,) * 3, (255,) * 3]),
    "grey.jpg": (Image.fromarray(GREY), {"quality": 100}, GREYS),
    "print.jpg": (CMYK, {"quality": 100, "subsampling": 0}, [(0, 255, 255), (255, 255, 0), (255, 255, 255)]),
    "a.bmp": (Image.fromarray(rgba()[..., :3]), {}, [(255, 0, 0), (0, 0, 255), (0, 0, 0)]),
    "a.avif": (Image.fromarray(GREY).convert("RGB"), {"quality": 100}, GREYS),
}


@pytest.mark.parametrize("name", STILLS)
def test_stills_are_as_a_viewer_shows_them(tmp_path: Path, name: str) -> None:
    image, options, colours = STILLS[name]
    image.save(tmp_path / name, **options)
    (tmp_path / name).rename(tmp_path / "picture")  # the content tells what it is, not the name
    picture = load_picture(Picture(str(tmp_path / "picture")))
    assert (picture.shape, picture.dtype) == ((3, 10, 30), torch.uint8)
    found = [picture[:, 5, column].tolist() for column in (5, 15, 25)]
    assert np.abs(np.array(found) - colours).max() <= (6 if name.endswith(("jpg", "avif")) else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_that_was_turned(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((8, 16), np.uint8)
    upright[:4, :4] = 255
    turns = [
        lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, np.transpose, np.rot90,
        lambda x: np.rot90(x, 2).T, lambda x: np.rot90(x, -1),
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turns[orientation - 1](upright))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_picture(Picture(str(tmp_path / "a.png")))[0], upright)


def png(width: int, height: int) -> bytes:
    """A PNG file whose header promises a size."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


DAMAGED = {
    "empty": (b"", "is empty"),
    "text": (b"no picture at all\n" * 100, "not a picture or a video that Pillow or PyAV know"),
    "half.jpg": (jpeg()[: len(jpeg()) // 2], "is a damaged picture (image file is truncated"),
    "half.png": (png(64, 64)[:50], "is a damaged picture ("),
    "bomb.png": (png(100_000, 100_000), "is a damaged picture (Image size (10000000000 pixels) exceeds limit"),
    "a.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is a drawing in SVG"),
    "a.heic": (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200), "is a picture in HEIF"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture or a video"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_picture_has_a_reason(tmp_path: Path, name: str) -> None:
    content, expected = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    assert expected in reason(tmp_path / name)


def test_other_files_that_are_no_pictures(tmp_path: Path) -> None:
    Image.new("L", (1, 500)).save(tmp_path / "line.png")
    assert reason(tmp_path / "line.png") == "has 1 x 500 pixels, too narrow for a picture"
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "a.tiff")
    assert "without a scale" in reason(tmp_path / "a.tiff")
    assert "No such file" in reason(tmp_path / "none.png")
    assert "Is a directory" in reason(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_anywhere_is_an_audio_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("rgba.png", "palette.gif", "rgba.webp", "rgba.tiff", "grey.jpg", "a.avif"):
        image, options, _ = STILLS[name]
        image.save(tmp_path / name, **options)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(20):
            damaged = content.copy()
            damaged[rng.integers(len(damaged), size=4)] = rng.integers(0, 255, 4)
            (tmp_path / "damaged").write_bytes(damaged[: rng.integers(1, len(damaged))].tobytes())
            try:
                load_picture(Picture(str(tmp_path / "damaged")))
            except AudioError as error:
                assert error.reason


def test_the_image_is_the_published_one() -> None:
    """CAV-MAE's transforms: Pillow's bicubic resizing of the short side, the middle, ImageNet's mean and deviation."""
    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    image = ImageInput(size=64)(torch.from_numpy(pixels).permute(2, 0, 1))
    resized = np.asarray(Image.fromarray(pixels).resize((113, 64), Image.Resampling.BICUBIC))[:, 24:88]
    expected = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert image.dtype == torch.float32
    # Within two of 255 steps: the two libraries round at other places.
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 2.01 / 255 / 0.224
    assert torch.equal(image, ImageInput(size=64)(torch.from_numpy(pixels).permute(2, 0, 1), np.random.default_rng(1)))


def test_training_crops_and_flips_by_the_generator_alone() -> None:
    picture = torch.arange(256, dtype=torch.uint8).repeat(3, 128, 1)
    state = torch.get_rng_state()
    flip = ImageInput(size=32, training_flip=True)
    firsts = [float(flip(picture, np.random.default_rng(seed))[0, 0, 0]) for seed in range(20)]
    assert len(set(firsts)) == 2
    crop = ImageInput(size=32, training_crop="random")
    images = [crop(picture, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert torch.equal(flip(picture), crop(picture))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"training_frames": 0}, {"training_crop": "left"}, {"std": (0.1, 0.1, 0.0)}, {"mean": (0.5,)}],
)
def test_settings_that_cannot_be_used(settings: dict) -> None:
    with pytest.raises(ValueError, match="of the image"):
        ImageInput(**settings)


def test_without_pyav_a_video_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'amae-plugin[video]'" in reason(path)
    assert load_picture(Picture(str(tmp_path / "a.png"))).shape == (3, 2, 2)
