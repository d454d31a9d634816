"""The data sets of promptable evaluation (method: section 5): COCO instances JSON with the images beside, wherever the masks come from.

COCO, ADE20K and SegInW have such files as released. The others are label maps, which ``jobs/prepare.py label_maps`` converts, or JSON of other kinds;
they are read from ``promptable/NAME`` once their masks are there in this form.
"""

from dataclasses import dataclass

from uniovseg import storage
from uniovseg.config import nearest
from uniovseg.errors import ConfigError, DataError
from uniovseg.storage import Location


@dataclass(frozen=True, slots=True)
class PromptableSet:
    """Where a set lies below the root: its JSON and its folder of images; ``prepare`` says how it gets there."""

    annotations: str
    images: str
    prepare: str


def _converted(name: str, source: str) -> PromptableSet:
    return PromptableSet(
        f"promptable/{name}/instances.json",
        f"promptable/{name}/images",
        f"get {source}, and write its masks as a COCO instances JSON (polygons or RLE); where they are label maps, a value a mask, put them into "
        f"promptable/{name}/labels and run: python jobs/prepare.py label_maps --root ROOT/promptable/{name}",
    )


SEGINW = (
    "Airplane-Parts",
    "Bottles",
    "Brain-Tumor",
    "Chicken",
    "Cows",
    "Electric-Shaver",
    "Elephants",
    "Fruits",
    "Garbage",
    "Ginger-Garlic",
    "Hand",
    "Hand-Metal",
    "House-Parts",
    "HouseHold-Items",
    "Nutterfly-Squireel",
    "Phones",
    "Poles",
    "Puppies",
    "Rail",
    "Salmon-Fillet",
    "Strawberry",
    "Tablets",
    "Toolkits",
    "Trash",
    "Watermelon",
)  # fmt: skip
"""The 25 sets of SegInW, spelt as on disk."""

PROMPTABLE_SETS: dict[str, PromptableSet] = {
    "coco_instances": PromptableSet(
        "coco/annotations/instances_val2017.json", "coco/val2017", "get val2017.zip and annotations_trainval2017.zip (cocodataset.org)"
    ),
    "ade20k_instances": PromptableSet(
        "ADEChallengeData2016/ade20k_instance_val.json",
        "ADEChallengeData2016/images/validation",
        "get ADEChallengeData2016.zip and annotations_instance.tar, then Mask2Former's datasets/prepare_ade20k_ins_seg.py",
    ),
    "egohos": _converted("egohos", "EgoHOS"),
    "timberseg": _converted("timberseg", "TimberSeg 1.0"),
    "streets": _converted("streets", "STREETS"),
    **{f"ishape_{part}": _converted(f"ishape_{part}", f"iShape ({part})") for part in ("antenna", "branch", "fence", "hanger", "log", "wire")},
    "ndispark": _converted("ndispark", "NDISPark"),
    "woodscape": _converted("woodscape", "WoodScape"),
    "pidray": _converted("pidray", "PIDray"),
    "trashcan": _converted("trashcan", "TrashCan"),
    "ndd20": _converted("ndd20", "NDD20"),
    "plittersdorf": _converted("plittersdorf", "Plittersdorf"),
    **{
        f"seginw_{name}": PromptableSet(
            f"seginw/{name}/valid/_annotations_min1cat.coco.json",
            f"seginw/{name}/valid",
            "get seginw.zip (Segmentation in the Wild), unpacked to seginw",
        )
        for name in SEGINW
    },
}


def find_promptable_set(name: str, root: str) -> tuple[str, str]:
    """URIs of a set's JSON and of its folder of images.

    Raises:
        ConfigError: there is no set of this name.
        DataError: it is not there; the message has the expected layout and how to prepare it.
    """
    if name not in PROMPTABLE_SETS:
        raise ConfigError("no such promptable set", seen=name, allowed=f"{', '.join(PROMPTABLE_SETS)}{nearest(name, PROMPTABLE_SETS)}")
    wanted, place = PROMPTABLE_SETS[name], Location.of(root)
    annotations = place / wanted.annotations
    if not storage.exists(annotations):
        raise DataError(f"{name} is not here", seen=place.uri, allowed=f"below it {wanted.annotations} and {wanted.images}/", fix=wanted.prepare)
    return annotations.uri, (place / wanted.images).uri
