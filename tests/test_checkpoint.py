"""Checkpoints: what is written is what is read, and what does not fit is refused by name."""

import errno
import shutil
from pathlib import Path
from typing import IO

import pytest
import torch
from torch import nn

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.errors import CheckpointError, StorageError

INFO = CheckpointInfo(step=7, method={"name": "mask_generation", "size": 64}, config={"seed": 3}, metrics={"val_box_iou": 0.25})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def stepped(module: nn.Module, steps: int) -> torch.optim.AdamW:
    """The module's AdamW after some steps on fixed data."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    take_steps(module, optimizer, steps)
    return optimizer


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.linspace(-1, 1, 12).view(4, 3)).square().sum().backward()
        optimizer.step()


def names_of(module: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in module.named_parameters()}


def test_round_trip(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)}  # a is not contiguous
    checkpoint.save(tmp_path / "deep" / "folder", INFO, state)
    assert checkpoint.read_info(tmp_path / "deep" / "folder") == INFO
    read = checkpoint.read_weights(tmp_path / "deep" / "folder")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) and read[name].dtype == state[name].dtype for name in state)
    assert not (tmp_path / "deep" / "folder" / checkpoint.OPTIMIZER).exists()


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, INFO, {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.read_info(tmp_path)


def test_a_manifest_that_breaks_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: IO[bytes], target: IO[bytes], length: int) -> None:
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(StorageError, match="No space left"):
        checkpoint.save(tmp_path, INFO, {"a": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.MODEL]


@pytest.mark.parametrize("text", ["{", "[]", '{"step": -1, "method": {}}', '{"step": 1}', '{"step": 1, "method": {}, "format": 1, "new": 2}'])
def test_a_manifest_that_cannot_be_understood(tmp_path: Path, text: str) -> None:
    (tmp_path / checkpoint.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="manifest cannot be read") as raised:
        checkpoint.read_info(tmp_path)
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.read_weights(tmp_path)
    (tmp_path / checkpoint.MODEL).write_bytes(b"no tensors here at all")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.read_weights(tmp_path)


def test_load_weights_names_what_does_not_fit() -> None:
    module = network()
    full = {name: value + 1 for name, value in module.state_dict().items()}
    expected = set(full)
    with pytest.raises(CheckpointError, match=r"1 missing \['0.bias'\], 1 left over \['9.bias'\]"):
        checkpoint.load_weights(module, {name.replace("0.bias", "9.bias"): value for name, value in full.items()}, expected)
    with pytest.raises(CheckpointError, match=r"2.weight has another shape.*\(4, 1\).*\(1, 4\)"):
        checkpoint.load_weights(module, full | {"2.weight": torch.zeros(4, 1)}, expected)
    assert not torch.equal(module.state_dict()["0.bias"], full["0.bias"])  # a refused state leaves the module as it was
    checkpoint.load_weights(module, full, expected)
    assert all(torch.equal(value, full[name]) for name, value in module.state_dict().items())


def test_load_weights_of_a_part() -> None:
    module = network()
    before = module.state_dict()["1.weight"].clone()
    checkpoint.load_weights(module, {"0.bias": torch.full((4,), 5.0)}, {"0.bias"})
    assert torch.equal(module.state_dict()["0.bias"], torch.full((4,), 5.0))
    assert torch.equal(module.state_dict()["1.weight"], before)


def test_the_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    whole = network()
    stepped(whole, 5)

    first = network()
    optimizer = stepped(first, 3)
    checkpoint.save(tmp_path, INFO, first.state_dict(), checkpoint.optimizer_tensors(optimizer, names_of(first)))

    second = network()
    checkpoint.load_weights(second, checkpoint.read_weights(tmp_path), set(second.state_dict()))
    resumed = torch.optim.AdamW(second.parameters(), lr=0.1)
    checkpoint.restore_optimizer(resumed, names_of(second), tmp_path)
    take_steps(second, resumed, 2)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    module = network()
    flat = checkpoint.optimizer_tensors(stepped(module, 1), names_of(module))
    assert {key.partition("/")[0] for key in flat} == {"step", "exp_avg", "exp_avg_sq"}
    checkpoint.save(tmp_path, INFO, {}, {"exp_avg/other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="does not fit the model; seen: other"):
        checkpoint.restore_optimizer(torch.optim.AdamW(module.parameters()), names_of(module), tmp_path)


def test_opened_gives_a_local_folder_as_it_is(tmp_path: Path) -> None:
    with checkpoint.opened(tmp_path) as folder:
        assert folder == tmp_path
    with checkpoint.opened("shapes") as folder:
        assert folder.parts[-2:] == ("weights", "shapes")
