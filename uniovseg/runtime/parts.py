"""Work cut into parts, on Ray Data: a part is one read task, which writes its shard and its commit (`uniovseg.runtime.shards`) and gives the commit as its row.

Ray tries a task again whose worker dies. A run that is started again does the parts that are not committed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uniovseg.errors import ConfigError, StorageError, UniOVSegError
from uniovseg.runtime.session import require_shared
from uniovseg.runtime.shards import Commit, PartRange


class Part(Protocol):
    """A share of a source."""

    @property
    def range(self) -> PartRange:
        """What it reads, and its name."""


PartT = TypeVar("PartT", bound=Part)


class PartsSource(Datasource, Generic[PartT]):  # type: ignore[misc]
    """A Ray datasource with one read task a part; a task works its part off and gives one row, its commit."""

    def __init__(self, parts: Sequence[PartT], work: Callable[[PartT], Commit]) -> None:
        super().__init__()
        self._parts, self._work = parts, work

    def estimate_inmemory_data_size(self) -> int:
        """The rows are small: a commit each."""
        return 1024 * len(self._parts)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None) -> list[ReadTask]:
        """One task a part, whatever parallelism is asked for."""
        return [self._read_task(part, self._work) for part in self._parts]

    @staticmethod
    def _read_task(part: PartT, work: Callable[[PartT], Commit]) -> ReadTask:
        def read() -> Iterator[pa.Table]:
            yield pa.table({"commit": [work(part).model_dump_json()]})

        metadata = BlockMetadata(num_rows=1, size_bytes=1024, input_files=[part.range.source], exec_stats=None)
        return ReadTask(read, metadata, schema=pa.schema([("commit", pa.string())]))


def check_commits(commits: dict[str, Commit], parts: Sequence[Part], settings: str) -> None:
    """Refuse an output that was begun with another source or other settings (`settings` names them for the message): ConfigError."""
    planned = {part.range.name: part.range for part in parts}
    for name, commit in commits.items():
        if planned.get(name) != commit.part:
            raise ConfigError(
                f"the output holds parts of another source, or of another {settings}", seen=name,
                fix=f"give another output folder, or the source and {settings} that it was begun with",
            )  # fmt: skip


def run_parts(parts: Sequence[PartT], work: Callable[[PartT], Commit], title: str, total: int, uris: Mapping[str, str]) -> dict[str, Commit]:
    """Do parts on Ray, with a progress bar over all `total` parts; the commits by part name.

    Raises:
        ConfigError: one of the `uris` that `work` reads and writes, by key, is a local path, and the cluster has several nodes.
        StorageError: something could not be read or written.
        UniOVSegError: what `work` raised.
    """
    require_shared(uris)
    commits: dict[str, Commit] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(title, total=total, completed=total - len(parts))
        rows = ray.data.read_datasource(PartsSource(parts, work), override_num_blocks=len(parts))
        try:
            for row in rows.iter_rows():
                commit = Commit.model_validate_json(row["commit"])
                commits[commit.part.name] = commit
                progress.advance(bar)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StorageError):
                raise StorageError("a part could not be done", seen=error.cause, fix="run the same command again to go on") from None
            if isinstance(error.cause, UniOVSegError):
                raise type(error.cause)(str(error.cause)) from None
            raise
    return commits
