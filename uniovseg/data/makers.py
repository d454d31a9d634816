"""What turns the rows of a shard set into training batches: one class for each kind of batch, all of one form, so that the feed asks no questions."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pyarrow as pa

from uniovseg.data import entities, pairs, sample_table, samples, shards
from uniovseg.data.samples import MaskSampleConfig, make_mask_sample, sample_seed
from uniovseg.data.views import ViewConfig
from uniovseg.errors import DataError
from uniovseg.records import Batch, EntityBatch, EntitySample, MaskBatch, MaskSample, PairBatch, PairSample

RecordT = TypeVar("RecordT")
SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT", bound=Batch, covariant=True)


class SampleMaker(Protocol[SampleT, BatchT]):
    """Rows to samples to batches; picklable. `pack` and `unpack` carry samples between processes as Arrow tables."""

    def make(self, table: pa.Table, row: int, epoch: int) -> SampleT:
        """The sample of a stored row, for an epoch. Raises DataError that names the row's key."""

    def collate(self, samples: Sequence[SampleT]) -> BatchT:
        """Samples as a batch."""

    def pack(self, samples: Sequence[SampleT]) -> pa.Table:
        """Samples as a table."""

    def unpack(self, table: pa.Table) -> BatchT:
        """A table of `pack` as a batch."""


def _record(to_record: Callable[[pa.Table, int], RecordT], table: pa.Table, row: int, wanted: str) -> RecordT:
    """A row as a record. Raises DataError where the rows lack a column, which are then of another kind than `wanted`."""
    try:
        return to_record(table, row)
    except KeyError as error:
        raise DataError("the training set holds other records", seen=error.args[0], allowed=wanted, fix="see data.train and data.match") from error


class MaskSampleMaker:
    """Image-mask rows to stage 1's batches.

    Args:
        view, sample: how views are drawn and masks are chosen.
        seed: the run's seed.
    """

    def __init__(self, view: ViewConfig, sample: MaskSampleConfig, seed: int) -> None:
        self.view, self.sample, self.seed = view, sample, seed

    def make(self, table: pa.Table, row: int, epoch: int) -> MaskSample:
        """The sample of a row of `uniovseg.data.shards.SCHEMA`."""
        record = _record(shards.to_record, table, row, "image-mask shards of jobs/ingest.py")
        try:
            return make_mask_sample(record, self.view, self.sample, sample_seed(self.seed, epoch, record.key))
        except DataError as error:
            raise DataError(
                f"sample {record.key}: {error}", fix="ingest it into another folder with verify=decode, which rejects such files"
            ) from error

    def collate(self, made: Sequence[MaskSample]) -> MaskBatch:
        """Samples as a batch."""
        return samples.collate(made)

    def pack(self, made: Sequence[MaskSample]) -> pa.Table:
        """Samples as a table."""
        return sample_table.mask_table(made)

    def unpack(self, table: pa.Table) -> MaskBatch:
        """A table of `pack` as a batch."""
        joined = table.combine_chunks()
        return samples.collate(sample_table.mask_samples(joined), sample_table.images(joined))


class PairSampleMaker:
    """Rows of matched masks and entities to stage 2's batches.

    Args:
        view: how views are drawn.
        seed: the run's seed.
    """

    def __init__(self, view: ViewConfig, seed: int) -> None:
        self.view, self.seed = view, seed

    def make(self, table: pa.Table, row: int, epoch: int) -> PairSample:
        """The sample of a row of `uniovseg.data.pairs.SCHEMA`."""
        record = _record(pairs.to_record, table, row, "pairs of jobs/match.py")
        try:
            return pairs.make_pair_sample(record, self.view, sample_seed(self.seed, epoch, record.key))
        except DataError as error:
            raise DataError(f"sample {record.key}: {error}", fix="match again from readable images") from error

    def collate(self, made: Sequence[PairSample]) -> PairBatch:
        """Samples as a batch."""
        return pairs.collate(made)

    def pack(self, made: Sequence[PairSample]) -> pa.Table:
        """Samples as a table."""
        return sample_table.pair_table(made)

    def unpack(self, table: pa.Table) -> PairBatch:
        """A table of `pack` as a batch."""
        joined = table.combine_chunks()
        return pairs.collate(sample_table.pair_samples(joined), sample_table.images(joined))


class EntitySampleMaker:
    """Rows of images and their entities to batches that online matching turns into stage 2's.

    Args:
        view: how views are drawn.
        seed: the run's seed.
    """

    def __init__(self, view: ViewConfig, seed: int) -> None:
        self.view, self.seed = view, seed

    def make(self, table: pa.Table, row: int, epoch: int) -> EntitySample:
        """The sample of a row of `uniovseg.data.entities.SCHEMA`."""
        record = _record(entities.to_record, table, row, "image-entities shards of jobs/refine.py")
        try:
            return entities.make_entity_sample(record, self.view, sample_seed(self.seed, epoch, record.key))
        except DataError as error:
            raise DataError(f"sample {record.key}: {error}", fix="refine again from readable images") from error

    def collate(self, made: Sequence[EntitySample]) -> EntityBatch:
        """Samples as a batch."""
        return entities.collate(made)

    def pack(self, made: Sequence[EntitySample]) -> pa.Table:
        """Samples as a table."""
        return sample_table.entity_table(made)

    def unpack(self, table: pa.Table) -> EntityBatch:
        """A table of `pack` as a batch."""
        joined = table.combine_chunks()
        return entities.collate(sample_table.entity_samples(joined), sample_table.images(joined))
