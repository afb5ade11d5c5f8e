"""Tar and zip archives of audio, as WebDataset and Hugging Face ship it; clips are read where they lie.

Members of one name but for the extension belong together: ``a/1.flac`` has its classes in ``a/1.json`` or ``a/1.cls``.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from amae_plugin.corpora.archives import COMPRESSED, Archive, Member
from amae_plugin.corpora.audio_files import AUDIO_EXTENSIONS, find_audio, is_hidden
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, Scan, read_headers, write_corpus
from amae_plugin.corpora.splits import SPLIT_OF, add_split_seed, split_classes
from amae_plugin.errors import SHOWN, UserError, first_of
from amae_plugin.files import open_regular
from amae_plugin.processes import available_cpus
from amae_plugin.progress import map_in_threads

KINDS = ("cls", "json", "txt")
AUTO, NONE = "auto", "none"
FIELDS = ("labels", "label", "classes", "class", "cls")

_MOST_BYTES = 1 << 20  # of a member that holds labels
_TRIED = 100  # members of JSON looked at to see whether they hold labels


@dataclass(slots=True)
class _Clip:
    """A member that is audio.

    Attributes:
        archive: path of its archive, relative to the folder.
        member: the member.
        beside: the members that may hold its labels, by their kind.
    """

    archive: str
    member: Member
    beside: dict[str, Member] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The path in the form that a manifest takes."""
        return f"{self.archive}:{self.member.start}:{self.member.length}"

    @property
    def name(self) -> str:
        return f"{self.archive}/{self.member.name}"


def build(
    folder: Path,
    out: Path,
    *,
    labels: str = AUTO,
    label_field: str | None = None,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """Index archives; a split is what their names or folders say, such as ``train-0001.tar``, or else is drawn.

    Args:
        folder: root of the archives.
        out: folder of the manifests.
        labels: kind of the members that hold the classes, ``"none"``, or ``"auto"``: ``cls`` if there are any, or else
            ``json`` if it has one of the usual fields.
        label_field: field of the JSON objects that holds the classes; if None, the first of :data:`FIELDS` there is.
        valid_fraction: share of the training clips held out for validation if no archive is of that split.
        test_fraction: likewise for testing.
        seed: seed of the choice of clips held out.
        workers: number of threads that read archives and headers.

    Raises:
        UserError: the folder does not exist or holds no readable audio, a fraction cannot be met, or a label cannot be
            a class.
    """
    from amae_plugin.data.labels import check_class
    from amae_plugin.data.manifest import ARCHIVES

    found = find_audio(folder, (*ARCHIVES, *COMPRESSED))
    if not found.names:
        raise UserError(f"{folder}: no archives; looked for the extensions {' '.join((*ARCHIVES, *COMPRESSED))}")
    threads, bar = workers or available_cpus(), {"desc": "reading archives", "unit": "archive"}
    archives = dict(map_in_threads(lambda name: Archive.read(folder / name), found.names, threads, **bar))
    unreadable = {**found.problems, **{name: each.problem for name, each in archives.items() if each.problem}}
    warnings = [f"{name}: {problem}; left out" for name, problem in itertools.islice(unreadable.items(), SHOWN)]
    warnings += [f"{name}: {each.warning}" for name, each in archives.items() if each.warning]
    if found.duplicates:
        warnings.append(f"links to other archives of the tree, left out: {len(found.duplicates):,}")
    hidden = list(found.hidden)
    clips = [clip for name, archive in archives.items() for clip in _clips(name, archive, hidden)]
    if hidden:
        warnings.append(f"hidden, or made by a system, and left out: {len(hidden):,}: {first_of(hidden)}")
    unreadable |= {clip.name: clip.member.problem for clip in clips if clip.member.problem}
    clips = [clip for clip in clips if not clip.member.problem]
    if not clips:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in itertools.islice(unreadable.items(), SHOWN))
        raise UserError(f"{folder}: no audio in its archives that can be read in place{reasons}")

    kind = labels
    if labels == AUTO:
        kind, more = _choose_kind(folder, clips, label_field)
        warnings += more
    found_labels: dict[str, tuple[str, ...]] = {}
    if kind != NONE:
        checked: set[str] = set()
        for clip, content in _contents(folder, clips, kind):
            try:
                found_labels[clip.entry] = _parse(kind, content, label_field)
            except ValueError as error:
                unreadable[clip.name] = f"has no label: {error}"
                continue
            for name in set(found_labels[clip.entry]) - checked:
                check_class(name, folder / clip.archive / clip.beside[kind].name)
                checked.add(name)
        clips = [clip for clip in clips if clip.entry in found_labels]
    scan = read_headers(folder, [clip.entry for clip in clips], workers)
    unreadable |= {clip.name: scan.unreadable[clip.entry] for clip in clips if clip.entry in scan.unreadable}
    readable = [
        LabelledClip(clip.entry, found_labels.get(clip.entry, ())) for clip in clips if clip.entry in scan.headers
    ]
    classes = sorted({label for clip in readable for label in clip.labels}, key=_class_order)
    splits, more = _split(readable, {"valid": valid_fraction, "test": test_fraction}, seed)
    return write_corpus(
        folder, {out: splits}, classes, warnings=[*warnings, *more], scan=Scan(scan.headers, unreadable)
    )


def _clips(name: str, archive: Archive, hidden: list[str]) -> Iterator[_Clip]:
    """Yield the audio of an archive; the names of what is hidden are added to *hidden*."""
    seen = []
    for member in archive.members:
        if not any(is_hidden(part) for part in PurePosixPath(member.name).parts):
            seen.append(member)
        elif _extension(member.name) in AUDIO_EXTENSIONS:
            hidden.append(f"{name}/{member.name}")
    beside = {member.name: member for member in seen if _extension(member.name) in KINDS and not member.problem}
    by_key = {(_stem(path), _extension(path)): member for path, member in beside.items()}
    for member in seen:
        if _extension(member.name) in AUDIO_EXTENSIONS:
            # WebDataset's key ends at the first dot of the name, so that of "1.left.wav" is "1".
            head, _, tail = member.name.rpartition("/")
            keys = (_stem(member.name), f"{head}/{tail.split('.')[0]}" if head else tail.split(".")[0])
            found = {kind: by_key[key, kind] for key in keys[::-1] for kind in KINDS if (key, kind) in by_key}
            yield _Clip(name, member, found)


def _extension(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def _stem(name: str) -> str:
    return name[: -len(_extension(name)) - 1]


def _choose_kind(folder: Path, clips: Sequence[_Clip], label_field: str | None) -> tuple[str, list[str]]:
    """Choose the kind of members that hold labels, and return warnings."""
    if any("cls" in clip.beside for clip in clips):
        return "cls", []
    tried = list(itertools.islice((clip for clip in clips if "json" in clip.beside), _TRIED))
    if not tried:
        return NONE, []
    for _, content in _contents(folder, tried, "json"):
        try:
            _parse("json", content, label_field)
        except ValueError:
            continue
        return "json", []
    if label_field is not None:
        raise UserError(f"--field {label_field}: the .json members of {folder} hold no labels in a field of that name")
    return NONE, [f"the .json members hold none of the fields {', '.join(FIELDS)}, so there are no labels (--field)"]


def _contents(folder: Path, clips: Sequence[_Clip], kind: str) -> Iterator[tuple[_Clip, bytes | None]]:
    """Yield each clip with the content of the member beside it; None without one."""
    for archive, group in itertools.groupby(clips, key=lambda clip: clip.archive):
        with open_regular(folder / archive) as file:
            for clip in group:
                member = clip.beside.get(kind)
                if member is None:
                    yield clip, None
                    continue
                file.seek(member.start)
                yield clip, file.read(min(member.length, _MOST_BYTES))


def _parse(kind: str, content: bytes | None, label_field: str | None) -> tuple[str, ...]:
    """Read the classes in a member.

    Raises:
        ValueError: it holds none; says why.
    """
    if content is None:
        raise ValueError(f"no .{kind} of the same name in the archive")
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if kind == "json" else text.replace("\n", ",").split(",")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .{kind} cannot be read ({error})") from None
    if isinstance(value, Mapping):
        fields = FIELDS if label_field is None else (label_field,)
        name = next((name for name in fields if name in value), None)
        if name is None:
            raise ValueError(f"its .json has no field {' or '.join(fields)}")
        value = value[name]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in values):
        raise ValueError(f"its .{kind} holds neither names nor whole numbers")
    classes = dict.fromkeys(str(each).strip() for each in values)
    classes.pop("", None)
    if not classes:
        raise ValueError(f"its .{kind} is empty")
    return tuple(classes)


def _class_order(name: str) -> tuple[int, int, str]:
    """Order numbers by their value, before all names."""
    return (0, int(name), "") if name.isascii() and name.isdigit() else (1, 0, name)


def _split(
    clips: Sequence[LabelledClip], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, list[LabelledClip]], list[str]]:
    """Divide clips by the names of their archives, draw the splits that no archive is of, and return warnings."""
    splits: dict[str, list[LabelledClip]] = {}
    for archive, group in itertools.groupby(clips, key=lambda clip: clip.path.rsplit(":", 2)[0]):
        splits.setdefault(_split_named(archive), []).extend(group)
    wanted = {split: share for split, share in fractions.items() if share and split not in splits}
    train = splits.get("train")
    if not train or not wanted:
        return splits, []
    one_each = all(len(clip.labels) == 1 for clip in train)
    groups: dict[tuple[str, ...], list[str]] = {}
    for clip in train:
        groups.setdefault(clip.labels if one_each else (), []).append(clip.path)
    drawn, warnings = split_classes(groups, wanted, seed)
    # In the order of the archives, in which the clips are read fastest.
    others = {split: [clip for clip in train if clip.path in part] for split, part in drawn.items()}
    return {**splits, **others}, warnings


def _split_named(archive: str) -> str:
    """Return the split that the name of an archive or of a folder that it lies in tells, else ``train``."""
    for part in reversed(PurePosixPath(archive).parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLIT_OF:
                return SPLIT_OF[word]
    return "train"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="list the archives of this tree: .tar, and .zip with stored members")
    kinds = f"read the classes from these members ({AUTO}: cls, or json with a field {', '.join(FIELDS)})"
    add("--labels", nargs="?", choices=(AUTO, NONE, *KINDS), default=AUTO, const=AUTO, help=kinds)
    add("--field", dest="label_field", metavar="NAME", help="read the classes from this field of the .json members")
    held_out = "hold out this share of the training clips if no archive is named after the split (default: %(default)s)"
    add("--valid-fraction", type=float, default=0.05, metavar="SHARE", help=held_out)
    add(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="hold out this share for testing, likewise (default: %(default)s)",
    )
    add_split_seed(parser)


LAYOUT = Layout("shards", "list tar and zip archives, as WebDataset and Hugging Face ship audio", _add_arguments, build)
