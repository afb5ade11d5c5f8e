"""Decode a clip's picture: a still, or one frame of a video.

Pillow decodes stills and PyAV videos; the extra ``amae-plugin[video]`` installs both.

A picture is what a viewer shows. Transparent parts are white. A still is turned as its EXIF says and a frame of a video
as its display matrix does, pixels that are not square are made so, and 16 bits become 8. The frame of a video is the
one that is shown at a time, whatever its frame rate does; decoding begins at the key frame before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amae_plugin.data.audio import NO_PYAV, AudioError, open_container
from amae_plugin.data.manifest import Picture
from amae_plugin.files import open_regular

if TYPE_CHECKING:
    import av
    from PIL import Image

# Pillow's decoders, without those that start other programs.
_STILLS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_SCALES_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# First bytes of a file that Pillow and PyAV take for another, or take apart.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MARK_BYTES = 1024
_MARGIN = 2  # frames before the wanted one that are decoded in any case
_LONGEST_RATIO = 50  # of the sides; resizing makes the short one of a line of pixels hundreds wide


class Window(NamedTuple):
    """Part of a clip that is heard, in which the frame of a video is chosen.

    Attributes:
        seconds: length; a shorter clip is heard as a whole.
        position: place in a longer clip, in [0, 1]: 0 is the clip's beginning, 0.5 its centre, 1 its end.
    """

    seconds: float
    position: float


def load_picture(picture: Picture, position: float = 0.5, window: Window | None = None) -> Tensor:
    """Decode a picture.

    Args:
        picture: place of the picture.
        position: place in time of the frame of a video, in [0, 1]: 0 is the first frame, 1 the last one.
        window: part of the video, or of its piece, that *position* refers to; None for all of it.

    Returns:
        (3, H, W) uint8: red, green and blue, as a viewer shows it.

    Raises:
        AudioError: the file is missing, damaged or no picture, or the piece is not inside the video.
    """
    name = str(picture)
    try:
        with open_regular(picture.path) as file:
            _refuse_unknown(file, name)
            pixels = _decode_still(file, name)
            if pixels is None:
                pixels = _decode_frame(file, picture, position, window)
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None
    return pixels


def _require_shape(width: int, height: int, name: str) -> None:
    if max(height, width) > _LONGEST_RATIO * min(height, width):
        raise AudioError(name, f"has {width} x {height} pixels, too narrow for a picture")


def _refuse_unknown(file: BinaryIO, name: str) -> None:
    mark = file.read(_MARK_BYTES)
    if not mark:
        raise AudioError(name, "is empty, so neither a picture nor a video")
    if b"<svg" in mark or os.path.splitext(name)[1].lower() in (".svg", ".svgz"):  # noqa: PTH122
        raise AudioError(name, "is a drawing in SVG, which has no pixels; convert it to PNG, as by rsvg-convert")
    if mark[4:8] == b"ftyp" and mark[8:12] in _HEIF_BRANDS and b"avif" not in mark[:64]:
        raise AudioError(name, "is a picture in HEIF, which Pillow does not know; convert it to JPEG or PNG")


def _decode_still(file: BinaryIO, name: str) -> Tensor | None:
    """Decode a still: (3, H, W) uint8; None if the file is none. Of an animation, take the first picture."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    file.seek(0)
    try:
        with Image.open(file, formats=_STILLS) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        return None
    except Exception as error:  # of any kind, as Pillow's readers let through what went wrong in them
        raise AudioError(name, f"is a damaged picture ({error})") from None
    _require_shape(*image.size, name)
    return torch.from_numpy(np.array(_to_rgb(image, name))).permute(2, 0, 1)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a picture of any kind to 8 bits of red, green and blue, on white."""
    from PIL import Image

    if image.mode in _SCALES_OF_16_BITS:
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise AudioError(name, "holds numbers without a scale instead of colours; save it with 8 bits a colour")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _decode_frame(file: BinaryIO, picture: Picture, position: float, window: Window | None) -> Tensor:
    """Decode the frame of a video: (3, H, W) uint8."""
    name = str(picture)
    frame = None
    # First as is fast. That fails where a seek leads too far, or where the frame is one that is not decoded.
    for seeks, skips in ((True, True), (True, False), (False, False)):
        try:
            opened = open_container(file, name, "not a picture or a video that Pillow or PyAV know, or damaged")
        except ImportError:
            raise AudioError(name, f"not a picture that Pillow knows; {NO_PYAV}") from None
        with opened as container:
            video = _Video(container, name)
            found, is_exact = video.decode_at(video.time(picture, position, window), seeks, skips)
            frame, ratio = found or frame, video.pixel_ratio
        if is_exact:
            break
    if frame is None:
        raise AudioError(name, "no frame of its video can be decoded")
    width = max(1, round(frame.width * ratio))
    _require_shape(width, frame.height, name)
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", width=width, height=frame.height)).permute(2, 0, 1)
    return torch.rot90(pixels, round(frame.rotation / 90), (1, 2))


class _Video:
    """The first video stream of a file that is not the cover picture of a recording.

    Raises:
        AudioError: there is none, or in a codec that PyAV does not know.
    """

    def __init__(self, container: av.container.InputContainer, name: str):
        from av.stream import Disposition

        streams = container.streams.video
        moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        if not moving:
            raise AudioError(name, "has a cover picture but no video" if streams else "has sound but no picture")
        self._container, self._name, self._stream = container, name, moving[0]
        if self._stream.codec_context is None:
            raise AudioError(name, "has a picture in a codec that PyAV does not know, or is damaged")
        self._stream.codec_context.thread_count = 1  # as many as a worker of a data loader uses

    @property
    def pixel_ratio(self) -> Fraction:
        """Width of a pixel by its height."""
        return self._stream.sample_aspect_ratio or Fraction(1)

    def time(self, picture: Picture, position: float, window: Window | None) -> float:
        """Return the time of a frame in seconds after the beginning of the video.

        Raises:
            AudioError: the piece of the video begins after its end.
        """
        begin, length = picture.start_s or 0.0, picture.length_s
        if length is None:
            length = max(0.0, self._seconds - begin)
        if begin >= self._seconds > 0:
            raise AudioError(self._name, f"its video ends at {self._seconds:g} s")
        if window is not None and window.seconds < length:
            begin += (length - window.seconds) * window.position
            length = window.seconds
        return begin + position * length

    @property
    def _seconds(self) -> float:
        """Length of the video; that of the file where it alone is known, or 0."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1_000_000

    def decode_at(self, seconds: float, seeks: bool, skips: bool) -> tuple[av.VideoFrame | None, bool]:
        """Decode up to the frame that is shown at a time.

        Args:
            seconds: time after the beginning of the video.
            seeks: whether decoding begins at the key frame before that time, not at the beginning.
            skips: whether earlier frames are left out that no others refer to.

        Returns:
            The frame, or the last or the first one if there is none; None if none can be decoded. And whether it is the
            one that is shown then.
        """
        import av

        stream = self._stream
        wanted = (stream.start_time or 0) + math.floor(
            Fraction(seconds).limit_denominator(1_000_000) / stream.time_base
        )
        if seeks:
            try:
                self._container.seek(wanted, stream=stream)
            except av.FFmpegError:
                return None, False
        shown, left_out = None, set[int]()
        margin = _MARGIN / (stream.average_rate * stream.time_base) if stream.average_rate else 0
        for frame in self._frames(wanted - margin if skips else -math.inf, left_out):
            left_out.discard(frame.pts)
            if shown is not None and frame.pts > wanted:
                break
            shown = frame
        return shown, shown is not None and max(left_out, default=shown.pts) <= shown.pts <= wanted

    def _frames(self, first: float, left_out: set[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames that can be decoded whole and have a time.

        Those before a time stamp are left out if no others refer to them; the time stamps are added to *left_out*.
        """
        import av

        packets, context = self._container.demux(self._stream), self._stream.codec_context
        while True:
            try:
                packet = next(packets)
                is_early = packet.pts is not None and packet.pts < first
                context.skip_frame = "NONREF" if is_early else "DEFAULT"
                if is_early:
                    left_out.add(packet.pts)
                frames = packet.decode()
            except StopIteration:
                return
            except av.FFmpegError:
                continue  # to what can be decoded of a damaged file
            yield from (frame for frame in frames if frame.pts is not None and not frame.is_corrupt)
