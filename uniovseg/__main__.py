"""``python -m uniovseg``: segment an image, look at a shard set, import the released checkpoint."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.inspect import inspect_shards
from uniovseg.errors import ConfigError, UniOVSegError
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.models.clip import CHECKPOINT, ClipConfig
from uniovseg.models.mask_generator import MaskGeneratorConfig
from uniovseg.models.release import read_release
from uniovseg.pictures import draw_masks, save_picture
from uniovseg.segmenter import Segmenter, masks_of, to_array

RELEASE_CLIP = ClipConfig(name="convnext_large_d_320", weights="laion2b_s29b_b131k_ft_soup")


def segment(arguments: argparse.Namespace) -> None:
    """Segment everything, or what points and boxes show; write a picture and the masks."""
    segmenter = Segmenter.load(arguments.checkpoint, arguments.device)
    image = to_array(arguments.image)
    embedded = segmenter.embed(image)
    if arguments.box:
        segments = segmenter.boxes(embedded, [_numbers(text, 4) for text in arguments.box])
    elif arguments.point:
        points = [_numbers(text, 2) for text in arguments.point]
        outside = [_numbers(text, 2) for text in arguments.not_point]
        segments = segmenter.points(embedded, points + outside, [1] * len(points) + [0] * len(outside))
    else:
        segments = segmenter.everything(embedded)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = Path(arguments.image).stem
    save_picture(str(out / f"{stem}.png"), draw_masks(image, masks_of(segments, embedded)))
    found = [{"rle": s.rle, "predicted_iou": round(s.predicted_iou, 4), "box_xyxy": s.box_xyxy, "area": s.area} for s in segments]
    (out / f"{stem}.json").write_text(json.dumps({"checkpoint": arguments.checkpoint, "size": embedded.size, "segments": found}))
    Console().print(f"{len(segments)} masks by {arguments.checkpoint!r}: {out / stem}.png, {out / stem}.json", soft_wrap=True)


def inspect(arguments: argparse.Namespace) -> None:
    """Show what a shard set holds."""
    inspect_shards(arguments.uri, Path(arguments.out), Console(), arguments.samples)


def import_release(arguments: argparse.Namespace) -> None:
    """Turn the released stage1.pth into a checkpoint of ours."""
    released = read_release(arguments.checkpoint)
    clip = ClipConfig(name=RELEASE_CLIP.name, weights=CHECKPOINT) if released.clip else RELEASE_CLIP
    method = MaskGenerationConfig(clip=clip, generator=MaskGeneratorConfig.preset("release"), size=1024)
    info = CheckpointInfo(step=0, method=method.model_dump(mode="json"), source=f"released stage 1: {Path(arguments.checkpoint).name}")
    state = {f"generator.{name}": value for name, value in released.generator.items()}
    if released.clip:
        state |= {f"clip.model.{name}": value for name, value in released.clip.items()}
    checkpoint.save(Path(arguments.out), info, state)
    weights = "its own CLIP weights" if released.clip else f"CLIP weights by name ({RELEASE_CLIP.name}, {RELEASE_CLIP.weights})"
    Console().print(f"imported {len(released.generator)} tensors of the mask branch, with {weights}: {arguments.out}", soft_wrap=True)


def _numbers(text: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ConfigError("a prompt is not of the right form", seen=text, allowed="x,y" if count == 2 else "x0,y0,x1,y1")
    return values


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m uniovseg", description=__doc__)
    commands = root.add_subparsers(required=True)
    command = commands.add_parser("segment", help="segment an image")
    command.add_argument("image")
    command.add_argument("--out", default="runs/segment", help="folder of the picture and the masks")
    command.add_argument("--checkpoint", default="shapes", help="checkpoint folder or URI; default: the packaged model of the shapes world")
    command.add_argument("--point", action="append", default=[], metavar="X,Y", help="a point inside the thing (repeat for more)")
    command.add_argument("--not-point", action="append", default=[], metavar="X,Y", help="a point outside the thing")
    command.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="a box around a thing (repeat for more things)")
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=segment)
    command = commands.add_parser("inspect", help="show what a shard set holds")
    command.add_argument("uri")
    command.add_argument("--out", default="runs/inspect", help="folder of the picture of samples")
    command.add_argument("--samples", type=int, default=6, help="samples drawn")
    command.set_defaults(run=inspect)
    command = commands.add_parser("import-release", help="turn the released stage1.pth into a checkpoint of ours")
    command.add_argument("checkpoint")
    command.add_argument("--out", required=True, help="folder of the new checkpoint")
    command.set_defaults(run=import_release)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 for a wrong call, 1 for another failure."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UniOVSegError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
