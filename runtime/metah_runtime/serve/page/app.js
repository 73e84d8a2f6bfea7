"use strict";
/* The page's state and its talk with the server. A query is {file}, {id, name} or {code}. */

const $ = (id) => document.getElementById(id);
const TOKEN = "metah-token";
const state = { index: null, query: null, past: [], pictures: new Map(), own: null, asked: 0, waiting: null };

class Refused extends Error {
  constructor(status, problem) {
    super(problem.error);
    this.status = status;
    this.problem = problem;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { error: "the server does not answer", rule: "", fix: "is it running?" });
  }
  if (answer.ok) return answer;
  let problem;
  try {
    problem = await answer.json();
  } catch {
    problem = { error: `the server answered ${answer.status}`, rule: "", fix: "look at its log" };
  }
  throw new Refused(answer.status, problem);
}

function show(error) {
  const box = $("problem");
  box.hidden = !error;
  if (!error) return;
  const problem = error.problem || { error: String(error), rule: "", fix: "" };
  const lines = [problem.error, problem.rule && `Rule: ${problem.rule}`, problem.fix && `Fix: ${problem.fix}`];
  box.textContent = lines.filter(Boolean).join("\n");
  if (error.status === 401) {
    sessionStorage.removeItem(TOKEN);
    $("unlock").hidden = false;
    $("token").focus();
  }
}

async function start() {
  try {
    const index = await (await ask("v1/index")).json();
    state.index = index;
    $("unlock").hidden = true;
    show(null);
    const count = index.count.toLocaleString("en");
    $("facts").textContent = `${count} images · ${index.bits}${index.detail_bits ? ` + ${index.detail_bits}` : ""} bits · model ${index.bundle.name} on ${index.bundle.device}`;
    $("k").max = index.k.most;
    $("radius").max = index.distances.most;
  } catch (error) {
    show(error);
  }
}

/** The parameters of the search, or null where a number is out of range (then it is marked). */
function reach() {
  const name = $("by-k").checked ? "k" : "radius";
  const field = $(name);
  if (!field.value || !field.checkValidity()) {
    field.reportValidity();
    return null;
  }
  const parameters = new URLSearchParams({ [name]: field.value });
  for (const condition of $("where").value.split(", ")) {
    if (condition.trim()) parameters.append("where", condition.trim());
  }
  if (name === "radius" && state.index) parameters.set("limit", Math.min(200, state.index.limit.most));
  return parameters;
}

async function search(query, { remember = true } = {}) {
  const parameters = reach();
  if (!parameters) return;
  if (query.file && state.index && query.file.size > state.index.max_body) {
    const most = (state.index.max_body / 2 ** 20).toFixed(1);
    show(new Refused(413, { error: `${query.file.name} is too big`, rule: `at most ${most} MiB`, fix: "make it smaller" }));
    return;
  }
  if (state.waiting) state.waiting.abort();
  const mine = ++state.asked;
  state.waiting = new AbortController();
  const options = { method: "POST", signal: state.waiting.signal };
  if (query.file) {
    options.body = query.file;
    options.headers = { "Content-Type": query.file.type || "image/*" };
  } else {
    options.body = JSON.stringify(query.code ? { code: query.code } : { id: query.id });
    options.headers = { "Content-Type": "application/json" };
  }
  document.querySelector("main").classList.add("busy");
  try {
    const started = performance.now();
    const answer = await (await ask(`v1/search?${parameters}`, options)).json();
    if (mine !== state.asked) return;
    show(null);
    if (remember && state.query && state.query !== query) state.past.push(state.query);
    state.query = query;
    draw(query, answer, performance.now() - started);
  } catch (error) {
    if (error.name !== "AbortError" && mine === state.asked) {
      clear(query);
      show(error);
    }
  } finally {
    if (mine === state.asked) document.querySelector("main").classList.remove("busy");
  }
}

function draw(query, answer, milliseconds) {
  $("back").disabled = !state.past.length;
  drawQuery(query);
  $("code").hidden = false;
  $("hex").textContent = answer.code;
  const { unsure } = drawBits($("bits"), answer.code, answer.logits, answer.bits);
  $("sure").textContent = unsure === null
    ? "A stored code: how sure its bits were is not kept."
    : `Filled is 1. Dashed: |tanh(logit)| below ${UNSURE}, a bit that would flip first (${unsure} here).`;
  const near = answer.neighbours;
  $("spread").hidden = !near.length;
  if (near.length) drawHistogram($("histogram"), near.map((one) => one.distance));
  const took = `${milliseconds.toFixed(0)} ms, index version ${answer.version}`;
  const of = answer.within === null ? `${near.length} nearest`
    : answer.cut ? `${near.length} nearest of ${answer.within} within the radius` : `${near.length} within the radius`;
  $("summary").textContent = near.length ? `${of}; ${took}` : `Nothing found; ${took}. A larger radius, or fewer conditions, finds more.`;
  release();
  const picture = state.index && state.index.thumbnails ? fill : null;
  $("gallery").replaceChildren(...near.map((one) => tile(one, choose, picture)));
}

/** Nothing of an earlier answer stays beside an error. */
function clear(query) {
  state.query = query;
  drawQuery(query);
  for (const name of ["code", "spread"]) $(name).hidden = true;
  release();
  $("gallery").replaceChildren();
  $("summary").textContent = "No answer.";
}

/** Show the query at full size: the file itself, or a large picture of an indexed image. */
async function enlarge() {
  const query = state.query;
  if (!query) return;
  const note = $("full-note"), image = $("full-picture");
  note.textContent = query.file ? query.file.name : query.name;
  image.hidden = true;
  $("full").showModal();
  try {
    const data = query.file || await (await ask(`v1/images/${query.id}/thumbnail?size=2048`)).blob();
    if (!$("full").open || state.query !== query) return;
    const address = URL.createObjectURL(data);
    image.onload = image.onerror = () => URL.revokeObjectURL(address);
    image.alt = note.textContent;
    image.src = address;
    image.hidden = false;
  } catch (error) {
    note.textContent = `no picture: ${error.message}`;
  }
}

function choose(neighbour) {
  search({ id: neighbour.id, name: neighbour.name });
  $("answer").focus({ preventScroll: true });
  window.scrollTo({ top: 0 });
}

async function drawQuery(query) {
  const image = $("picture");
  $("asked").textContent = query.file ? query.file.name : query.name || `code ${query.code}`;
  if (state.own) URL.revokeObjectURL(state.own);
  state.own = null;
  let data = query.file || null;
  if (!data && query.id !== undefined && state.index && state.index.thumbnails) {
    try {
      data = await (await ask(`v1/images/${query.id}/thumbnail?size=320`)).blob();
    } catch {
      data = null;
    }
    if (state.query !== query) return;
  }
  $("enlarge").hidden = !data;
  if (data) {
    state.own = URL.createObjectURL(data);
    image.onload = () => sharpen(image);
    image.onerror = () => { $("enlarge").hidden = true; };
    image.alt = `Query: ${$("asked").textContent}`;
    image.src = state.own;
  }
}

/** Fetch a thumbnail when its frame comes near the screen: the token travels in a header. */
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    load(entry.target);
  }
}, { rootMargin: "300px" });

function fill(id, frame) {
  frame.dataset.picture = id;
  watcher.observe(frame);
}

async function load(frame) {
  const id = frame.dataset.picture;
  try {
    const blob = await (await ask(`v1/images/${id}/thumbnail`)).blob();
    if (!frame.isConnected) return;
    const image = element("img", { alt: "", src: URL.createObjectURL(blob) });
    state.pictures.set(image.src, frame);
    image.onload = () => sharpen(image);
    frame.replaceChildren(image);
  } catch {
    frame.textContent = "no picture";
  }
}

/** Small pictures are enlarged with sharp pixels. */
function sharpen(image) {
  image.classList.toggle("small", image.naturalWidth <= 64 && image.naturalHeight <= 64);
}

function release() {
  watcher.disconnect();
  for (const address of state.pictures.keys()) URL.revokeObjectURL(address);
  state.pictures.clear();
}

function take(files) {
  const file = Array.from(files || []).find((one) => one.type.startsWith("image/") || !one.type);
  if (file) search({ file });
  else if (files && files.length) {
    show(new Refused(415, { error: `${files[0].name} is no image`, rule: "a query is one image", fix: "" }));
  }
}

function steps(event) {
  const tiles = Array.from(document.querySelectorAll(".tile"));
  const place = tiles.indexOf(document.activeElement);
  if (place < 0) return;
  const row = tiles.findIndex((one) => one.offsetTop > tiles[0].offsetTop);
  const columns = row < 0 ? tiles.length : row;
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (by === undefined || !tiles[place + by]) return;
  event.preventDefault();
  tiles[place + by].focus();
}

$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { take($("file").files); $("file").value = ""; });
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
$("reach").addEventListener("submit", (event) => event.preventDefault());
$("reach").addEventListener("change", (event) => {
  if (event.target.type === "number") $(`by-${event.target.id}`).checked = true;
  if (state.query) search(state.query, { remember: false });
});
$("enlarge").addEventListener("click", enlarge);
$("full").addEventListener("click", (event) => { if (event.target === $("full")) $("full").close(); });
$("back").addEventListener("click", () => {
  const query = state.past.pop();
  if (query) search(query, { remember: false });
});
$("gallery").addEventListener("keydown", steps);
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value);
  $("token").value = "";
  start();
});
start();
