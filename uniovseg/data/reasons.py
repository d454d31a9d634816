"""Why a sample can be rejected, by whichever job reads it."""

REASONS: dict[str, str] = {
    "missing_image": "an annotation or a caption without its image",
    "missing_annotation": "an image without its annotation",
    "missing_caption": "an image without its caption, or with one that has no letters",
    "bad_image": "not a JPEG or PNG, or its header cannot be read",
    "truncated_image": "the image file ends early",
    "undecodable_image": "the image file has a header, and cannot be decoded",
    "bad_json": "the JSON beside the image does not parse, or lacks what it must have",
    "bad_mask": "a mask's run lengths are not valid for the image's size",
    "size_mismatch": "the annotation's size is not the image's",
    "damaged_tar": "the archive itself is broken here; reading went on at the next member",
    "bad_reply": "twice the model's reply was not what was asked for",
    "refused": "the endpoint would not answer this request",
    "no_entities": "the caption names nothing that could be segmented",
}
"""The meaning of `uniovseg.records.Rejected.reason`, for a person."""
