"""What a shard set of any kind holds, for a person: its manifest as a table, and a sheet of its first samples with their masks drawn."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uniovseg.data import entities, pairs
from uniovseg.data.images import decode_image
from uniovseg.data.reasons import REASONS
from uniovseg.data.shards import Contents, ShardSet
from uniovseg.errors import DataError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pictures import Picture, draw_masks, save_picture, tile
from uniovseg.records import ImageEntities, ImageMasks, ImagePairs


def inspect_shards(uri: str, out: Path | None, console: Console, samples: int = 8, rejects: int = 10) -> None:
    """Print a shard set's manifest, sizes and rejects; draw its first samples: masks, masks with the entities they are paired with, or captioned images.

    Args:
        uri: the shard set.
        out: folder of the picture ``samples.png``; None draws nothing.
        console: where to print.
        samples: how many samples are drawn; with 0 there is no picture.
        rejects: how many rejected samples are listed.

    Raises:
        DataError: there is no shard set at `uri`.
    """
    shards = ShardSet(uri)
    console.print(escape(shards.location.uri), soft_wrap=True)
    console.print(_summary(shards))
    if shards.manifest.rejects:
        console.print(_reasons(shards))
        console.print(_rejected(shards, rejects))
    if out is not None and samples:
        columns = shards.read_group(0).column_names if shards.groups else []
        if "caption" in columns:
            found = list(shards.read(entities.to_record, samples))
            console.print(_captions(found))
            pictures = [decode_image(record.image) for record in found]
        elif "pair_costs" in columns:
            pictures = pictures_of_pairs(uri, samples)
        else:
            pictures = [_picture(record) for record in shards.records(samples)]
        if pictures:
            out.mkdir(parents=True, exist_ok=True)
            save_picture(str(out / "samples.png"), tile(pictures, columns=min(4, len(pictures)), side=384))
            console.print(f"drew {len(pictures)} samples: {out / 'samples.png'}", soft_wrap=True)


def _summary(shards: ShardSet) -> Table:
    manifest = shards.manifest
    groups = [rows for shard in manifest.shards for rows in shard.rows]
    size = sum(shard.bytes for shard in manifest.shards)
    table = Table("", "", show_header=False)
    table.add_row("layout version", str(manifest.format))
    table.add_row("samples", str(manifest.samples))
    for name in Contents.model_fields:
        if count := getattr(manifest, name):
            table.add_row(name, f"{count} ({count / max(manifest.samples, 1):.1f} a sample)")
    table.add_row("shards", f"{len(manifest.shards)}, {size / 1e6:.1f} MB ({size / max(manifest.samples, 1) / 1e3:.1f} kB a sample)")
    table.add_row("row groups", f"{len(groups)} of {min(groups)} to {max(groups)} rows" if groups else "0")
    table.add_row(
        "sources", "\n".join(map(escape, manifest.sources[:5])) + (f"\nand {len(manifest.sources) - 5} more" if len(manifest.sources) > 5 else "")
    )
    table.add_row("rejected", str(sum(manifest.rejects.values())))
    return table


def _reasons(shards: ShardSet) -> Table:
    table = Table("reason", "samples", "meaning", title="rejected samples")
    for reason, count in shards.manifest.rejects.items():
        table.add_row(reason, str(count), REASONS.get(reason, ""))
    return table


def _rejected(shards: ShardSet, limit: int) -> Table:
    found = shards.rejects()
    table = Table("key", "reason", "offset", "source", "detail", title=f"the first {min(limit, len(found))} of {len(found)}")
    for row in found.slice(0, limit).to_pylist():
        cells = (row["key"], row["reason"], row["offset"], row["source"].rpartition("/")[2], row["detail"])
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _picture(record: ImageMasks) -> Picture:
    masks = RunLengthMasks.from_counts(record.counts, (record.height, record.width))
    try:
        image = decode_image(record.image)
    except DataError as error:
        raise DataError(f"sample {record.key}: {error}", fix="ingest with verify=decode rejects such images") from error
    return draw_masks(image, masks)


def _captions(records: Sequence[ImageEntities]) -> Table:
    table = Table("key", "caption", "entities", title="the first samples")
    for record in records:
        table.add_row(escape(record.key), escape(record.caption), escape(", ".join(record.entities)))
    return table


def pictures_of_pairs(uri: str, count: int) -> list[Picture]:
    """The first `count` images of a set of pairs, each mask drawn with its entity and cost. Raises DataError when there is none."""
    pictures = [_paired_picture(record) for record in ShardSet(uri).read(pairs.to_record, count)]
    if not pictures:
        raise DataError("the set has no pairs", seen=f"the first {count} images of {uri}", fix="the manifest beside them says what was rejected")
    return pictures


def _paired_picture(record: ImagePairs) -> Picture:
    masks = RunLengthMasks.from_counts([record.counts[mask] for mask, _ in record.pairs], (record.height, record.width))
    labels = [f"{record.entities[entity]} {cost:.2f}" for (_, entity), cost in zip(record.pairs, record.pair_costs, strict=True)]
    return draw_masks(decode_image(record.image), masks, labels)
