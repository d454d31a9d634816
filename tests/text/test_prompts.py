import base64
from pathlib import Path

import pytest

from uniovseg.errors import ConfigError
from uniovseg.text.prompts import data_url, load_prompt

PNG, JPEG = b"\x89PNG\r\n\x1a\n....", b"\xff\xd8\xff...."


@pytest.mark.parametrize("name", ["caption", "entities"])
def test_packaged_prompts_ask_for_their_json_key(name: str) -> None:
    prompt = load_prompt(name)
    system, user = prompt.messages("a {red} dog\n on grass")
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Caption: a {red} dog on grass\n" in user["content"]
    assert "{caption}" not in user["content"] and f'{{"{name if name == "entities" else "caption"}":' in user["content"]


def test_the_image_stands_before_the_text_as_a_data_url() -> None:
    user = load_prompt("caption").messages("a dog", JPEG)[1]
    image, text = user["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert (kind, base64.b64decode(data), text["type"]) == ("data:image/jpeg;base64", JPEG, "text")
    assert data_url(PNG).startswith("data:image/png;base64,")


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("be brief\n---\nlist: {caption}")
    first = load_prompt(str(path))
    path.write_text("be Brief\n---\nlist: {caption}")
    second = load_prompt(str(path))
    assert first.name == second.name == "mine"
    assert len(first.hash) == 12 and first.hash != second.hash


def test_a_prompt_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="caption, entities"):
        load_prompt("no_such")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompt(str(tmp_path / "none.txt"))
    for text in ("no separator {caption}", "system\n---\nno slot"):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ConfigError, match="not a prompt file"):
            load_prompt(str(tmp_path / "bad.txt"))
