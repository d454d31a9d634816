// Segments as pixels: which one is on top where, and the coloured layer over the picture.

import { eachStretch, runLengths } from "./rle.js";
import { colour } from "./colours.js";

/** Adds to segments of an answer what drawing needs: runs, colour, anchor (a point well inside), visible. */
export function prepared(segments, firstColour = 0) {
  return segments.map((segment, index) => {
    const [height, width] = segment.mask.size;
    const runs = runLengths(segment.mask.counts, height * width);
    return { ...segment, runs, colour: colour(firstColour + index), anchor: anchor(runs, height), visible: true };
  });
}

function anchor(runs, height) {
  let best = null;
  eachStretch(runs, height, (x, y0, y1) => {
    if (!best || y1 - y0 > best.y1 - best.y0) best = { x, y0, y1 };
  });
  return best && [best.x + 0.5, (best.y0 + best.y1) / 2];
}

/**
 * {places, width, height, step}: `places` [height * width] holds the place + 1 of the topmost visible segment, 0 where there is none, at each `step`-th
 * pixel of the picture's columns and rows. On top is the first of the list, or `byArea` the smallest, so that it can be seen; `raised` is above all.
 */
export function topmost(segments, picture, { byArea = false, raised = null, step = 1 } = {}) {
  const width = Math.ceil(picture.width / step);
  const height = Math.ceil(picture.height / step);
  const places = new Uint16Array(width * height);
  const order = [...segments.keys()].reverse();
  if (byArea) order.sort((a, b) => segments[b].area - segments[a].area);
  if (raised !== null) order.push(order.splice(order.indexOf(raised), 1)[0]);
  for (const place of order) {
    if (!segments[place].visible) continue;
    eachStretch(segments[place].runs, picture.height, (x, y0, y1) => {
      if (x % step) return;
      const column = x / step;
      const end = Math.ceil(y1 / step);
      for (let y = Math.ceil(y0 / step); y < end; y++) places[y * width + column] = place + 1;
    });
  }
  return { places, width, height, step };
}

/** The coloured layer of what `topmost` found, as ImageData: fill of `opacity` (0 to 1), a stronger edge `edge` pixels wide; all but `raised` are paler. */
export function layer({ places, width, height }, segments, { opacity, edge = 1, raised = null }) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const paint = [[0, 0]];
  segments.forEach(({ colour: [r, g, b] }, place) => {
    const share = raised === null || raised === place ? 1 : 0.35;
    const solid = (b << 16) | (g << 8) | r; // little endian: alpha is the highest byte
    const alpha = (value) => (Math.round(255 * value * share) << 24) | solid;
    paint.push([alpha(opacity), alpha(Math.min(1, opacity * 1.6))]);
  });
  const down = edge * width;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const place = places[at];
      if (!place) continue;
      const onEdge =
        (x >= edge && places[at - edge] !== place) || (x + edge < width && places[at + edge] !== place) ||
        (y >= edge && places[at - down] !== place) || (y + edge < height && places[at + down] !== place);
      pixels[at] = paint[place][+onEdge];
    }
  }
  return image;
}
