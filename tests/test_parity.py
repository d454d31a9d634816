"""The released mask branch, under our loader, gives what the release gave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uniovseg.models.release import release_names

CASES = Path(os.environ.get("UNIOVSEG_PARITY") or Path(__file__).parents[2] / "shared" / "parity")
OUTPUTS = {"memory_0", "memory_2_sample", "mask_features_sample", "point_masks", "point_ious", "box_masks", "box_ious"}


@pytest.mark.skipif(not CASES.is_dir(), reason="no parity cases: set UNIOVSEG_PARITY to the folder that holds case_*.npz")
def test_outputs_of_the_release() -> None:
    cases = sorted(CASES.glob("case_*.npz"))
    assert cases
    for case in cases:
        command = [sys.executable, "-m", "tests.parity", str(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        assert done.stdout.count("\n") == 1
        differences = json.loads(done.stdout)["max_rel_diff"]
        assert set(differences) == OUTPUTS
        assert max(differences.values()) <= 1e-4, differences


@pytest.mark.skipif(not CASES.is_dir(), reason="no parity cases: set UNIOVSEG_PARITY to the folder that holds released_stage1_names.json")
def test_names_and_shapes_of_the_release() -> None:
    assert release_names() == json.loads((CASES / "released_stage1_names.json").read_text())
