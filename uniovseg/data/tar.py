"""Samples of a tar archive, by byte offset: any part of a large tar can be read alone, and after an error reading goes on without loss or repeats.

A sample is a run of members with one name up to the first dot (``sa_1.jpg``, ``sa_1.json``), as in WebDataset. A *part* [begin, end) of a tar owns
every sample but the first that it meets from `begin` on, up to and with the one that holds the first header at or after `end`; the first part owns its
first sample too. Neighbouring parts agree on that header, so every sample belongs to exactly one part, wherever the borders fall.

Where the archive itself is damaged (a header that is none, an end inside a member or without an end marker, a stretch of zeros), that becomes a
`TarDamage` in the place of what was lost, and reading goes on at the next valid header. The zeroed blocks that end an archive are passed over, so that
archives may follow each other in one file.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from uniovseg.errors import StorageError
from uniovseg.storage import ATTEMPTS, Location, hopeless, pause

BLOCK = 512

BUFFER = 8 * 1024**2
"""Bytes of one ranged read."""

LONGEST_END = 64 * 1024
"""Bytes of zeros that may end an archive: two blocks, and what fills its last record, of 10 kB by default. More are what a copy has not written."""

LOOK_BACK = 16 * BLOCK
"""How far before a part's begin the long name of its first header is looked for."""

EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
"""Types of headers whose body says something of the member that follows."""

OpenAt = Callable[[int], BinaryIO]
"""Opens the tar for reading from a byte offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSample:
    """Members of one sample: ``files`` by what follows the first dot (lower case), ``offset`` of its first header in the tar."""

    key: str
    offset: int
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TarDamage:
    """A place where the archive is broken: the ``key`` of the sample that was hit (empty when it cannot be known) and where it starts."""

    key: str
    offset: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A regular member: offset of its first header (an extended header may stand before), offset of its own header, its bytes."""

    name: str
    offset: int
    header: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Damage:
    """The end of what can be read in order: the name of the member that was cut, if it is known, and where to look for the next header."""

    name: str
    offset: int
    resume: int
    detail: str


@dataclass(slots=True)
class _Progress:
    """Where a part's reader stands.

    Attributes:
        position: the header to go on with.
        search: `position` need not be a header; go on with the first one from there.
        skip_first: the first sample met belongs to the part before.
    """

    position: int
    search: bool
    skip_first: bool


def read_samples(source: str, size: int, begin: int, end: int) -> Iterator[TarSample | TarDamage]:
    """`iter_samples` of the tar of `size` bytes at a URI. Raises StorageError when it cannot be read on."""
    filesystem, path = Location(source).filesystem()

    def open_at(offset: int) -> BinaryIO:
        stream = filesystem.open_input_file(path).get_stream(offset, size - offset)
        return cast(BinaryIO, pa.BufferedInputStream(stream, BUFFER))  # unbuffered, each header would be a request of its own

    try:
        yield from iter_samples(open_at, size, begin, end)
    except OSError as error:
        raise StorageError(f"reading {source}", seen=" ".join(str(error).split())[:300]) from error


def iter_samples(open_at: OpenAt, size: int, begin: int = 0, end: int | None = None) -> Iterator[TarSample | TarDamage]:
    """The samples that the part [begin, end) of a tar owns, in order, and the damages among them.

    A read error (OSError) re-opens the tar at the first sample not yet given, at most `ATTEMPTS` times without progress.

    Args:
        open_at: opens the tar at a byte offset.
        size: bytes of the tar.
        begin, end: the part; any offsets. None: to the end.

    Raises:
        OSError: reading failed too often.
    """
    begin, end = -(-begin // BLOCK) * BLOCK, size if end is None else -(-end // BLOCK) * BLOCK
    state = _Progress(begin, search=begin > 0, skip_first=begin > 0)
    failures = 0
    if size == 0:
        yield TarDamage(key="", offset=0, detail="the file is empty")
    while state.position < size:
        before = state.position
        try:
            yield from _read_on(open_at, size, end, state)
        except OSError as error:
            failures = 1 if state.position > before else failures + 1
            if hopeless(error) or failures >= ATTEMPTS:
                raise
            pause(failures - 1)


def _read_on(open_at: OpenAt, size: int, end: int, state: _Progress) -> Iterator[TarSample | TarDamage]:
    """Read to the end of the part or to the next damage. `state` is moved before each yield, so that a re-open repeats nothing."""
    if state.search:
        state.position, state.search = _first_header(open_at, state.position, size), False
    group: list[_Member] = []
    with open_at(state.position) as stream:
        for item in _members(stream, state.position, size):
            if group and _stem(item.name) != _stem(group[0].name):
                done, owned = group, not state.skip_first
                group, state.skip_first = [], False
                state.position = size if done[-1].header >= end else item.offset
                if owned:
                    yield _sample(done)
                if isinstance(item, _Damage) and item.offset >= size:  # whoever owns the last sample tells that the tar ends with it
                    state.position = size
                    if owned:
                        yield TarDamage(key="", offset=size, detail=item.detail)
                if state.position == size:
                    return
            if isinstance(item, _Damage):
                offset = group[0].offset if group else item.offset
                state.position, state.search = item.resume, True
                if not state.skip_first:
                    yield TarDamage(key=_key(item.name), offset=offset, detail=item.detail)
                return
            group.append(item)
    state.position = size
    if group and not state.skip_first:
        yield _sample(group)


def _members(stream: BinaryIO, position: int, size: int) -> Iterator[_Member | _Damage]:
    """Regular members from a header boundary to the end of the file or to the first damage, which comes last. Hidden files are left out."""
    name: str | None = None
    begin = start = end = position  # `end`: of the last member
    while position < size:
        header = _read(stream, BLOCK, position, size)
        if not any(header):
            position += len(header)
            name, start = None, position
            if position - end > LONGEST_END:
                yield _Damage(name="", offset=end, resume=position, detail=f"zeros from offset {end} on, more than end a tar")
                return
            continue
        info = _parse_header(header)
        if info is None:
            detail = "the tar ends inside a header" if len(header) < BLOCK else "no valid tar header"
            yield _Damage(name="", offset=start, resume=position + BLOCK, detail=f"{detail} at offset {position}")
            return
        body, own = b"", position
        position += BLOCK
        if info.type not in tarfile.SUPPORTED_TYPES or info.isreg() or info.type in EXTENSIONS:
            if position + info.size > size:
                detail = f"the tar ends inside a member: {size} bytes, at least {position + info.size} needed"
                yield _Damage(name="" if info.type in EXTENSIONS else name or info.name, offset=start, resume=size, detail=detail)
                return
            body = _read(stream, _padded(info.size), position, size)
            position += _padded(info.size)
        if info.type in EXTENSIONS:
            name = _long_name(info.type, body[: info.size]) or name
            continue
        name = name or info.name
        if info.isreg() and not name.rpartition("/")[2].startswith("."):
            yield _Member(name=_readable(name), offset=start, header=own, data=body[: info.size])
        name, start, end = None, position, position
    if begin < end and size <= end:
        yield _Damage(name="", offset=size, resume=size, detail="the tar ends without an end marker: it may have been cut")


def _first_header(open_at: OpenAt, position: int, size: int) -> int:
    """Offset of the first header at or after `position` (a multiple of 512), or of the long name before it; `size` when there is none."""
    at = max(0, position - LOOK_BACK)
    extension = (0, 0)  # offset and end of the last header of a long name
    with open_at(at) as stream:
        while at < size:
            info = _parse_header(_read(stream, BLOCK, at, size))
            if info is not None and at >= position:
                return extension[0] if extension[1] == at else at
            if info is not None and info.type in EXTENSIONS:
                extension = (at, at + BLOCK + _padded(info.size))
            at += BLOCK
    return size


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    """The header that a block holds, or None. The checksum and six numeric fields must be right, which chance does not bring about."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _read(stream: BinaryIO, count: int, position: int, size: int) -> bytes:
    """`count` bytes, fewer only where the file ends. Raises OSError when only this read came short (it will be tried again)."""
    data = stream.read(count)
    expected = min(count, size - position)
    if len(data) < expected:
        raise OSError(f"short read at {position}: {len(data)} of {expected} bytes")
    return data


def _padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


def _long_name(kind: bytes, body: bytes) -> str | None:
    """The member's name in the body of an extended header: GNU's long name, or the ``path`` record of PAX."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return body.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while kind == tarfile.XHDTYPE and (length := body.partition(b" ")[0]).isdigit() and int(length) > len(length):
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        body = body[int(length) :]
    return None


def _readable(name: str) -> str:
    """A name whose bytes are not UTF-8 with those as ``\\xe9``: it becomes a key, and text that cannot be written otherwise."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _key(name: str) -> str:
    return _stem(name).rpartition("/")[2]


def _sample(group: list[_Member]) -> TarSample | TarDamage:
    """The members as a sample; where two have one ending nobody knows which belong together."""
    key, offset = _key(group[0].name), group[0].offset
    files = {member.name.rpartition("/")[2].partition(".")[2].lower(): member.data for member in group}
    if len(files) < len(group):
        names = ", ".join(member.name for member in group)
        return TarDamage(key=key, offset=offset, detail=f"members of one name follow each other: {names[:300]}")
    return TarSample(key=key, offset=offset, files=files)
