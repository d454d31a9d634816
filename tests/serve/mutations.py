"""Requests that somebody hostile, careless or unlucky might send: whole ones of every route, changed at random."""

import base64
import copy
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from uniovseg.api import REQUEST_HEADER


@dataclass(frozen=True, slots=True)
class Sent:
    """One HTTP request, and what was done to it."""

    what: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


WORDS = [
    "cat", "cat\u200b", "\u202egod", "chat\u0301", "犬", "🐈\u200d⬛", "\x00", "\ud800", "a" * 10_000, "", " ", "{}", "{0.__class__}", "%s%n", "<b>",
    "' OR 1=1", "../../etc/passwd",
]  # fmt: skip

IDS = [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "file:///etc/passwd", "ade20k/../../x", "a\x00b", "con", ".", "..", "~", "$HOME",
    "C:\\windows", "s3://bucket/x", "http://127.0.0.1/", "a" * 5000, "", "\u2025/\u2025", "models:/x/1", "shapes\n",
]  # fmt: skip

MEDIA = ["", "text/html", "image/gif", "multipart/form-data", "application/json; charset=utf-16", "a" * 500, "application/x-www-form-urlencoded"]

PATHS = [
    "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fserve/api.py", "v1/../v1/models", "v1//segment", "%00", "docs/../../x", "v1/images/" + "a" * 3000, "\\..\\x",
    "static/%2e%2e/%2e%2e/pyproject.toml", ".git/config", "serve/settings.py",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), "", "1", "NaN", "null",
    [], {}, [[]], [None], [[0, 0]], {"a": 1}, {"name": "cat"}, "a" * 3000, [1] * 3000, ["cat"] * 3000, [[1, 1]] * 5000,
]  # fmt: skip


def nested(depth: int, opening: str) -> str:
    """JSON that goes `depth` levels down."""
    return opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * depth


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header names a size; its pixels are `data`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def hostile_files(picture: Image.Image) -> list[bytes]:
    """Files that are no image, or one that asks for more than it seems."""
    files = [
        b"", b"\xff\xd8\xff", b"GIF89a" + bytes(50), b"BM" + bytes(60), b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\xff\xff\xff\xffWEBP",
        png_of(60_000, 60_000), png_of(2**31 - 1, 2**31 - 1), png_of(0, 5), png_of(5, 5), png_of(5000, 30), png_of(400, 400, bytes(10_000_000)),
    ]  # fmt: skip
    for form, options in (("GIF", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"progressive": True})):
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        files.append(buffer.getvalue())
    for mode in ("L", "LA", "RGBA", "P", "1", "I;16", "CMYK"):
        buffer = io.BytesIO()
        (Image.new("I;16", picture.size) if mode == "I;16" else picture.convert(mode)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        files.append(buffer.getvalue())
    jpeg = bytearray(files[-1])
    start = jpeg.find(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 600, 320)
    return [*files, bytes(jpeg)]


class Mutations:
    """Random requests.

    Args:
        picture: an image that the service takes.
        model: the served model's name.
        seed: of everything.
    """

    def __init__(self, picture: Image.Image, model: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = model
        self.files = [self._file(picture, form) for form in ("PNG", "JPEG", "WEBP")]
        self.hostile = hostile_files(picture)

    def __iter__(self) -> Iterator[Sent]:
        """Without end."""
        kinds: list[Callable[[], Sent]] = [
            self.image,
            self.image,
            self.fields,
            self.fields,
            self.fields,
            self.text,
            self.frame,
            self.address,
            self.adapter,
        ]
        while True:
            yield self.random.choice(kinds)()

    def image(self) -> Sent:
        """A right request with a wrong image."""
        path, request = self._request()
        what, file = self._bad_file()
        return self._wrapped(what, path, json.dumps(request), file)

    def fields(self) -> Sent:
        """A right image with wrong fields."""
        path, request = self._request()
        what = [self._change(request) for _ in range(self.random.choice([1, 1, 2, 3]))]
        return self._wrapped(", ".join(what), path, json.dumps(request), self.files[0])

    def text(self) -> Sent:
        """JSON that is deep, cut, flipped or none."""
        path, request = self._request()
        text = json.dumps(request)
        choice = self.random.choice
        bad = choice(
            [
                nested(choice([50, 1000, 5000]), choice(["[", '{"a":'])),
                text[: self.random.randrange(len(text))],
                text * 2,
                "nul",
                "'",
                "\ufeff" + text,
            ]
        )
        where = choice(["whole", "inside"])
        if where == "inside":
            bad = json.dumps(request)[:-1] + f', "{choice([*request, "a"])}": {bad}}}'
        return self._wrapped(f"bad JSON, {where}", path, bad, self.files[0])

    def frame(self) -> Sent:
        """A body that its headers do not describe."""
        path, request = self._request()
        sent = self._wrapped("", path, json.dumps(request), self.files[0])
        headers, body = dict(sent.headers), bytearray(sent.body)
        what = self.random.choice(["type", "boundary", "cut", "flip", "encoding", "twice", "length"])
        if what == "type":
            headers["Content-Type"] = self.random.choice(MEDIA)
        elif what == "boundary":
            headers["Content-Type"] = f"multipart/form-data; boundary={self.random.choice(['', 'x', '?' * 300, 'é'])}"
        elif what == "cut":
            del body[self.random.randrange(len(body) + 1) :]
        elif what == "flip":
            body = bytearray(self._flipped(bytes(body)))
        elif what == "encoding":
            headers["Content-Encoding"] = self.random.choice(["gzip", "deflate", "br", "identity"])
        elif what == "twice":
            body *= 2
        else:
            headers[REQUEST_HEADER] = self.random.choice(["{", "[]", nested(2000, "["), json.dumps(request), "\\u0000"])
        return Sent(f"frame: {what}", sent.method, sent.path, headers, bytes(body))

    def address(self) -> Sent:
        """Paths, methods and query parameters."""
        choice = self.random.choice
        if self.random.random() < 0.5:
            return Sent("path", choice(["GET", "POST", "HEAD"]), "/" + choice(PATHS), {}, b"")
        if self.random.random() < 0.3:
            return Sent(
                "method", choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]), choice(["/v1/segment", "/v1/models", "/hf"]), {}, b"x"
            )
        path, request = self._request()
        self._change(request)
        query = "&".join(f"{_quoted(str(key))}={_quoted(value if isinstance(value, str) else json.dumps(value))}" for key, value in request.items())[
            :20_000
        ]
        return Sent("query", "POST", f"{path}?{query}", {"Content-Type": "image/png"}, self.files[0])

    def adapter(self) -> Sent:
        """Requests of the adapters."""
        choice = self.random.choice
        image = base64.b64encode(choice([self.files[0], self._bad_file()[1]])).decode()
        config = '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="cat"/></BrushLabels></View>'
        bodies: list[tuple[str, dict[str, Any]]] = [
            (f"/hf?vocabulary={_quoted(choice(WORDS))}", {"inputs": image, "parameters": {"subtask": "panoptic", "threshold": 0.1, "vocabulary": ["cat"]}}),
            (f"/cvat?vocabulary={_quoted(choice(WORDS))}", {"image": image, "threshold": 0.1}),
            ("/label-studio/predict", {"tasks": [{"data": {"image": f"data:image/png;base64,{image}"}}], "label_config": config, "params": {"context": {}}}),
            (f"/v2/models/{choice([self.model, _quoted(choice(IDS))])}/infer", {"inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]},
                {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(self._request()[1])]},
            ]}),
        ]  # fmt: skip
        path, body = choice(bodies)
        what = self._change(body) if self.random.random() < 0.8 else "as it is"
        headers = {"Content-Type": "application/json"}
        if path.startswith("/v2") and self.random.random() < 0.2:
            headers["Inference-Header-Content-Length"] = choice(["0", "-1", "5", "99999999", "x", "²"])
        return Sent(
            f"adapter: {what}",
            "POST",
            path,
            {key: value for key, value in headers.items() if value.isascii()},
            json.dumps(body).encode("utf-8", "surrogatepass"),
        )

    # -- parts ------------------------------------------------------------------------------------------------------------------------------------

    def _request(self) -> tuple[str, dict[str, Any]]:
        words: list[Any] = ["cat", {"name": "grass", "synonyms": ["lawn"], "thing": False}]
        naming = {"vocabulary": words, "unknown_below": 0.1, "max_segments": 5, "mask_format": "coco_rle", "timeout_s": 60}
        requests: list[tuple[str, dict[str, Any]]] = [
            ("/v1/segment", naming | {"task": "panoptic", "threshold": 0.1, "min_visible": 0.4, "templates": "simple", "scales": [64]}),
            ("/v1/segment", {"vocabulary_id": "pascal_voc_20", "task": "semantic", "include_unknown": True}),
            ("/v1/prompt", {"points": [[5, 6], [30, 20]], "labels": [1, 0], "boxes": [[2, 3, 20, 21]], "mask_format": "polygon"}),
            ("/v1/prompt", naming | {"points": [[5, 6]]}),
            ("/v1/everything", {"points_per_side": 2, "threshold": 0.2, "mask_format": "png_idmap"}),
            ("/v1/images", {"timeout_s": 60}),
        ]
        return self.random.choice(requests)

    def _change(self, tree: Any) -> str:
        """One change somewhere in a JSON tree."""
        choice = self.random.choice
        while True:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not keys:
                return "nothing"
            key = choice(keys)
            if isinstance(tree[key], dict | list) and tree[key] and self.random.random() < 0.6:
                tree = tree[key]
                continue
            break
        kind = choice(["value", "value", "value", "drop", "unknown", "word", "id"])
        if kind == "value":
            tree[key] = copy.deepcopy(choice(VALUES))  # a later change may go into it
        elif kind == "drop":
            del tree[key]
        elif kind == "unknown" and isinstance(tree, dict):
            tree[choice(["url", "__proto__", "class", "a" * 500, ""])] = copy.deepcopy(choice(VALUES))
        elif kind == "id" and isinstance(tree, dict):
            tree[choice(["image_id", "vocabulary_id", "templates", str(key)])] = choice(IDS)
        else:
            tree[key] = choice([choice(WORDS), [choice(WORDS), choice(WORDS)]])
        return f"{kind} of {str(key)[:20]}"

    def _bad_file(self) -> tuple[str, bytes]:
        file = self.random.choice(self.files)
        kind = self.random.choice(["cut", "flip", "flip", "hostile", "noise", "tail"])
        if kind == "cut":
            file = file[: self.random.randrange(len(file))]
        elif kind == "flip":
            file = self._flipped(file)
        elif kind == "hostile":
            file = self.random.choice(self.hostile)
        elif kind == "noise":
            file = file[: self.random.randrange(40)] + self.random.randbytes(self.random.randrange(3000))
        else:
            file += self.random.randbytes(2000)
        return f"image: {kind}", file

    def _flipped(self, data: bytes) -> bytes:
        flipped = bytearray(data)
        reach = self.random.choice([64, len(data)])
        for _ in range(self.random.choice([1, 3, 30])):
            flipped[self.random.randrange(min(reach, len(data)))] ^= 1 << self.random.randrange(8)
        return bytes(flipped)

    def _wrapped(self, what: str, path: str, request: str, file: bytes) -> Sent:
        """As multipart, as JSON with base64, or as a raw body beside a header."""
        form = self.random.choice(["multipart", "json", "raw"])
        text = request.encode("utf-8", "surrogatepass")
        if form == "multipart":
            parts = [(b'name="image"; filename="i"', file), (b'name="request"', text)]
            body = (
                b"".join(b"--edge\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + part + b"\r\n" for head, part in parts)
                + b"--edge--\r\n"
            )
            return Sent(what, "POST", path, {"Content-Type": "multipart/form-data; boundary=edge"}, body)
        if form == "json":
            inside = f', "image": {{"data": "{base64.b64encode(file).decode()}"}}}}'
            return Sent(what, "POST", path, {"Content-Type": "application/json"}, (request[:-1] + inside).encode("utf-8", "surrogatepass"))
        headers = {"Content-Type": self.random.choice(["image/png", "image/jpeg", "image/webp"])}
        if len(request) < 8000 and request.isascii() and request.isprintable():
            headers[REQUEST_HEADER] = request
        return Sent(what, "POST", path, headers, file)

    @staticmethod
    def _file(picture: Image.Image, form: str) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, form)
        return buffer.getvalue()


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
