// The picture on its canvas: coloured layer, names, prompts, crosshair. Everything is given in pixels of the picture.

import { css } from "./colours.js";
import { layer, topmost } from "./masks.js";

const MOST_LAYER_PIXELS = 2e6;
const INK = "#14201f";

export class Stage {
  picture = null;
  segments = [];
  marks = []; // prompt groups
  draft = null; // box under way
  crosshair = null;
  raised = null; // place of the highlighted segment
  opacity = 0.55;
  names = true;
  #found = null;
  #layer = document.createElement("canvas");
  #stale = false;
  #asked = false;

  constructor(canvas, frame) {
    this.canvas = canvas;
    this.frame = frame;
    new ResizeObserver(() => this.draw()).observe(frame);
    addEventListener("resize", () => this.draw());
  }

  /** Changes what is shown: any of the fields above. */
  show(changes) {
    const coloured = ["picture", "segments", "raised", "opacity"];
    if (Object.keys(changes).some((name) => coloured.includes(name) && changes[name] !== this[name])) this.#stale = true;
    Object.assign(this, changes);
    this.draw();
  }

  /** Segments were switched on or off. */
  recolour() {
    this.#stale = true;
    this.draw();
  }

  /** Place of the topmost visible segment at [x, y]; null where there is none, or what is drawn is not up to date. */
  placeAt([x, y]) {
    if (this.#stale || !this.#found || !this.segments.length) return null;
    const { places, width, step } = this.#found;
    const place = places[Math.floor(y / step) * width + Math.floor(x / step)];
    return place ? place - 1 : null;
  }

  /** The point of the picture under a pointer event, kept inside. */
  pointOf(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const inside = (value, size) => Math.min(size - 0.01, Math.max(0, value * size));
    return [inside((event.clientX - left) / width, this.picture.width), inside((event.clientY - top) / height, this.picture.height)];
  }

  draw() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  #draw() {
    const { picture, canvas } = this;
    canvas.hidden = !picture;
    if (!picture) return;
    if (this.#stale) this.#colour();
    const beside = matchMedia("(min-width: 900px), (orientation: landscape)").matches;
    const room = Math.max(240, innerHeight * (beside ? 0.74 : 0.46));
    const scale = Math.min(this.frame.clientWidth / picture.width, room / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    const dense = devicePixelRatio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
    context.scale(dense, dense);
    if (this.segments.length) {
      const { width: across, height: down, step } = this.#found;
      context.drawImage(this.#layer, 0, 0, across * step * scale, down * step * scale);
    }
    if (this.names) this.#drawNames(context, scale, width, height);
    this.#drawMarks(context, scale);
    if (this.crosshair) drawCrosshair(context, this.crosshair.map((value) => value * scale), width, height);
  }

  #colour() {
    this.#stale = false;
    const { picture, segments, raised, opacity } = this;
    const step = Math.ceil(Math.sqrt((picture.width * picture.height) / MOST_LAYER_PIXELS));
    this.#found = topmost(segments, picture, { byArea: true, raised, step });
    const { width, height } = this.#found;
    Object.assign(this.#layer, { width, height });
    const edge = Math.max(1, Math.round(width / 700));
    if (segments.length) this.#layer.getContext("2d").putImageData(layer(this.#found, segments, { opacity, edge, raised }), 0, 0);
  }

  #drawNames(context, scale, width, height) {
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const taken = [];
    const order = [...this.segments.keys()].sort((a, b) => (b === this.raised) - (a === this.raised) || this.segments[b].area - this.segments[a].area);
    for (const place of order) {
      const { label, anchor, visible, colour, bbox } = this.segments[place];
      if (!label || !visible || !anchor) continue;
      const across = context.measureText(label).width + 14;
      const [left, top, wide, high] = bbox.map((value) => value * scale);
      const small = wide * high < 60 * across; // the name would hide it, so it stands above or below
      const middle = small ? [left + wide / 2, top > 24 ? top - 13 : top + high + 13] : anchor.map((value) => value * scale);
      const x = Math.min(width - across - 2, Math.max(2, middle[0] - across / 2));
      const y = Math.min(height - 22, Math.max(2, middle[1] - 10));
      if (taken.some((other) => x < other.x + other.across + 2 && other.x < x + across + 2 && Math.abs(other.y - y) < 22)) continue;
      taken.push({ x, y, across });
      context.globalAlpha = this.raised === null || this.raised === place ? 0.94 : 0.5;
      context.fillStyle = css(colour);
      context.beginPath();
      context.roundRect(x, y, across, 20, 10);
      context.fill();
      context.fillStyle = INK;
      context.fillText(label, x + 7, y + 10.5);
      context.globalAlpha = 1;
    }
  }

  #drawMarks(context, scale) {
    const boxes = this.marks.filter((mark) => mark.box).map((mark) => mark.box);
    if (this.draft) boxes.push(this.draft);
    for (const [x, y, width, height] of boxes) {
      for (const [style, line, dash] of [["rgb(0 0 0 / .65)", 4, []], ["#fff", 2, [6, 4]]]) {
        context.strokeStyle = style;
        context.lineWidth = line;
        context.setLineDash(dash);
        context.strokeRect(x * scale, y * scale, width * scale, height * scale);
      }
      context.setLineDash([]);
    }
    for (const { points = [], labels = [] } of this.marks) points.forEach(([x, y], index) => drawPoint(context, x * scale, y * scale, labels[index]));
  }
}

/** A disc with a plus or a minus, told apart without colour too. */
function drawPoint(context, x, y, positive) {
  context.fillStyle = positive ? "#17734a" : "#b3261e";
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.beginPath();
  context.arc(x, y, 8, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  context.beginPath();
  context.moveTo(x - 4, y);
  context.lineTo(x + 4, y);
  if (positive) {
    context.moveTo(x, y - 4);
    context.lineTo(x, y + 4);
  }
  context.stroke();
}

function drawCrosshair(context, [x, y], width, height) {
  for (const [style, line] of [["rgb(0 0 0 / .6)", 3], ["#fff", 1]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, height);
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.stroke();
  }
}
