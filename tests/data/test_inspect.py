import io
from pathlib import Path

import cv2
import pytest
from rich.console import Console

from tests.data.sa1b_samples import make_record
from uniovseg.data.inspect import inspect_shards
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location


def test_inspect_shows_counts_rejects_and_pictures(tmp_path: Path) -> None:
    output = Location.of(tmp_path / "set")
    rejected = Rejected(key="sa_99", source="x/a.tar", offset=512, reason="bad_json", detail="seen: [b'x']")
    samples: list[tuple[int, ImageMasks | Rejected]] = [(0, make_record(1)), (1, make_record(2)), (2, make_record(3)), (512, rejected)]
    write_manifest(output, [write_part(PartRange(name="a", source="x/a.tar", begin=0, end=1), samples, output, 2)])
    text = io.StringIO()
    inspect_shards(output.uri, tmp_path / "pictures", Console(file=text, width=200), samples=2)
    shown = " ".join(text.getvalue().replace("│", " ").split())
    for expected in ("samples 3", "9 (3.0 a sample)", "2 of 1 to 2 rows", "bad_json", "sa_99", "seen: [b'x']", "drew 2 samples"):
        assert expected in shown
    picture = cv2.imread(str(tmp_path / "pictures/samples.png"))
    assert picture is not None and picture.shape == (384, 768, 3)


def test_inspect_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest"):
        inspect_shards(str(tmp_path), None, Console(file=io.StringIO()))
