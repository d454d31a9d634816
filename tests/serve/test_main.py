"""``python -m serve`` says in one line what it cannot start with, before Ray is started."""

from pathlib import Path

import pytest

from serve import __main__ as command


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["checkpoint={folder}/none"], 1, "none"),
        (["checkpoint={folder}"], 1, "{folder}"),
        (["checkpoint=shapes", "changes.colour=red"], 2, "colour"),
        (["checkpoint=shapes", "changes.clip.name=none"], 2, "none"),
        (["checkpoint=shapes", "keys_file={folder}/keys"], 2, "keys"),
        (["port=-1"], 2, "port"),
        (["checkpoint=shapes", "port=1"], 0, ""),
    ],
)
def test_what_cannot_start(
    arguments: list[str], code: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []
    monkeypatch.setattr(command, "run", lambda config: started.append(config.port))
    monkeypatch.setattr("sys.argv", ["serve", *(argument.format(folder=tmp_path) for argument in arguments)])
    assert command.main() == code
    error = capsys.readouterr().err
    assert started == ([] if code else [1])
    assert error == "" if code == 0 else error.startswith("error: ") and error.count("\n") == 1 and what.format(folder=tmp_path) in error
