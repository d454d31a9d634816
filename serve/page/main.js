// The page: what is chosen, asked, and shown.

import { Service, ServiceError, stoppable } from "./api.js";
import { colour } from "./colours.js";
import { asIdMap, asJson, asOverlay, save } from "./downloads.js";
import { keyField } from "./key.js";
import { fillLegend, markRaised, nameOf } from "./legend.js";
import { prepared } from "./masks.js";
import { readPicture } from "./picture.js";
import { listen } from "./pointing.js";
import { Prompts, promptOf } from "./prompts.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";
import { namingOf, titleOf } from "./vocabulary.js";

const MODES = ["words", "prompts", "everything"];
const INSTANCE_SCORE = 0.3; // every mask is an instance of every word, most of them of hardly any score
const SAMPLES = [28, 33, 24];
const TASK_NOTES = {
  panoptic: "Things one by one, and grounds such as grass as a whole.",
  semantic: "A class for every pixel.",
  instance: `Things one by one, of a score of ${INSTANCE_SCORE} or more; they may overlap.`,
};

const get = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

const status = new Status();
const keyOf = keyField();
const service = new Service({
  askKey: (refused) => {
    status.say("The service asks for a key.");
    return keyOf(refused);
  },
  onWait: (seconds, problem) => status.say(`${problem.title}. Trying again in ${seconds} s…`),
});
const stage = new Stage(get("canvas"), get("frame"));
const prompts = new Prompts();

let limits = { bytes: Infinity, pixels: Infinity, side: Infinity };
let mode = "words";
let picture = null; // of readPicture, with `ready`: a promise of its id in the service
let work = null; // AbortController of what goes on
let results = { words: null, prompts: null, everything: null }; // {segments, model, task, words}
let answers = new Map(); // what a prompt with its words was answered: {segment, model}
let sampleWords = "";

// -- work -------------------------------------------------------------------------------------------------------------------------------------------

/** Does one thing at a time: what went on before is stopped. `again` is what a person's "try again" does. */
async function run(text, todo, again = () => run(text, todo)) {
  work?.abort();
  const mine = (work = new AbortController());
  status.begin(text, () => {
    mine.abort();
    status.say("Stopped.");
  });
  try {
    await todo(mine.signal);
  } catch (error) {
    if (work !== mine || error.name === "AbortError") return;
    if (!(error instanceof ServiceError)) console.error(error);
    status.fail(error, again);
  } finally {
    if (work === mine) {
      work = null;
      status.end();
    }
  }
}

/** The picture's id in the service; it is sent once, and again where sending failed. */
function imageId(wanted) {
  wanted.ready ??= service
    .json("v1/images", { method: "POST", body: wanted.file, type: wanted.file.type })
    .then((answer) => answer.image_id)
    .catch((error) => {
      wanted.ready = null;
      throw error;
    });
  return wanted.ready;
}

/** Asks about the picture. Where the service has forgotten it, it is sent again. */
async function ask(path, request, signal) {
  const about = picture;
  const once = async () => service.post(path, { image_id: await stoppable(imageId(about), signal), ...request }, { signal });
  try {
    return await once();
  } catch (error) {
    if (error.code !== "image_not_found") throw error;
    about.ready = null;
    return once();
  }
}

// -- the picture ------------------------------------------------------------------------------------------------------------------------------------

const open = (file) => run("Reading the image…", (signal) => load(file, signal));

async function load(file, signal) {
  const next = await readPicture(file, limits);
  signal.throwIfAborted();
  picture?.bitmap.close();
  picture = { ...next, ready: null };
  results = { words: null, prompts: null, everything: null };
  answers = new Map();
  prompts.reset();
  get("empty").hidden = true;
  get("canvas").setAttribute("aria-label", `Image ${picture.name}, ${picture.width} by ${picture.height} pixels`);
  stage.show({ picture, crosshair: null });
  showResult();
  await stoppable(imageId(picture), signal);
  status.say(["The image is ready.", picture.note].join(" ").trim());
}

function openSample(seed) {
  run("Drawing a sample…", async (signal) => {
    const response = await service.fetch(`v1/samples/${seed}.jpg`, { signal });
    const words = response.headers.get("X-Uniovseg-Words") ?? "";
    if (get("words").value === sampleWords) get("words").value = sampleWords = words;
    await load(new File([await response.blob()], `sample_${seed}.jpg`, { type: "image/jpeg" }), signal);
  });
}

async function showSamples() {
  const items = await Promise.all(
    SAMPLES.map(async (seed, index) => {
      const response = await service.fetch(`v1/samples/${seed}.jpg`);
      const image = Object.assign(new Image(), { src: URL.createObjectURL(await response.blob()), alt: `Sample ${index + 1}` });
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(image);
      button.addEventListener("click", () => openSample(seed));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  get("samples").replaceChildren(...items);
}

// -- asking -----------------------------------------------------------------------------------------------------------------------------------------

const naming = () => namingOf(get("vocabulary").value, get("words").value);

function needsPicture() {
  if (!picture) {
    status.say("Choose an image first.");
    get("choose").focus();
  }
  return !picture;
}

function segment() {
  if (needsPicture()) return;
  const words = naming();
  if (!Object.keys(words).length) {
    status.say("Type at least one word, or pick a vocabulary.");
    get("words").focus();
    return;
  }
  const task = chosen("task");
  const request = { ...words, task, ...(task === "instance" && { threshold: INSTANCE_SCORE }) };
  run("Looking for the words…", async (signal) => finish("words", await ask("v1/segment", request, signal), words), segment);
}

function everything() {
  if (needsPicture()) return;
  const words = naming();
  const grid = get("grid").value ? { points_per_side: Number(get("grid").value) } : {};
  run("Looking for everything…", async (signal) => finish("everything", await ask("v1/everything", { ...words, ...grid }, signal), words), everything);
}

function finish(name, answer, words) {
  const segments = prepared(answer.segments);
  results[name] = { segments, model: answer.model, task: answer.task, words: words.vocabulary ?? words.vocabulary_id };
  showResult();
  const found = segments.length ? `${counted(segments.length)} in ${duration(answer.timing_ms.total)}.` : "Nothing was found. Try other words.";
  status.say([found, ...answer.warnings].join(" "));
}

/** Shows the prompts at once, and their masks as they are known. */
async function prompted() {
  const words = naming();
  const wanted = prompts.groups.map((group) => ({ group, prompt: promptOf(group) })).filter(({ prompt }) => prompt);
  const keyed = wanted.map(({ prompt }) => ({ prompt, key: JSON.stringify([prompt, words]) }));
  const compose = () => {
    const known = keyed.filter(({ key }) => answers.has(key)).map(({ key }) => answers.get(key));
    known.forEach(({ segment }, place) => Object.assign(segment, { id: place + 1, colour: colour(place) }));
    const segments = known.map(({ segment }) => segment);
    results.prompts = known.length ? { segments, model: known[0].model, words: words.vocabulary ?? words.vocabulary_id } : null;
    showResult();
  };
  compose();
  const missing = keyed.filter(({ key }) => !answers.has(key));
  if (!missing.length) {
    work?.abort();
    const pending = prompts.groups.length > wanted.length;
    status.say(pending ? "A mask needs a positive point too." : keyed.length ? `${counted(keyed.length)}.` : "Click the image, or drag a box on it.");
    return;
  }
  const find = async (signal) => {
    for (const { prompt, key } of missing) {
      const answer = await ask("v1/prompt", { ...prompt, ...words }, signal);
      const [found] = prepared(answer.segments);
      answers.set(key, { segment: found, model: answer.model });
      compose();
      status.say(`${nameOf(found)}: predicted IoU ${found.predicted_iou.toFixed(2)}, in ${duration(answer.timing_ms.total)}.`);
    }
  };
  await run("Finding the mask…", find, prompted);
}

const counted = (count) => (count === 1 ? "1 segment" : `${count} segments`);
const duration = (ms) => (ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`);

// -- showing ----------------------------------------------------------------------------------------------------------------------------------------

function showResult() {
  const segments = results[mode]?.segments ?? [];
  stage.show({ segments, raised: null, marks: mode === "prompts" ? prompts.groups : [] });
  get("results").hidden = !segments.length;
  get("count").textContent = counted(segments.length);
  fillLegend(get("legend"), segments, picture ? picture.width * picture.height : 1, { toggle: toggled, raise });
  get("undo").disabled = mode !== "prompts" || !prompts.canUndo;
  get("clear").disabled = !segments.length && !(mode === "prompts" && prompts.groups.length);
  toggled();
}

function toggled() {
  const segments = results[mode]?.segments ?? [];
  get("toggle-all").textContent = segments.some((item) => item.visible) ? "Hide all" : "Show all";
  for (const id of ["save-json", "save-overlay", "save-ids"]) get(id).disabled = !segments.some((item) => item.visible);
  stage.recolour();
}

function raise(place) {
  stage.show({ raised: place !== null && stage.segments[place].visible ? place : null });
  markRaised(get("legend"), place);
}

function look(point, byKeyboard) {
  const place = point && stage.placeAt(point);
  if (!byKeyboard && mode === "prompts") return;
  if (place !== stage.raised) raise(place);
  if (byKeyboard) {
    const [x, y] = point.map(Math.floor);
    status.say(`x ${x}, y ${y}${place === null ? "" : `: ${nameOf(stage.segments[place])}`}`);
  }
}

function choose(next) {
  mode = next;
  for (const name of MODES) {
    const tab = get(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    get(`pane-${name}`).hidden = name !== mode;
  }
  document.body.dataset.mode = mode;
  if (mode === "prompts" && picture) prompted();
  else showResult();
}

function undo() {
  if (mode !== "prompts") return;
  prompts.undo();
  prompted();
}

function clear() {
  if (mode === "prompts") {
    prompts.clear();
    prompted();
    status.say("Cleared. Undo brings it back.");
  } else {
    work?.abort();
    results[mode] = null;
    showResult();
    status.say("Cleared.");
  }
}

async function download(what) {
  const stem = picture.name.replace(/\.[^.]*$/, "");
  const result = results[mode];
  try {
    if (what === "json") save(asJson(result, picture), `${stem}_segments.json`);
    if (what === "overlay") save(await asOverlay(result, picture, stage.opacity), `${stem}_overlay.png`);
    if (what === "ids") save(await asIdMap(result, picture), `${stem}_ids.png`);
  } catch (error) {
    status.fail(error, () => download(what)); // there may be too little memory for a large picture
  }
}

// -- listening --------------------------------------------------------------------------------------------------------------------------------------

const firstImage = (items) => [...(items ?? [])].find((item) => item.type.startsWith("image/")) ?? items?.[0];
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function listenToFiles() {
  get("choose").addEventListener("click", () => get("file").click());
  get("file").addEventListener("change", () => {
    if (get("file").files[0]) open(get("file").files[0]);
    get("file").value = "";
  });
  get("sample").addEventListener("click", () => openSample(1 + Math.floor(Math.random() * 9999)));
  addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0] && firstImage(event.clipboardData.files);
    if (file) {
      event.preventDefault();
      open(file);
    }
  });
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    get("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => (get("drop").hidden ||= !event.relatedTarget));
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    get("drop").hidden = true;
    const file = firstImage(event.dataTransfer.files);
    if (file) open(file);
  });
}

function listenToControls() {
  MODES.forEach((name, index) => {
    get(`tab-${name}`).addEventListener("click", () => choose(name));
    get(`tab-${name}`).addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way) return;
      const next = MODES[(index + way + MODES.length) % MODES.length];
      choose(next);
      get(`tab-${next}`).focus();
    });
  });
  const act = { words: segment, prompts: prompted, everything };
  get("segment").addEventListener("click", segment);
  get("everything").addEventListener("click", everything);
  get("words").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    act[mode]();
  });
  get("words").addEventListener("change", () => mode === "prompts" && picture && prompted());
  get("vocabulary").addEventListener("change", () => {
    get("words").hidden = get("words-note").hidden = get("vocabulary").value !== "";
    if (mode === "prompts" && picture) prompted();
  });
  document.querySelectorAll("input[name=task]").forEach((radio) => radio.addEventListener("change", noteTask));
  document.querySelectorAll("input[name=tool]").forEach((radio) => radio.addEventListener("change", () => (document.body.dataset.tool = chosen("tool"))));
  get("next").addEventListener("click", () => status.say(prompts.close() ? "The next point starts a new mask." : "Click the image to start a mask."));
  get("undo").addEventListener("click", undo);
  get("clear").addEventListener("click", clear);
  addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.target.matches("textarea, input[type=password]")) return;
    event.preventDefault();
    undo();
  });
}

function listenToResults() {
  get("toggle-all").addEventListener("click", () => {
    const segments = results[mode].segments;
    const visible = !segments.some((item) => item.visible);
    segments.forEach((item) => (item.visible = visible));
    showResult();
  });
  get("opacity").addEventListener("input", () => stage.show({ opacity: get("opacity").value / 100 }));
  get("names").addEventListener("change", () => stage.show({ names: get("names").checked }));
  for (const what of ["json", "overlay", "ids"]) get(`save-${what}`).addEventListener("click", () => download(what));
}

function noteTask() {
  get("task-note").textContent = TASK_NOTES[chosen("task")];
}

/** Learns what is served. It is not stopped by what a person does meanwhile. */
async function start() {
  try {
    const { models, limits: allowed } = await service.json("v1/models");
    limits = allowed;
    get("model").textContent = `${models[0].name} · ${models[0].checkpoint}`;
    get("model").title = `${models[0].method}, version ${models[0].version}`;
    const { vocabularies } = await service.json("v1/vocabularies");
    const options = vocabularies.map((item) => new Option(titleOf(item), item.id));
    get("vocabulary").replaceChildren(get("vocabulary").options[0], ...options);
    await showSamples();
    if (!picture) status.say("Choose an image to begin.");
  } catch (error) {
    status.fail(error, start);
  }
}

listen(stage, {
  prompting: () => mode === "prompts" && picture !== null,
  tool: () => chosen("tool"),
  point: (point, positive) => (prompts.addPoint(point, positive), prompted()),
  box: (box) => (prompts.addBox(box), prompted()),
  look,
  clear,
});
listenToFiles();
listenToControls();
listenToResults();
noteTask();
document.body.dataset.tool = chosen("tool");
choose("words");
start();
