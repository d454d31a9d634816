// Mouse, finger, pen and keyboard on the canvas become points, boxes and a place that is looked at.

const DRAG_PX = 5;
const HOLD_MS = 500;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Listens on the stage's canvas. `on` has: prompting() whether points and boxes are wanted, tool() "positive", "negative" or "box",
 * point(xy, positive), box([x, y, width, height]), look(xy or null, byKeyboard), clear().
 */
export function listen(stage, on) {
  const { canvas } = stage;
  let down = null; // {event, at, held, timer} of the press under way
  let corner = null; // first corner of a box by keyboard

  const positive = (event) => (on.tool() !== "negative") !== event.shiftKey;
  const far = (event) => Math.hypot(event.clientX - down.event.clientX, event.clientY - down.event.clientY) > DRAG_PX;
  const drags = (event) => event.pointerType !== "touch" || on.tool() === "box";

  function release() {
    clearTimeout(down?.timer);
    down = null;
    stage.show({ draft: null });
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!on.prompting() || event.button !== 0) return;
    if (!event.isPrimary) return release(); // a second finger: the page is moved or made larger
    corner = null;
    stage.show({ crosshair: null });
    canvas.setPointerCapture(event.pointerId);
    down = { event, at: stage.pointOf(event), held: false, timer: 0 };
    if (event.pointerType === "touch" && on.tool() !== "box") {
      down.timer = setTimeout(() => {
        down.held = true;
        on.point(down.at, false);
      }, HOLD_MS);
    }
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!stage.picture) return;
    const point = stage.pointOf(event);
    if (!down) return on.look(point, false);
    if (far(event)) clearTimeout(down.timer);
    if (drags(event) && far(event)) stage.show({ draft: between(down.at, point) });
  });

  canvas.addEventListener("pointerup", (event) => {
    if (!down) return;
    const { at, held } = down;
    const [moved, dragged] = [far(event), drags(event)];
    release();
    const box = between(at, stage.pointOf(event));
    if (held) return;
    if (!moved) {
      if (on.tool() !== "box") on.point(at, positive(event));
    } else if (dragged && box[2] > 0 && box[3] > 0) on.box(box);
  });

  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => on.look(null, false));
  canvas.addEventListener("contextmenu", (event) => on.prompting() && event.preventDefault());

  canvas.addEventListener("keydown", (event) => {
    if (!stage.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = stage.picture;
    const at = stage.crosshair ?? [width / 2, height / 2];
    if (ARROWS[event.key]) {
      const pace = (Math.max(width, height) / 100) * (event.shiftKey ? 10 : 1);
      const next = ARROWS[event.key].map((way, axis) => Math.min([width, height][axis] - 0.01, Math.max(0, at[axis] + way * pace)));
      stage.show({ crosshair: next, draft: corner && between(corner, next) });
      on.look(next, true);
    } else if (event.key === "Enter" && on.prompting()) {
      stage.show({ crosshair: at });
      if (on.tool() !== "box") on.point(at, positive(event));
      else if (!corner) corner = at;
      else {
        const box = between(corner, at);
        corner = null;
        stage.show({ draft: null });
        if (box[2] > 0 && box[3] > 0) on.box(box);
      }
    } else if (event.key === "Escape") {
      if (corner || down) {
        corner = null;
        release();
      } else on.clear();
    } else return;
    event.preventDefault();
  });

  canvas.addEventListener("blur", () => {
    corner = null;
    stage.show({ crosshair: null, draft: null });
    on.look(null, false);
  });
}

/** [x, y, width, height] of the box with two opposite corners. */
function between([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
}
