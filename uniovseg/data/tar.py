"""Samples of a tar archive, by byte offset: any part of a large tar can be read alone, and reading goes on after an error without losing or repeating.

A sample is a run of members with one name up to the ending (``sa_1.jpg``, ``sa_1.json``). A *part* [begin, end) of a tar owns every sample but the
first that it meets from `begin` on, up to and with the one that holds the first header at or after `end`; the first part owns its first sample too.
Neighbouring parts agree on that header, so every sample belongs to exactly one part, wherever the borders fall.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from uniovseg.errors import DataError
from uniovseg.storage import ATTEMPTS, pause

BLOCK = 512

OpenAt = Callable[[int], BinaryIO]
"""Opens the tar for reading from a byte offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSample:
    """Members of one sample: ``files`` by ending (lower case), ``offset`` of its first header, ``end`` of its last member."""

    key: str
    offset: int
    end: int
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Member:
    """A regular member: its first header's offset (an extended header may stand before), its own header's, its end, its bytes."""

    name: str
    offset: int
    header: int
    end: int
    data: bytes


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK or block[257:262] != b"ustar":
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # checks the checksum
    except tarfile.HeaderError:
        return False
    return True


def _read_exactly(stream: BinaryIO, count: int, position: int, size: int) -> bytes:
    """`count` bytes, or DataError when the archive itself ends before; OSError when only this read came short (it will be tried again)."""
    data = stream.read(count)
    if len(data) == count:
        return data
    if position + count > size:
        raise DataError("the tar ends inside a member", seen=f"{size} bytes", allowed=f"at least {position + count}")
    raise OSError(f"short read at {position}: {len(data)} of {count} bytes")


def _members(stream: BinaryIO, position: int, size: int) -> Iterator[_Member]:
    """Regular members from a header boundary on, until the end marker or the end of the file."""
    extension: str | None = None
    start = position
    while position + BLOCK <= size:
        header = _read_exactly(stream, BLOCK, position, size)
        if header.count(0) == BLOCK:
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError("the tar has no valid header here", seen=f"offset {position}") from error
        padded = -(-info.size // BLOCK) * BLOCK
        body = _read_exactly(stream, padded if position + BLOCK + padded <= size else info.size, position + BLOCK, size)[: info.size]
        position += BLOCK + padded
        if info.type == tarfile.GNUTYPE_LONGNAME:
            extension = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            extension = _pax_path(body)
        elif info.isreg():
            yield _Member(extension or info.name, start, position - BLOCK - padded, position, body)
            extension, start = None, position
        else:
            extension, start = None, position


def _pax_path(body: bytes) -> str | None:
    """The ``path`` record of a PAX extended header, if it has one."""
    while body:
        length, _, _ = body.partition(b" ")
        record = body[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        body = body[int(length) :]
    return None


def _first_header(stream: BinaryIO, position: int, size: int) -> int:
    """Offset of the first header at or after `position` (a multiple of 512); `size` when there is none."""
    while position + BLOCK <= size:
        if _is_header(_read_exactly(stream, BLOCK, position, size)):
            return position
        position += BLOCK
    return size


def iter_samples(open_at: OpenAt, size: int, begin: int = 0, end: int | None = None) -> Iterator[TarSample]:
    """The samples that the part [begin, end) of a tar owns.

    A read error (OSError) re-opens the tar at the first sample not yet given, at most `ATTEMPTS` times without progress.

    Args:
        open_at: opens the tar at a byte offset.
        size: bytes of the tar.
        begin, end: the part; any offsets. None: to the end.

    Raises:
        DataError: the archive is damaged; everything before the damage has been given.
        OSError: reading failed too often.
    """
    begin, end = -(-begin // BLOCK) * BLOCK, size if end is None else -(-end // BLOCK) * BLOCK
    state = _Progress(begin, begin > 0)
    failures = 0
    while True:
        before = state.position
        try:
            yield from _read_part(open_at, size, end, state)
            return
        except OSError:
            failures = 1 if state.position > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            pause(failures)


@dataclass(slots=True)
class _Progress:
    """Where a part's reader stands: the header to go on with, and whether the first sample met there is another part's."""

    position: int
    skip_first: bool


def _read_part(open_at: OpenAt, size: int, end: int, state: _Progress) -> Iterator[TarSample]:
    if state.skip_first:
        with open_at(state.position) as stream:
            state.position = _first_header(stream, state.position, size)
    if state.position >= size:
        return
    group: list[_Member] = []
    with open_at(state.position) as stream:
        try:
            for member in _members(stream, state.position, size):
                if group and _stem(member.name) != _stem(group[0].name):
                    done, skipped = group, state.skip_first
                    group, state.skip_first, state.position = [], False, member.offset
                    if not skipped:
                        yield _sample(done)
                    if done[-1].header >= end:
                        return
                group.append(member)
        except DataError:
            if group and not state.skip_first:
                yield _sample(group)
            raise
    if group and not state.skip_first:
        yield _sample(group)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample(group: list[_Member]) -> TarSample:
    files = {member.name.rpartition(".")[2].lower(): member.data for member in group}
    return TarSample(key=_stem(group[0].name).rpartition("/")[2], offset=group[0].offset, end=group[-1].end, files=files)
