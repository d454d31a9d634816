"""``python -m uniovseg``: segment an image, look at a shard set, import the released checkpoint, examine a training before it is launched."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import CommandLine, load, validate
from uniovseg.data.inspect import inspect_shards
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, UniOVSegError, tell
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.models import release
from uniovseg.models.clip import CHECKPOINT, ClipConfig
from uniovseg.models.mask_generator import MaskGeneratorConfig
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.pictures import Picture, draw_masks, save_picture
from uniovseg.records import Vocabulary
from uniovseg.segmenter import Segmenter, to_array
from uniovseg.segments import Region, Segment, Task, encode_map, masks_of
from uniovseg.storage import local_folder


def segment(arguments: argparse.Namespace) -> None:
    """Segment an image by words, by points or boxes (named, where there are words too), or everything; write a picture, the masks, and a map if any."""
    prompted = bool(arguments.point or arguments.not_point or arguments.box)
    if arguments.box and (arguments.point or arguments.not_point):
        raise ConfigError("--box does not go with points", seen="both", allowed="boxes, or points", fix="run it once for each")
    if arguments.not_point and not arguments.point:
        raise ConfigError("--not-point says what a mask leaves out", seen="no --point", fix="add --point X,Y inside of it")
    if arguments.task and (prompted or not arguments.words):
        raise ConfigError("--task is for a whole image by words", seen="points or boxes" if prompted else "no words", fix='try --words "cat, grass"')
    target = local_folder(arguments.out) / Path(arguments.image).stem
    segmenter = Segmenter.load(arguments.checkpoint, arguments.device)
    vocabulary = load_vocabulary(arguments.words) if arguments.words else None
    config = validate(SegmentationConfig, {"unknown_below": arguments.unknown_below})
    image = to_array(arguments.image)
    found: Sequence[Segment | Region]
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [f"{target}_masks.png", f"{target}_masks.json"]  # never the image itself
    if vocabulary is None or prompted:
        found = _prompted(segmenter, image, arguments, vocabulary, config)
    else:
        whole = segmenter.segment(image, vocabulary, arguments.task or "panoptic", config)
        found = whole.regions
        if whole.ids is not None:
            files.append(f"{target}_{whole.task}.png")
            Path(files[-1]).write_bytes(encode_map(whole))
    labels = [_label(item) for item in found] if vocabulary else None
    save_picture(files[0], draw_masks(image, masks_of(found, image.shape[:2]), labels))
    rows = [_row(item) for item in found]
    Path(files[1]).write_text(json.dumps({"checkpoint": arguments.checkpoint, "size": image.shape[:2], "segments": rows}))
    model = (
        "shapes, the packaged model of the shapes world (--checkpoint names another)" if arguments.checkpoint == "shapes" else arguments.checkpoint
    )
    Console().print(f"{len(found)} masks by {model}: {', '.join(files)}", soft_wrap=True)


def _prompted(
    segmenter: Segmenter, image: Picture, arguments: argparse.Namespace, vocabulary: Vocabulary | None, config: SegmentationConfig
) -> list[Segment]:
    if arguments.box:
        return segmenter.boxes(image, [_numbers(text, 4) for text in arguments.box], vocabulary, config)
    if arguments.point:
        points = [_numbers(text, 2) for text in arguments.point]
        outside = [_numbers(text, 2) for text in arguments.not_point]
        return segmenter.points(image, points + outside, [1] * len(points) + [0] * len(outside), vocabulary, config)
    return segmenter.everything(image)


def _label(item: Segment | Region) -> str:
    return " ".join([item.word or "unknown", *([] if item.score is None else [f"{item.score:.2f}"])])


def _row(item: Segment | Region) -> dict[str, Any]:
    """What the JSON file says of a mask."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(item).items() if value is not None}


def inspect(arguments: argparse.Namespace) -> None:
    """Show what a shard set holds."""
    inspect_shards(arguments.uri, local_folder(arguments.out), Console(), arguments.samples)


def import_release(arguments: argparse.Namespace) -> None:
    """Turn the released stage1.pth into a checkpoint of ours."""
    folder = local_folder(arguments.out)
    released = release.read_release(arguments.checkpoint)
    named = release.RELEASE_CLIP
    clip = ClipConfig(name=named.name, weights=CHECKPOINT) if released.clip else named
    method = MaskGenerationConfig(clip=clip, generator=MaskGeneratorConfig.preset("release"), size=1024)
    info = CheckpointInfo(step=0, method=method.model_dump(mode="json"), source=f"released stage 1: {Path(arguments.checkpoint).name}")
    state = {f"generator.{name}": value for name, value in released.generator.items()}
    if released.clip:
        state |= {f"clip.model.{name}": value for name, value in released.clip.items()}
    checkpoint.save(folder, info, state)
    weights = "its own CLIP weights" if released.clip else f"CLIP weights by name ({named.name}, {named.weights})"
    Console().print(f"imported {len(released.generator)} tensors of the mask branch, with {weights}: {arguments.out}", soft_wrap=True)


def doctor(arguments: argparse.Namespace) -> int:
    """Examine what a training run will need, on the cluster of RAY_ADDRESS or else on this machine; 1 when something is wrong."""
    from uniovseg.runtime.doctor import examine, findings_table
    from uniovseg.runtime.train import TrainJobConfig, with_absolute_paths

    findings = examine(with_absolute_paths(load(TrainJobConfig, arguments.config, arguments.overrides)))
    Console().print(findings_table(findings))
    return 0 if all(finding.well for finding in findings) else 1


def _numbers(text: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ConfigError("a prompt is not of the right form", seen=text, allowed="x,y" if count == 2 else "x0,y0,x1,y1")
    return values


def parser() -> CommandLine:
    """The command line."""
    root = CommandLine(prog="python -m uniovseg", description=__doc__)
    commands = root.add_subparsers(required=True)
    command = commands.add_parser("segment", help="segment an image")
    command.add_argument("image")
    command.add_argument("--out", default="runs/segment", help="folder of the picture and the masks")
    command.add_argument("--checkpoint", default="shapes", help="checkpoint folder or URI; default: the packaged model of the shapes world")
    command.add_argument("--point", action="append", default=[], metavar="X,Y", help="a point inside the thing (repeat for more)")
    command.add_argument("--not-point", action="append", default=[], metavar="X,Y", help="a point outside the thing")
    command.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="a box around a thing (repeat for more things)")
    command.add_argument(
        "--words", metavar="WORDS", help="what to look for: 'cat, wooden table, grass', a vocabulary's name, or a .json or .txt file"
    )
    command.add_argument("--task", choices=get_args(Task), help="how words are looked for in the whole image; default: panoptic")
    command.add_argument("--unknown-below", type=float, default=0.0, metavar="SCORE", help="masks of which no word scores so much have no word")
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
    command = commands.add_parser("doctor", help="examine what a training run will need, before it is launched")
    command.add_argument("--config", required=True, help="YAML file, as for jobs/train.py")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.set_defaults(run=doctor)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 for a wrong call, 1 for another failure, or when doctor finds something wrong."""
    try:
        arguments = parser().parse_args(argv)
        code: int | None = arguments.run(arguments)
    except UniOVSegError as error:
        return tell(error)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
