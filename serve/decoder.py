"""Images are decoded in a process of their own, so that a hostile file can end no process that matters.

The child is kept warm and takes one image at a time through its pipes. It holds no secrets, no model and no open file; the kernel bounds its memory
(RLIMIT_AS), ends it when an image takes too long (an alarm without a handler, which works inside C code too), lets it open and write no file and start no
process. When it dies, that image is refused and the next gets a new child. What comes back is checked against the size that the header named, so a decoder
that was talked into more pixels than were allowed is refused as well.
"""

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.problems import ServiceError
from uniovseg.data.images import decode_image
from uniovseg.errors import DataError

REQUEST, REPLY = struct.Struct("<Qd"), struct.Struct("<II")

SPARE_BYTES = 512 * 1024**2
"""Memory of a child beside what it takes by itself and ``BYTES_A_PIXEL``."""

BYTES_A_PIXEL = 24
"""Room for an image of four 16-bit channels, its rows while they are read, and the result."""


class Decoder:
    """A child process that decodes images, one at a time; any thread may ask.

    Args:
        pixels: most pixels of an image; the child's memory is bounded by it.
        seconds: time for one image.
    """

    def __init__(self, pixels: int, seconds: float) -> None:
        self.pixels, self.seconds = pixels, seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def decode(self, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The image [h, w, 3] uint8 RGB of a file whose header names the size (h, w).

        Raises:
            ServiceError: it cannot be decoded, takes too long or too much memory, or is of another size than its header says.
        """
        with self._turn:
            child = self.start()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(REQUEST.pack(len(data), self.seconds))
                child.stdin.write(data)
                child.stdin.flush()
                height, width = REPLY.unpack(_exactly(child.stdout, REPLY.size))
                pixels = np.empty((height, width, 3) if (height, width) == size else 0, np.uint8)
                if height and pixels.size:
                    _into(child.stdout, pixels)
            except (OSError, EOFError) as error:
                self._end()
                raise ServiceError(
                    "invalid_image", "the image cannot be decoded within the time and memory for one image", allowed=f"{self.seconds:g} s"
                ) from error
            if height and not pixels.size:
                self._end()  # what it would send is not wanted
        if not height:
            raise ServiceError("invalid_image", "the image cannot be decoded", seen=f"{len(data)} bytes", allowed="a whole JPEG, PNG or WebP file")
        if not pixels.size:
            raise ServiceError("invalid_image", "the image is of another size than its header says", seen=f"{width} x {height}")
        return pixels

    def start(self) -> subprocess.Popen[bytes]:
        """The running child; a new one where there is none."""
        if self._child is None or self._child.poll() is not None:
            self._end()
            environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": os.environ.get("PATH", "")}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "serve.decoder", str(self.pixels)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        return self._child

    def close(self) -> None:
        """End the child."""
        with self._turn:
            self._end()

    def _end(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was not sent is not wanted
                continue
        self._child.wait()
        self._child = None


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _into(stream: IO[bytes], pixels: NDArray[np.uint8]) -> None:
    view = memoryview(pixels.data).cast("B")
    if cast(BufferedReader, stream).readinto(view) < len(view):
        raise EOFError


def main(pixels: int) -> None:
    """The child: read images from standard input until it ends."""
    cv2.setNumThreads(1)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + SPARE_BYTES + BYTES_A_PIXEL * pixels,) * 2)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(header := source.read(REQUEST.size)) == REQUEST.size:
        length, seconds = REQUEST.unpack(header)
        data = source.read(length)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        image = _decoded(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sink.write(REPLY.pack(image.shape[0], image.shape[1]) + image.tobytes())
        sink.flush()


def _decoded(data: bytes) -> NDArray[np.uint8]:
    """The image; of no pixels where it is none."""
    try:
        return np.ascontiguousarray(decode_image(data))
    except (DataError, MemoryError):
        return np.empty((0, 0, 3), np.uint8)


if __name__ == "__main__":
    main(int(sys.argv[1]))
