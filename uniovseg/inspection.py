"""``python -m uniovseg inspect URI``: what a shard set holds, as a table, and a few of its samples, as a picture."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from uniovseg.data.shards import ShardSet
from uniovseg.evaluation import labelled
from uniovseg.pictures import draw_masks, save_picture, tile


def inspect(uri: str, out: Path, samples: int) -> None:
    """Print the manifest of the shard set at `uri`: counts, sizes, rejects by reason with the first of each; draw the first `samples` into `out`."""
    shards = ShardSet(uri)
    manifest = shards.manifest
    console = Console()
    table = Table(title=f"shard set {uri} (format {manifest.format})", show_header=False)
    table.add_row("samples", f"{manifest.samples:,}")
    table.add_row("masks", f"{manifest.masks:,} ({manifest.masks / max(manifest.samples, 1):.1f} a sample)")
    table.add_row(
        "shards", f"{len(manifest.shards):,}, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB, {len(shards.groups):,} row groups"
    )
    table.add_row("sources", f"{len(manifest.sources):,}: {', '.join(manifest.sources[:2])}{', ...' if len(manifest.sources) > 2 else ''}")
    table.add_row("rejected", f"{sum(manifest.rejects.values()):,}")
    console.print(table)
    if manifest.rejects:
        rejects = shards.rejects().to_pylist()
        table = Table("reason", "samples", "first: key, offset, detail", title="rejected samples")
        for reason, count in manifest.rejects.items():
            first = next(item for item in rejects if item["reason"] == reason)
            table.add_row(reason, f"{count:,}", f"{first['key']}, {first['offset']}, {first['detail']}")
        console.print(table)
    pictures = []
    for sample in labelled(shards.records(samples)):
        pictures += [sample.image, draw_masks(sample.image, sample.masks)]
    if pictures:
        out.mkdir(parents=True, exist_ok=True)
        save_picture(str(out / "samples.png"), tile(pictures, columns=min(4, len(pictures)), side=320))
        console.print(f"samples and their masks: {out / 'samples.png'}", soft_wrap=True)
