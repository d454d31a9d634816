// What has been clicked and boxed, without drawing or asking: groups of points that shape one mask, and boxes. A state is never changed, so undo is free.

const EMPTY = { groups: [], open: false };

/** A change of the prompts can be taken back, clearing too. */
export class Prompts {
  #states = [EMPTY];

  get groups() {
    return this.#states.at(-1).groups;
  }

  get canUndo() {
    return this.#states.length > 1;
  }

  /** Adds a point [x, y] to the group under way, or begins one. */
  addPoint(point, positive) {
    const { groups, open } = this.#states.at(-1);
    const last = open ? groups.at(-1) : { points: [], labels: [] };
    const grown = { points: [...last.points, point], labels: [...last.labels, positive ? 1 : 0] };
    this.#states.push({ groups: [...(open ? groups.slice(0, -1) : groups), grown], open: true });
  }

  /** Adds a box [x, y, width, height]: a group of its own. */
  addBox(box) {
    this.#states.push({ groups: [...this.groups, { box }], open: false });
  }

  /** The next point begins a new group. Returns whether that changes anything. */
  close() {
    const { groups, open } = this.#states.at(-1);
    if (open) this.#states.push({ groups, open: false });
    return open;
  }

  clear() {
    if (this.groups.length) this.#states.push(EMPTY);
  }

  undo() {
    if (this.canUndo) this.#states.pop();
  }

  /** Another picture: nothing to undo. */
  reset() {
    this.#states = [EMPTY];
  }
}

/** A group as the service takes it; null where it has no positive point and so no mask. */
export function promptOf(group) {
  if (group.box) return { boxes: [group.box] };
  return group.labels.includes(1) ? { points: group.points, labels: group.labels } : null;
}
