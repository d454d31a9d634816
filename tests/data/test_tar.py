"""Reading tars in parts, with errors, against the standard library's reader as oracle."""

import io
import itertools
import random
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

import pytest

from uniovseg.data import tar
from uniovseg.data.tar import TarDamage, TarSample, iter_samples
from uniovseg.storage import ATTEMPTS

Files = dict[str, bytes]


def make_tar(files: Files, kind: int = tarfile.USTAR_FORMAT, folders: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for index, (name, data) in enumerate(files.items()):
            if folders and index % 3 == 0:
                folder = tarfile.TarInfo(f"folder{index}")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if kind == tarfile.PAX_FORMAT else 1  # a fraction needs an extended header
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def some_files(count: int, seed: int, prefix: str = "sa_") -> Files:
    rng = random.Random(seed)
    files: Files = {}
    for index in range(count):
        for ending in ("jpg", "json")[: 1 if rng.random() < 0.1 else 2]:
            files[f"{prefix}{index}.{ending}"] = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000, 9000]))
    return files


def samples_of(files: Files) -> list[tuple[str, Files]]:
    """What must come out, by a plain walk over the names."""
    grouped: dict[str, Files] = {}
    for name, data in files.items():
        stem, _, ending = name.rpartition("/")[2].partition(".")
        grouped.setdefault(stem, {})[ending.lower()] = data
    return list(grouped.items())


def read(data: bytes, begin: int = 0, end: int | None = None) -> list[TarSample | TarDamage]:
    return list(iter_samples(lambda offset: opened(data, offset), len(data), begin, end))


def opened(data: bytes, offset: int) -> BinaryIO:
    stream = io.BytesIO(data)
    stream.seek(offset)
    return stream


def plain(items: Sequence[TarSample | TarDamage]) -> list[tuple[str, Files]]:
    return [(item.key, item.files) for item in items if isinstance(item, TarSample)]


LONG = "a_folder_with_a_long_name/" * 5 + "sa_"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["sa_", "./images/sa_", LONG])
def test_any_cut_gives_every_sample_once(kind: int, prefix: str) -> None:
    files = some_files(24, seed=1, prefix=prefix)
    data = make_tar(files, kind, folders=True)
    expected = samples_of(files)
    assert plain(read(data)) == expected
    rng = random.Random(2)
    for cuts in [range(512, len(data), 512), [700], *(sorted(rng.sample(range(1, len(data)), 5)) for _ in range(30))]:
        borders = [0, *cuts, len(data)]
        parts = [read(data, begin, end) for begin, end in itertools.pairwise(borders)]
        assert plain([item for part in parts for item in part]) == expected


def test_old_tars_without_a_magic_word_are_found_in_every_part() -> None:
    files = some_files(12, seed=3)
    data = bytearray(make_tar(files))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        headers = [member.offset for member in archive]
    for at in headers:  # the V7 layout: no magic, no user names
        data[at + 257 : at + 512] = bytes(255)
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    middle = len(data) // 2
    assert plain([*read(bytes(data), 0, middle), *read(bytes(data), middle)]) == samples_of(files)


def test_offsets_are_those_of_the_first_header() -> None:
    data = make_tar({"a.jpg": b"x" * 600, "a.json": b"{}", "b.jpg": b"y"})
    assert [item.offset for item in read(data)] == [0, 512 + 1024 + 1024]


def test_hidden_files_between_twins_do_not_part_them() -> None:
    data = make_tar({"._a.jpg": b"mac", "a.jpg": b"1", "._a.json": b"mac", "a.json": b"2"})
    assert plain(read(data)) == [("a", {"jpg": b"1", "json": b"2"})]


def test_archives_that_follow_each_other_are_one() -> None:
    first, second = some_files(5, 1, "a"), some_files(5, 2, "b")
    data = make_tar(first) + make_tar(second)
    assert plain([*read(data, 0, 4096), *read(data, 4096)]) == samples_of(first | second)


class Faulty(io.BytesIO):
    """Raises, or gives too little, after a number of bytes."""

    budget = 0

    def read(self, count: int | None = -1, /) -> bytes:
        assert count is not None
        self.budget -= count
        if self.budget < 0:
            if self.budget % 2:
                raise OSError("connection reset")
            return super().read(max(0, count - 1))
        return super().read(count)


@pytest.mark.parametrize("begin", [0, 30_000])
def test_transient_errors_neither_lose_nor_repeat(begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "pause", lambda _: None)
    data = make_tar(some_files(40, seed=4), tarfile.PAX_FORMAT)
    expected = plain(read(data, begin))
    for seed in range(100):
        rng = random.Random(seed)
        left = 6

        def open_at(offset: int, rng: random.Random = rng) -> BinaryIO:
            nonlocal left
            stream = Faulty(data)
            stream.seek(offset)
            stream.budget = rng.randrange(2000, 60_000) if left else 1 << 40
            left = max(0, left - 1)
            return stream

        # errors may come 6 times at one place in a row only when nothing is gained between them
        found = list(iter_samples(open_at, len(data), begin))
        assert plain(found) == expected
        assert not any(isinstance(item, TarDamage) for item in found)


def test_an_error_that_stays_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "pause", lambda _: None)
    tries = 0

    def open_at(offset: int) -> BinaryIO:
        nonlocal tries
        tries += 1
        raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        list(iter_samples(open_at, 10_240))
    assert tries == ATTEMPTS


def every_cut(data: bytes) -> list[list[int]]:
    return [[0, len(data)], [0, *range(512, len(data), 512), len(data)], *([0, cut, len(data)] for cut in range(512, len(data), 512))]


def test_a_broken_header_loses_its_member_only_and_is_told_once() -> None:
    files = {f"s{index}.{ending}": bytes([index]) * 700 for index in range(6) for ending in ("jpg", "json")}
    data = bytearray(make_tar(files))
    member = 3 * 512
    data[4 * member + 100 : 4 * member + 110] = b"\xff" * 10  # the header of s2.jpg
    expected = [(key, found if key != "s2" else {"json": found["json"]}) for key, found in samples_of(files)]
    for borders in every_cut(bytes(data)):
        parts = [read(bytes(data), begin, end) for begin, end in itertools.pairwise(borders)]
        found = [item for part in parts for item in part]
        assert plain(found) == expected
        # A part that begins behind the broken header cannot see it, but the part before does.
        assert [item.offset for item in found if isinstance(item, TarDamage)] == [4 * member]


@pytest.mark.parametrize("left_over", range(1, 24))
def test_a_truncated_tar_keeps_its_whole_samples(left_over: int) -> None:
    files = {f"s{index}.{ending}": bytes([index]) * 700 for index in range(4) for ending in ("jpg", "json")}
    data = make_tar(files)[: 8 * 3 * 512]
    cut = data[: left_over * 512 + 100]
    whole = len(cut) // (3 * 512)  # members
    inside = len(cut) - whole * 3 * 512 >= 512 + 700
    whole += inside
    found = read(cut)
    keys = [item.key for item in found if isinstance(item, TarSample) and len(item.files) == 2]
    assert keys == [f"s{index}" for index in range(whole // 2)]
    damages = [item for item in found if isinstance(item, TarDamage)]
    (hit,) = damages
    header_was_whole = len(cut) - whole * 3 * 512 >= 512
    if header_was_whole:  # the sample is named, and told once: not as one without its twin too
        assert hit.key == f"s{whole // 2}"
        assert all(len(item.files) == 2 for item in found if isinstance(item, TarSample))


TWINS = {f"s{index}.{ending}": bytes([index + 1]) * 700 for index in range(8) for ending in ("jpg", "json")}
SAMPLE = 6 * 512


def damaged_parts(data: bytes) -> list[tuple[list[tuple[str, Files]], list[tuple[str, int]]]]:
    """Whole samples, and keys and offsets of damages, for every way to cut the tar into parts."""
    found = [[item for begin, end in itertools.pairwise(borders) for item in read(data, begin, end)] for borders in every_cut(data)]
    return [(plain(items), [(item.key, item.offset) for item in items if isinstance(item, TarDamage)]) for items in found]


@pytest.mark.parametrize("lost", [range(3, 5), range(6, 8)])
def test_zeros_that_a_copy_has_not_overwritten_are_told_once(lost: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "LONGEST_END", SAMPLE)
    data = bytearray(make_tar(TWINS)[: 8 * SAMPLE] + bytes(1024))
    data[lost.start * SAMPLE : lost.stop * SAMPLE] = bytes(len(lost) * SAMPLE)
    kept = [(key, files) for key, files in samples_of(TWINS) if int(key[1:]) not in lost]
    for samples, damages in damaged_parts(bytes(data)):
        assert samples == kept
        assert damages == [("", lost.start * SAMPLE)]


@pytest.mark.parametrize("samples", [1, 7, 8])
def test_a_tar_that_was_cut_between_members_is_told_once(samples: int) -> None:
    data = make_tar(TWINS)[: samples * SAMPLE]
    for found, damages in damaged_parts(data):
        assert found == samples_of(TWINS)[:samples]
        assert damages == [("", len(data))]
    assert [item.detail for item in read(b"") if isinstance(item, TarDamage)] == ["the file is empty"]
    assert read(data[: 6 * 512] + bytes(512), 3 * 512 + 1) == []


def test_members_of_one_name_in_a_row_are_told() -> None:
    first, second = dict(itertools.islice(TWINS.items(), 4)), {"s1.jpg": b"x", "s1.json": b"{}", "s9.jpg": b"y", "s9.json": b"{}"}
    for samples, damages in damaged_parts(make_tar(first) + make_tar(second)):
        assert samples == samples_of(first)[:1] + samples_of(second)[1:]
        assert damages == [("s1", SAMPLE)]


def test_what_follows_the_first_dot_is_the_ending() -> None:
    data = make_tar({"folder.d/a.seg.PNG": b"1", "folder.d/a.jpg": b"2"})
    assert plain(read(data)) == [("a", {"seg.png": b"1", "jpg": b"2"})]


def test_a_name_that_is_no_utf8_becomes_text_that_can_be_written() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        ((key, _),) = plain(read(make_tar({f"{name}.jpg": b"1", f"{name}.json": b"2"}, kind)))
        assert key == "caf\\xe9" and key.encode()
