"""Ours beside the paper's."""

import io
import statistics

import pytest
from rich.console import Console

from uniovseg.runtime.reproduce.rows import ALSO, in_print, mean_and_std, rows_of, show_missing, show_paper, show_rows


def printed(show: str, *arguments: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    {"rows": show_rows, "missing": show_missing, "paper": show_paper}[show](console, *arguments)  # type: ignore[operator]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_has_the_difference_to_each_version() -> None:
    (row,) = rows_of("1", "Uni-OVSeg", "pc_459", {"miou": 0.2})
    assert (row["v1"], row["v2"]) == (pytest.approx(0.185), pytest.approx(0.195))
    assert (row["minus_v1"], row["minus_v2"]) == (pytest.approx(0.015), pytest.approx(0.005))
    (row,) = rows_of("1", "Uni-OVSeg", "pc_59", {"miou": 0.2})
    assert row["minus_v1"] == pytest.approx(0.2 - 0.509) and row["minus_v2"] is None
    (row,) = rows_of("1", "Uni-OVSeg", "pc_59", {"miou": None}, "no data")
    assert row["v1"] == pytest.approx(0.509) and row["minus_v1"] is None and row["missing"] == "no data"


def test_what_is_printed() -> None:
    rows = [*rows_of("1", "Uni-OVSeg", "pc_459", {"miou": 0.2}), *rows_of("1", "Uni-OVSeg", "pc_59", {"miou": None}, "no data")]
    first, second = (line for line in printed("rows", "title", rows).splitlines() if "miou" in line)
    assert [cell.strip() for cell in first.split("│")[4:9]] == ["20.0", "18.5", "+1.5", "19.5", "+0.5"]
    assert [cell.strip() for cell in second.split("│")[4:7]] == ["missing", "50.9", "-"]
    paper = [line for line in printed("paper", "1", "miou").splitlines() if "GroupViT" in line]
    assert [cell.strip() for cell in paper[0].split("│")[1:9]] == ["GroupViT", "4.3", "4.9", "10.4", "23.4", "52.3", "79.7", "18.5"]


def test_each_reason_is_said_once() -> None:
    said = printed("missing", {"a": f"no [data]{ALSO}no weights", "b": "no weights"})
    assert said == "missing for a: no [data]\nmissing for a, b: no weights\n"


def test_numbers_in_print() -> None:
    assert [in_print(0.1234), in_print(0.1234, signed=True), in_print(0.35, "seconds"), in_print(None)] == ["12.3", "+12.3", "0.35 s", "-"]


def test_mean_and_standard_deviation() -> None:
    values = [0.31, 0.35, 0.29]
    mean, spread = mean_and_std(values)
    assert mean == pytest.approx(statistics.mean(values)) and spread == pytest.approx(statistics.stdev(values))
    assert mean_and_std([0.3, None]) == (0.3, None)
    assert mean_and_std([None]) == (None, None)
