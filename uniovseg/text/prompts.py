"""Prompts are files: what a model was asked is known by the file's hash, which caches, commits and manifests carry."""

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from uniovseg.errors import ConfigError

Message = dict[str, Any]
"""One message of the OpenAI chat API."""

SEPARATOR = "\n---\n"
"""Between the system's part of a prompt file and the user's."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: a system's part and a user's part with the slot ``{caption}``.

    Attributes:
        name: of the file, without its ending.
        text: all of the file.
    """

    name: str
    text: str

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that change with any byte of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def messages(self, caption: str, image: bytes | None = None) -> list[Message]:
        """The chat that asks for a caption, with the encoded image as a data URL where one is given."""
        system, _, user = self.text.partition(SEPARATOR)
        text = user.strip().replace("{caption}", " ".join(caption.split()))
        content: str | list[dict[str, Any]] = text
        if image is not None:
            content = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": text}]
        return [{"role": "system", "content": system.strip()}, {"role": "user", "content": content}]


def load_prompt(name: str) -> Prompt:
    """A packaged prompt by name (``caption``, ``entities``), or any file by a path that ends in ``.txt``.

    Raises:
        ConfigError: there is no such prompt, or it lacks the separator or the slot.
    """
    folder = resources.files("uniovseg.text").joinpath("prompts")
    file = Path(name) if name.endswith(".txt") else folder.joinpath(f"{name}.txt")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        packaged = ", ".join(sorted(item.name.removesuffix(".txt") for item in folder.iterdir()))
        raise ConfigError("the prompt cannot be read", seen=name, allowed=f"{packaged}, or the path of a .txt file") from error
    _, separator, user = text.partition(SEPARATOR)
    if not separator or "{caption}" not in user:
        raise ConfigError("not a prompt file", seen=name, allowed="the system's part, a line of ---, the user's part with {caption}")
    return Prompt(name=file.name.removesuffix(".txt"), text=text)


def data_url(image: bytes) -> str:
    """An encoded image (JPEG or PNG) as a ``data:`` URL."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
