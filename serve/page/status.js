// What the page says: one line of status, progress, and problems in words.

/** Finds its elements by id in the document. */
export class Status {
  #timer = 0;

  constructor() {
    for (const id of ["status", "elapsed", "progress", "stop", "problem", "again", "dismiss", "canvas", "choose"]) this[id] = document.getElementById(id);
    this.dismiss.addEventListener("click", () => this.#close());
  }

  say(text) {
    this.status.textContent = text;
  }

  /** Work goes on; `stop` is called when the person does not want to wait. */
  begin(text, stop) {
    this.end();
    this.say(text);
    this.problem.hidden = true;
    this.progress.hidden = this.stop.hidden = false;
    this.stop.onclick = stop;
    const since = performance.now();
    this.#timer = setInterval(() => (this.elapsed.textContent = `${Math.round((performance.now() - since) / 1000)} s`), 1000);
  }

  end() {
    clearInterval(this.#timer);
    this.elapsed.textContent = "";
    this.progress.hidden = this.stop.hidden = true;
  }

  /** Shows a ServiceError; `again` tries what failed once more. */
  fail(error, again) {
    this.say("");
    this.problem.querySelector(".title").textContent = error.title ?? "Something went wrong in the page";
    this.problem.querySelector(".detail").textContent = sentence(error.message);
    const facts = [["Seen", error.seen], ["Allowed", error.allowed]].filter(([, value]) => value !== undefined && value !== null);
    this.problem.querySelector("dl").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", inWords(value))]));
    this.again.onclick = () => {
      this.#close();
      again();
    };
    this.problem.hidden = false;
  }

  /** Hides the problem, whose button has the focus: it goes to the image, or to where one is chosen. */
  #close() {
    this.problem.hidden = true;
    (this.canvas.hidden ? this.choose : this.canvas).focus({ preventScroll: true });
  }
}

function element(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

function inWords(value) {
  if (Array.isArray(value)) return value.map(inWords).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
