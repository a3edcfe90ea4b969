const WAIT = 400; // milliseconds from the last stroke or key to the search
const HITS = 24; // pictures shown
const COMPARED = 10; // pictures shown of each view
const LONGEST_WAIT = 30; // seconds between two tries
const SENT = 384; // pixels of a drawing as it is sent
const FILLED = 0.88; // of its side, as in the drawings that the model knows
const find = (id) => document.getElementById(id);

// ---- the server

let token = sessionStorage.getItem("token") || "";

class Refused extends Error {
  constructor(text, seconds = 0) {
    super(text);
    this.seconds = seconds; // until it is tried again by itself; 0: only the user tries again
  }
}

const IN_WORDS = {
  busy: "The server is busy.",
  engine_unavailable: "The index cannot be reached at the moment.",
  stopping: "The server is stopping.",
  deadline_passed: "The server took too long to answer.",
};

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. It may have been stopped.", 3);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    if (await askForToken()) return call(path, options);
    throw new Refused("This server answers only with a token.");
  }
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail || `The server answered with error ${response.status}.`;
  const waits = [429, 503, 504].includes(response.status);
  const text = IN_WORDS[problem.code] || detail[0].toUpperCase() + detail.slice(1).replace(/\.?$/, ".");
  throw new Refused(text, waits ? Number(response.headers.get("Retry-After")) || 2 : 0);
}

let asked = null;
function askForToken() {
  asked ||= new Promise((done) => {
    find("token").value = "";
    find("door").showModal();
    find("door").addEventListener("close", () => {
      token = find("token").value.trim();
      sessionStorage.setItem("token", token);
      asked = null;
      done(token);
    }, { once: true });
  });
  return asked;
}

/** Show a picture of the server; an <img> cannot send a token. */
async function show(image, path) {
  if (!token) {
    image.src = path;
    return;
  }
  const url = URL.createObjectURL(await (await call(path)).blob());
  image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  image.src = url;
}

// ---- the drawing: everything that was done since the page was opened; undo takes the last away

const paper = find("paper");
const history = []; // {points, width, isEraser} | {clear: true} | {picture, file}; lengths are parts of the side
let stroke = null; // being drawn
let pointer = 0;
let isEraser = false;

/** Return the picture below the strokes, if there is one, and the strokes. */
function visible() {
  const start = history.findLastIndex((step) => !step.points);
  return { base: history[start]?.picture ? history[start] : null, strokes: history.slice(start + 1) };
}

const isEmpty = () => !visible().base && !visible().strokes.length;
const colour = (step) => (step.isEraser ? "#fff" : "#111");

/** Draw a stroke from one of its points on, as curves through the middles between points. */
function drawStroke(context, step, from = 0) {
  const { points, width } = step;
  const middle = (i) => [(points[i][0] + points[i + 1][0]) / 2, (points[i][1] + points[i + 1][1]) / 2];
  context.lineWidth = width;
  context.strokeStyle = colour(step);
  context.beginPath();
  context.moveTo(...(from > 0 ? middle(from - 1) : points[0]));
  for (let i = Math.max(from, 1); i < points.length - 1; i++) context.quadraticCurveTo(...points[i], ...middle(i));
  context.lineTo(...points.at(-1));
  context.stroke();
}

/** Draw everything; the transform of the context maps a side of 1 to pixels. */
function drawAll(context) {
  const { base, strokes } = visible();
  context.lineCap = context.lineJoin = "round";
  if (base) context.drawImage(base.picture, ...area(base.picture));
  for (const step of strokes) drawStroke(context, step);
}

/** Return x, y, width and height of a picture in the middle of the paper. */
function area({ width, height }) {
  const longer = Math.max(width, height);
  const [w, h] = [width / longer, height / longer];
  return [(1 - w) / 2, (1 - h) / 2, w, h];
}

function canvasOf(width, height, options) {
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", options);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  return context;
}

function redraw() {
  const side = Math.round(paper.clientWidth * devicePixelRatio);
  if (paper.width !== side) paper.width = paper.height = side;
  const context = paper.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, side, side);
  context.scale(side, side);
  drawAll(context);
  find("hint").hidden = !isEmpty() || stroke !== null;
  find("do-undo").disabled = !history.length;
  find("do-clear").disabled = isEmpty();
}

function inkBox() {
  const side = 256;
  const context = canvasOf(side, side, { willReadFrequently: true });
  context.scale(side, side);
  drawAll(context);
  const { data } = context.getImageData(0, 0, side, side);
  let [left, top, right, bottom] = [side, side, -1, -1];
  for (let i = 0; i < side * side; i++) {
    if (data[4 * i + 1] > 200) continue;
    const [x, y] = [i % side, Math.floor(i / side)];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  }
  if (right < 0) return null;
  return [left, top, right + 1, bottom + 1].map((value) => value / side);
}

/** Return what is searched for: the file that was chosen, or the drawing, its ink in the middle and at full size. */
async function queryPicture() {
  const { base, strokes } = visible();
  if (base && !strokes.length) return base.file;
  let context;
  if (base) {
    const [x, y, width, height] = area(base.picture);
    context = canvasOf(Math.ceil(SENT * width), Math.ceil(SENT * height));
    context.setTransform(SENT, 0, 0, SENT, -SENT * x, -SENT * y);
  } else {
    const box = inkBox();
    if (!box) return null;
    const [left, top, right, bottom] = box;
    const scale = (FILLED * SENT) / Math.max(right - left, bottom - top);
    context = canvasOf(SENT, SENT);
    context.setTransform(scale, 0, 0, scale, SENT / 2 - (scale * (left + right)) / 2, SENT / 2 - (scale * (top + bottom)) / 2);
  }
  drawAll(context);
  return new Promise((done) => context.canvas.toBlob(done, "image/png"));
}

function place(event) {
  const { left, top, width } = paper.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / width];
}

paper.addEventListener("pointerdown", (event) => {
  if (stroke || (event.button !== 0 && event.button !== 5)) return;
  event.preventDefault();
  document.activeElement?.blur();
  paper.setPointerCapture(event.pointerId);
  pointer = event.pointerId;
  clearTimeout(timer);
  const width = find("width").value / 400;
  stroke = { points: [place(event)], width, isEraser: isEraser || event.button === 5 }; // 5: the other end of a pen
  history.push(stroke);
  redraw();
});
paper.addEventListener("pointermove", (event) => {
  showTip(event);
  if (!stroke || event.pointerId !== pointer) return;
  const before = stroke.points.length;
  const passed = event.getCoalescedEvents();
  for (const one of passed.length ? passed : [event]) stroke.points.push(place(one));
  drawStroke(paper.getContext("2d"), stroke, before - 1);
});
for (const name of ["pointerup", "pointercancel"]) {
  paper.addEventListener(name, (event) => {
    if (!stroke || event.pointerId !== pointer) return;
    stroke = null;
    changed();
  });
}
paper.addEventListener("pointerleave", () => { find("tip").hidden = true; });

/** A ring around the pointer, as wide as the pen. */
function showTip(event) {
  const tip = find("tip");
  const [x, y] = place(event);
  const width = (find("width").value / 400) * paper.clientWidth;
  tip.hidden = event.pointerType === "touch" || width < 8;
  Object.assign(tip.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${width}px`, height: `${width}px` });
}

function changed() {
  redraw();
  searchSoon();
}

function undo() {
  if (stroke || !history.length) return;
  history.pop();
  changed();
}

function take(eraser) {
  isEraser = eraser;
  find("use-pen").setAttribute("aria-pressed", String(!eraser));
  find("use-eraser").setAttribute("aria-pressed", String(eraser));
}

find("use-pen").addEventListener("click", () => take(false));
find("use-eraser").addEventListener("click", () => take(true));
find("do-undo").addEventListener("click", undo);
find("do-clear").addEventListener("click", () => {
  history.push({ clear: true });
  changed();
});
document.addEventListener("keydown", (event) => {
  const isText = event.target.matches("input:not([type=range], [type=checkbox])");
  if (event.key !== "z" || event.shiftKey || isText || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  undo();
});
new ResizeObserver(redraw).observe(paper);

// ---- pictures

async function usePicture(file) {
  busy(true);
  try {
    history.push({ picture: await createImageBitmap(file), file });
  } catch {
    tell(new Refused("This file is no picture that the browser can read."), null);
    return;
  }
  redraw();
  search();
}

find("choose").addEventListener("click", () => find("file").click());
find("file").addEventListener("change", () => {
  if (find("file").files.length) usePicture(find("file").files[0]);
  find("file").value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) usePicture(event.clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) usePicture(event.dataTransfer.files[0]);
  else tell(new Refused("Only a picture file can be dropped here. Save the picture first, or copy and paste it."), null);
});

// ---- searching

let about = null; // the index
let timer = 0;
let running = null; // the newest request
let failures = 0;

/** Say whether the results are those of the query that is shown. */
function busy(isBusy) {
  find("results").setAttribute("aria-busy", String(isBusy));
}

function searchSoon() {
  clearTimeout(timer);
  busy(true);
  timer = setTimeout(search, WAIT);
}

async function search() {
  clearTimeout(timer);
  busy(true);
  quiet();
  running?.abort();
  const mine = (running = new AbortController());
  const image = await queryPicture();
  if (mine !== running) return; // another search began meanwhile
  const text = find("words-field").value.trim();
  find("keep").disabled = !image;
  if (!image && !text) {
    running = null;
    showNothing();
    return;
  }
  try {
    about ||= await loadIndex();
    const compares = find("compare").checked;
    const form = new FormData();
    if (image) form.append("image", image, "query");
    if (text) form.append("text", text);
    if (image && find("style").value) form.append("style", find("style").value);
    form.append("k", Math.min(compares ? Infinity : HITS, about.limits.k));
    form.append("compare", compares);
    const start = performance.now();
    const response = await call("v1/search", { method: "POST", body: form, signal: mine.signal });
    const answer = await response.json();
    if (mine !== running) return;
    failures = 0;
    showAnswer(answer, image && text, Math.round(performance.now() - start));
    if (about.views[answer.view] !== answer.stamp) about = await loadIndex(); // the index was exchanged
  } catch (error) {
    if (mine === running) tell(error);
  } finally {
    if (mine === running) {
      running = null;
      busy(false);
    }
  }
}

async function loadIndex() {
  const index = await (await call("v1/index")).json();
  const views = Object.keys(index.views);
  find("size").textContent = `${index.items.toLocaleString("en")} ${index.items === 1 ? "picture" : "pictures"}`;
  find("comparing").hidden = views.length < 2;
  find("compare-label").textContent = `Compare ${[...views.slice(1), views[0]].join(" | ")}`;
  find("words-field").disabled = !index.takes_words;
  if (!index.takes_words) find("words-field").placeholder = "The model of this index reads no words";
  find("styling").hidden = !index.takes_styles;
  offerStyles(index.styles);
  return index;
}

const titled = (name) => name[0].toUpperCase() + name.slice(1);

find("words-field").addEventListener("input", searchSoon);
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
find("compare").addEventListener("change", search);
find("style").addEventListener("change", () => {
  find("forget").hidden = !find("style").value;
  search();
});

// ---- errors

let retrying = 0;

function quiet() {
  clearInterval(retrying);
  find("notice").hidden = true;
}

/** Say what went wrong; try again by itself where that may help, each time after a longer wait. */
function tell(error, again = search) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) console.error(error);
  quiet();
  busy(false);
  find("notice").hidden = false;
  find("notice-text").textContent = error instanceof Refused ? error.message : "The page met an error. Load it again.";
  find("retry").hidden = !again;
  find("retry").onclick = again;
  find("countdown").textContent = "";
  if (!error.seconds) return;
  let left = Math.min(error.seconds * 2 ** failures++, LONGEST_WAIT);
  const count = () => {
    find("countdown").textContent = `Next try in ${left} s`;
    if (left-- <= 0) again();
  };
  count();
  retrying = setInterval(count, 1000);
}

// ---- results

function make(tag, name, ...content) {
  const element = document.createElement(tag);
  element.className = name;
  element.append(...content);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function showNothing() {
  find("status").textContent = "";
  find("results").className = "";
  busy(false);
  find("results").replaceChildren(make("p", "", "Draw, and the pictures that match appear here. A few lines are enough; each further stroke makes the answer better."));
}

function showAnswer(answer, hasBoth, spent) {
  const columns = Object.entries({ ...answer.compared, [answer.view]: answer.hits });
  const compares = columns.length > 1;
  const results = find("results");
  const found = answer.hits.length;
  find("status").replaceChildren();
  if (found) {
    const shown = Math.min(found, compares ? COMPARED : HITS);
    const first = answer.hits[0].caption || answer.hits[0].id;
    find("status").append(`${shown} best of ${about.items.toLocaleString("en")}`, make("span", "time", `, ${spent} ms`), make("span", "unseen", `. First: ${first}`));
  }
  results.className = compares ? "compared" : "";
  if (!found) {
    results.replaceChildren(make("p", "", "The index holds no pictures yet."));
    return;
  }
  results.replaceChildren(...columns.map(([view, hits]) => {
    const [other, others] = columns.find(([name]) => name !== view) || [];
    const list = make("ol", compares ? "rows" : "grid");
    for (const hit of compares ? hits.slice(0, COMPARED) : hits) {
      const button = tile(hit, hasBoth);
      if (compares) button.append(change(hit, others, other, view === answer.view));
      list.append(make("li", "", button));
    }
    list.setAttribute("aria-label", compares ? titled(view) : "Pictures");
    return compares ? make("div", "", make("h2", "", titled(view)), list) : list;
  }));
}

function tile(hit, hasBoth) {
  const image = make("img", "");
  image.alt = "";
  image.loading = "lazy";
  const button = make("button", "hit", image);
  show(image, `v1/items/${hit.key}/thumbnail`).catch(tell);
  const bar = make("span", "score", make("i", ""));
  bar.style.setProperty("--score", `${100 * Math.max(0, hit.score)}%`);
  const number = make("span", "number", hit.score.toFixed(2));
  number.title = "Cosine similarity; 1 is the same picture";
  if (hasBoth) {
    number.append(icon(hit.by === "text" ? "words" : "pen"));
    number.title += hit.by === "text" ? ". Found by the words" : ". Found by the picture";
  }
  button.append(make("span", "place", String(hit.place)), bar, number, make("span", "caption", hit.caption || hit.id));
  button.dataset.key = hit.key;
  button.addEventListener("click", () => open(hit));
  for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
    button.addEventListener(event, () => {
      for (const same of document.querySelectorAll(`.rows .hit[data-key="${hit.key}"]`)) same.classList.toggle("same", on);
    });
  }
  return button;
}

/** Mark how a picture moved from the other view to the answer's own; in the other one, where it went. */
function change(hit, others, other, isOwn) {
  const there = others.find((one) => one.key === hit.key)?.place;
  const steps = (there ?? others.length + 1) - hit.place;
  const mark = make("span", "change");
  const where = there ? `place ${there} in ${other}` : `not among the first ${others.length} in ${other}`;
  mark.title = titled(where);
  if (steps === 0) mark.append("=");
  else if (!isOwn) mark.append(icon("right"), String(there ?? "–"));
  else {
    mark.classList.add(steps > 0 ? "gain" : "loss");
    mark.append(icon(steps > 0 ? "up" : "down"), there ? String(Math.abs(steps)) : "new");
  }
  mark.append(make("span", "unseen", ` (${where})`));
  return mark;
}

function open(hit) {
  const path = `v1/items/${hit.key}/picture`;
  const image = find("viewer-picture");
  image.removeAttribute("src");
  image.alt = hit.caption || hit.id;
  image.onerror = () => show(image, `v1/items/${hit.key}/thumbnail`); // the file is gone: the grey one
  show(image, path).catch(image.onerror);
  find("viewer-caption").textContent = hit.caption || hit.id;
  find("viewer-id").textContent = hit.id;
  find("viewer-file").href = path;
  find("viewer-file").hidden = Boolean(token);
  find("viewer").showModal();
}

find("viewer-close").addEventListener("click", () => find("viewer").close());
find("viewer").addEventListener("click", (event) => {
  if (event.target === find("viewer")) find("viewer").close();
});

// ---- styles

function offerStyles(names) {
  const chosen = find("style").value;
  find("style").replaceChildren(find("style").options[0], ...names.map((name) => new Option(name, name)));
  find("style").value = names.includes(chosen) ? chosen : "";
  find("forget").hidden = !find("style").value;
}

function naming(isOpen) {
  find("naming").hidden = !isOpen;
  find("keep").hidden = isOpen;
  if (!isOpen) return;
  let number = 1;
  while (about?.styles.includes(`style-${number}`)) number++;
  find("style-name").value = `style-${number}`;
  find("style-name").select();
}

async function keep() {
  const name = find("style-name").value;
  try {
    const form = new FormData();
    form.append("image", await queryPicture(), "query");
    await call(`v1/styles/${name}`, { method: "PUT", body: form });
    about = await loadIndex();
    find("style").value = name;
    find("forget").hidden = false;
    naming(false);
    find("style").focus();
    search();
  } catch (error) {
    tell(error, keep);
  }
}

async function forget() {
  try {
    await call(`v1/styles/${find("style").value}`, { method: "DELETE" });
    about = await loadIndex();
    find("style").focus();
    search();
  } catch (error) {
    tell(error, forget);
  }
}

find("keep").addEventListener("click", () => naming(true));
find("forget").addEventListener("click", forget);
find("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  keep();
});
find("naming-cancel").addEventListener("click", () => {
  naming(false);
  find("keep").focus();
});
find("naming").addEventListener("keydown", (event) => {
  if (event.key === "Escape") find("naming-cancel").click();
});

async function start() {
  quiet();
  try {
    about = await loadIndex();
    search();
  } catch (error) {
    tell(error, start);
  }
}

showNothing();
start();
