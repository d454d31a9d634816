"""What the service is compared with: a plain FastAPI application around the library, as one writes it in ten minutes; ``python -m serve.peer SIZE PORT``."""

import sys
import threading
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Form, UploadFile

from uniovseg.data.images import decode_image
from uniovseg.segmenter import Segmenter


def create_peer(segmenter: Segmenter) -> FastAPI:
    """The application: one model, one request at a time, COCO RLE in the answer."""
    app, turn = FastAPI(), threading.Lock()

    @app.post("/segment")
    def segment(image: UploadFile, words: Annotated[str, Form()]) -> dict[str, Any]:
        with turn:
            found = segmenter.segment(decode_image(image.file.read()), words.split(","))
        return {
            "segments": [
                {"label": item.word, "score": item.score, "bbox": item.box_xyxy, "area": item.area, "mask": item.rle} for item in found.regions
            ]
        }

    return app


def main(size: int, port: int) -> None:
    """Serve the packaged model at a size, on one thread of torch, until killed."""
    torch.set_num_threads(1)
    uvicorn.run(create_peer(Segmenter.load("shapes", changes={"size": size})), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
