"""Members of tar and zip archives, with the places of their bytes: headers alone are read."""

import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from amae_plugin.files import open_regular

COMPRESSED = ("tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")
"""Extensions of tar archives that are compressed as a whole."""

_BLOCK = 512  # bytes of a tar's header; members begin at multiples of it
_PIECE = 1 << 20  # bytes read at a time behind the end of a tar
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of its name and of what follows it
_ENCRYPTED = 1  # flag of a zip's member
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RecursionError)
_REMEDY = "fetch it again"


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    """Path in the archive."""
    start: int
    """First byte in the archive."""
    length: int
    """Number of bytes."""
    problem: str = ""
    """Why the bytes there are not the file's; empty if they are."""


@dataclass(frozen=True)
class Archive:
    """The files of an archive.

    Attributes:
        members: the files in their order; of several with one name all but the last have a problem.
        problem: why nothing in the archive can be used, as that it is damaged or cut off; empty if it can.
        warning: what is odd about an archive that can be used all the same, or empty.
    """

    members: list[Member]
    problem: str = ""
    warning: str = ""

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """List the files of a tar or, by its extension, of a zip."""
        try:
            with open_regular(path) as file:
                if path.name.lower().endswith(COMPRESSED) or file.read(8).startswith(_MAGIC):
                    return cls([], "is compressed as a whole, so nothing in it can be read in place; unpack it")
                file.seek(0)
                if path.suffix.lower() == ".zip":
                    return cls(_without_replaced(list(_zip_members(file))))
                members = list(_tar_members(file))
                behind = _behind(file, members.pop().start)
        except OSError as error:
            return cls([], f"cannot be read ({error.strerror or error})")
        except (*_DAMAGES, ValueError, struct.error) as error:
            return cls([], f"is damaged or cut off ({error}); {_REMEDY}")
        return cls(_without_replaced(members), warning=behind) if behind in ("", _NO_END) else cls([], behind)


_NO_END = "ends without the mark that a whole tar has there, so members may be missing"


def _tar_members(file: FileIO) -> Iterator[Member]:
    """Yield the files, and last of all a member without a name that starts where the archive ends."""
    # Only "r:" refuses what is compressed.
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # which grow by a kilobyte a member
            if member.isdir():
                continue
            problem = ""
            if member.islnk() or member.issym():
                problem = f"is a link to {member.linkname}, so its bytes lie elsewhere"
            elif member.issparse():
                problem = "is stored without its holes (a sparse file); pack the archive again without --sparse"
            elif not member.isreg():
                problem = "is not a regular file"
            yield Member(member.name, member.offset_data, member.size, problem)
        yield Member("", archive.offset, 0)


def _behind(file: FileIO, end: int) -> str:
    """Tell what is wrong with what follows the last member of a tar; empty if it is zeros."""
    file.seek(end)
    mark = file.read(_BLOCK)
    if not mark:
        return _NO_END
    if any(mark):
        return f"is damaged: at byte {end:,}, neither a member begins nor the archive ends; {_REMEDY}"
    while piece := file.read(_PIECE):
        if any(piece):
            return f"holds more behind its end at byte {end:,}, as where tars were joined; unpack and pack it again"
    return ""


def _zip_members(file: FileIO) -> Iterator[Member]:
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.filename.endswith("/"):  # not is_dir(), which fails where the name is empty
                continue
            file.seek(info.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + name + extra
            if signature != b"PK\x03\x04" or start + info.compress_size > size:
                raise zipfile.BadZipFile(f"'{info.filename}' is not where the directory says")
            problem = ""
            if info.flag_bits & _ENCRYPTED:
                problem = "is encrypted"
            elif info.compress_type != zipfile.ZIP_STORED:
                problem = "is compressed, so it cannot be read in place; pack the archive again with zip -0"
            yield Member(info.filename, start, info.file_size, problem)


def _without_replaced(members: list[Member]) -> list[Member]:
    """Mark the members that a later one replaces when the archive is unpacked."""
    last = {member.name: index for index, member in enumerate(members)}
    problem = "is replaced by a later member of the same name"
    return [
        member if last[member.name] == index else member._replace(problem=problem)
        for index, member in enumerate(members)
    ]
