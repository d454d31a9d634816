// The list of segments: switches that also highlight.

import { css } from "./colours.js";

/** Fills `list` with `segments` of a picture of `pixels`. `on` has: toggle(), raise(place or null). */
export function fillLegend(list, segments, pixels, on) {
  list.replaceChildren(...segments.map((segment, place) => entry(segment, place, pixels, on)));
}

/** Marks the entry of the highlighted segment. */
export function markRaised(list, raised) {
  [...list.children].forEach((item, place) => item.classList.toggle("raised", place === raised));
}

/** How a segment is called. */
export function nameOf(segment) {
  if (!segment.area) return `${segment.label ?? `Mask ${segment.id}`} (empty)`;
  return segment.label ?? (segment.predicted_iou === null ? "no class" : `Mask ${segment.id}`);
}

function entry(segment, place, pixels, on) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: segment.visible });
  box.addEventListener("change", () => {
    segment.visible = box.checked;
    on.toggle();
  });
  const swatch = part("span", "swatch", "");
  swatch.style.background = css(segment.colour);
  const label = document.createElement("label");
  label.append(box, swatch, part("span", "name", nameOf(segment)), part("span", "figure", figure(segment), figureTitle(segment)));
  label.append(part("span", "figure", share(segment.area / pixels), `${segment.area} pixels`));
  const item = document.createElement("li");
  item.append(label);
  item.addEventListener("pointerenter", () => on.raise(place));
  item.addEventListener("pointerleave", () => on.raise(null));
  item.addEventListener("focusin", () => on.raise(place));
  item.addEventListener("focusout", () => on.raise(null));
  return item;
}

function part(tag, name, text, title = "") {
  return Object.assign(document.createElement(tag), { className: name, textContent: text, title });
}

function figure({ score, predicted_iou }) {
  const value = score ?? predicted_iou;
  return value === null ? "" : value.toFixed(2);
}

function figureTitle({ score, predicted_iou }) {
  const parts = [];
  if (score !== null) parts.push(`score ${score.toFixed(3)}`);
  if (predicted_iou !== null) parts.push(`predicted IoU ${predicted_iou.toFixed(3)}`);
  return parts.join(", ");
}

function share(value) {
  return value > 0 && value < 0.01 ? "< 1 %" : `${Math.round(100 * value)} %`;
}
