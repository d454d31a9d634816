from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.sa1b_samples import make_record
from uniovseg.data.shards import ShardSet
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.shards import PartRange, read_commits, write_manifest, write_part
from uniovseg.storage import Location

PART = PartRange(name="a-000", source="a.tar", begin=0, end=100)


def samples(count: int, rejects: int = 0) -> list[tuple[int, ImageMasks | Rejected]]:
    bad = [Rejected(key=f"bad{n}", source="a.tar", offset=n, reason=("bad_json", "bad_mask")[n % 2], detail="") for n in range(rejects)]
    return [*((number, make_record(number)) for number in range(count)), *((item.offset, item) for item in bad)]


def test_a_commit_says_what_was_written(tmp_path: Path) -> None:
    output = Location.of(tmp_path)
    commit = write_part(PART, samples(5, 3), output, 2)
    assert read_commits(output) == {"a-000": commit}
    assert commit.shard is not None and commit.shard.rows == (2, 2, 1)
    assert (commit.masks, commit.rejects) == (15, {"bad_json": 2, "bad_mask": 1})
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "shards/a-000.parquet",
        "rejects/a-000.parquet",
        "commits/a-000.json",
    }


def test_a_part_that_fails_is_not_committed_and_a_retry_overwrites(tmp_path: Path) -> None:
    output = Location.of(tmp_path)

    def fails() -> Iterator[tuple[int, ImageMasks | Rejected]]:
        yield from samples(4, 2)
        raise OSError("the node is gone")

    with pytest.raises(OSError, match="gone"):
        write_part(PART, fails(), output, 2)
    assert read_commits(output) == {}
    write_part(PART, samples(5, 3), output, 2)
    commit = write_part(PART, samples(4, 2), output, 2)
    write_manifest(output, [commit])
    shards = ShardSet(output)
    assert [record.key for record in shards.records()] == [f"sa_{number}" for number in range(4)]
    assert shards.rejects().column("key").to_pylist() == ["bad0", "bad1"]


def test_the_manifest_merges_commits_in_the_order_given(tmp_path: Path) -> None:
    output = Location.of(tmp_path)
    parts = [PART.model_copy(update={"name": name, "source": source}) for name, source in (("z", "1.tar"), ("a", "1.tar"), ("m", "2.tar"))]
    commits = [write_part(part, samples(number + 1, number), output, 64) for number, part in enumerate(parts)]
    manifest = write_manifest(output, commits)
    assert [shard.name for shard in manifest.shards] == ["shards/z.parquet", "shards/a.parquet", "shards/m.parquet"]
    assert (manifest.samples, manifest.masks, manifest.sources) == (6, 18, ("1.tar", "2.tar"))
    assert manifest.rejects == {"bad_json": 2, "bad_mask": 1}
    assert ShardSet(output).rejects().column("key").to_pylist() == ["bad0", "bad0", "bad1"]
