// What is shown, as files.

import { layer, topmost } from "./masks.js";
import { greyPng } from "./png.js";

/** The visible segments of an answer as JSON: as the service wrote them, masks in COCO's run lengths. */
export function asJson(result, picture) {
  const segments = result.segments.filter((segment) => segment.visible);
  const plain = segments.map(({ id, label, label_index, thing, score, predicted_iou, bbox, area, mask }) => ({
    id, label, label_index, thing, score, predicted_iou, bbox, area, mask,
  }));
  const { width, height, name } = picture;
  const whole = { image: { name, width, height }, model: result.model, task: result.task, words: result.words, segments: plain };
  return new Blob([JSON.stringify(whole, null, 1)], { type: "application/json" });
}

/** The picture under the coloured layer, in the picture's own pixels. */
export async function asOverlay(result, picture, opacity) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const coloured = new OffscreenCanvas(picture.width, picture.height);
  const edge = Math.max(1, Math.round(picture.width / 600));
  const pixels = layer(topmost(result.segments, picture, { byArea: true }), result.segments, { opacity, edge });
  coloured.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(picture.bitmap, 0, 0);
  context.drawImage(coloured, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** A grey PNG: 0 is no segment, else the segment's id; the first of the list is on top. */
export async function asIdMap(result, picture) {
  const ids = Uint16Array.of(0, ...result.segments.map((segment) => segment.id));
  const values = topmost(result.segments, picture).places.map((place) => ids[place]);
  return greyPng(values, picture, Math.max(...ids));
}

/** Hands a file to the browser. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
