// Marking: which hand, which point is next, what keys and clicks do. Each change is drawn, remembered for undo, and saved.

import { Saver, hand as fetchHand, imageAddress, overview, thumbnailAddress } from "./server.js";
import { View, make } from "./view.js";

const $ = (id) => document.getElementById(id);
const SHORT = ["U", "R", "1", "2", "3", "4", "5"];
const NAMES = ["ulna", "radius", "1 thumb", "2 index", "3 middle", "4 ring", "5 little"];
const WHERE = ["distal end of the ulna", "distal end of the radius", "thumb: base of its proximal phalanx", "index finger: base of its proximal phalanx", "middle finger: base of its proximal phalanx", "ring finger: base of its proximal phalanx", "little finger: base of its proximal phalanx"];
const SPOTS = [[47, 114], [68, 112], [92, 80], [75, 60], [60, 58], [45, 60], [28, 69]];
const NEAR = { mouse: 9, pen: 12, touch: 24 }; // pixels of the screen within which a press takes hold of a point
const SMALLEST = 8; // pixels of a rectangle's side that make a picture
const IDLE_S = 60; // a pause longer than this is no work
const HOLD_MS = 700; // the finished crop is seen for so long before the next hand comes
const CROP_MS = 3000; // a crop that takes longer to come is not waited for
const LOOK_MS = 20_000; // how often the page looks for what other tabs and programs did

const view = new View($("stage"), $("picture"), $("overlay"));
let hands = []; // { id, state, flagged, seconds, doubtful } of every hand
let suggestedIds = new Set();
let current = null; // the hand shown
let chosen = 6; // the point that keys move
let mirrored = false;
let holding = null; // { id, look }: the hand that was just completed; it is left when it is saved, and nothing is remarked
let cursor = null; // where the pointer is on the stage
let history = []; // { id, before, after }
let future = [];
let lastActive = 0;
let shown = "loading"; // whether the picture on the stage is that of the hand shown: "loading", "ready", "failed"
let ticket = 0; // of the newest wish to open a hand
let steps = Promise.resolve(); // undo and redo, one after the other
const ahead = new Map(); // images being loaded

// ---- a hand and its points -----------------------------------------------------------------------------------------

const empty = () => current.points.every((p) => !p);
const suggestion = () => (current && empty() && !current.skipped ? current.suggested : null);
const labels = () => SHORT.map((label, i) => (i === chosen && !suggestion() ? NAMES[i] : label));
const nextPoint = (h = current) => h.points.findIndex((p) => !p);
const stateOf = (h) => (h.skipped ? "skipped" : h.points.every(Boolean) ? "done" : h.points.some(Boolean) ? "begun" : "open");
const undone = (h) => h.state === "open" || h.state === "begun";
const left = (h) => undone(h) || h.doubtful; // an implausible hand is to do until somebody confirms or corrects it
const doubtful = (h) => stateOf(h) === "done" && h.remarks.length > 0 && !h.confirmed;
const copy = (h) => ({ points: [...h.points], skipped: h.skipped, flagged: h.flagged });
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// Change the hand shown, by a function on a copy of its marks; remembered, drawn, saved. Says whether it was done: nobody can
// have seen a hand that is loading yet, and one whose image cannot be read may be skipped or flagged, no more.
function change(edit, touchesPoints = true) {
  if (shown === "loading" || (touchesPoints && shown === "failed")) return false;
  const before = copy(current);
  const after = copy(current);
  edit(after);
  if (touchesPoints) after.points = after.points.map((p) => p && view.clamp(p));
  if (same(before, after)) return true;
  history.push({ id: current.id, before, after });
  future = [];
  put(after);
  return true;
}

function put(marks) {
  const now = performance.now();
  current.seconds += Math.min(IDLE_S, (now - lastActive) / 1000);
  lastActive = now;
  if (!same(current.points, marks.points) || current.skipped !== marks.skipped) holding = null;
  if (!same(current.points, marks.points)) { // the server will tell what is to be remarked now
    const untouched = current.untouched.map((was, i) => was && same(current.points[i], marks.points[i]));
    Object.assign(current, { remarks: [], confirmed: false, untouched });
  }
  Object.assign(current, { ...marks, points: [...marks.points] });
  note(current);
  saver.save(current);
  draw();
}

function note(h) {
  const listed = hands.find((each) => each.id === h.id);
  return Object.assign(listed, { state: stateOf(h), flagged: h.flagged, seconds: h.seconds, doubtful: doubtful(h) });
}

function setPoint(place) {
  const index = nextPoint();
  if (index < 0 && holding) return; // a click too many: the next hand is on its way
  if (index < 0) return say("All seven are set. Drag a point, or press its number to set it again.");
  if (!change((marks) => { marks.points[index] = place; marks.skipped = ""; chosen = index; })) return;
  if (nextPoint() < 0) hold("done", true);
}

// The hand is complete. It is left when the server has it and remarks nothing; before that, with `look`, its crop is seen.
function hold(what, look) {
  $("last").textContent = `Last: ${current.id}, ${what}. Undo (Z) goes back to it.`;
  holding = { id: current.id, look };
  draw();
}

async function saved(mine) {
  note(mine);
  draw();
  const mineToLeave = holding;
  if (mineToLeave?.id !== mine.id || doubtful(mine)) return; // held: somebody must look
  if (mineToLeave.look) await cropSeen();
  while (holding === mineToLeave && (held || document.querySelector("dialog[open]"))) await pause(50); // a point is dragged, a reason typed
  if (holding === mineToLeave) leave();
}

function leave() {
  holding = null;
  go(+1, left);
}

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

async function cropSeen() {
  const shown = () => $("thumbnail").getAttribute("src") === thumbnailAddress(current.id, current.points) && $("thumbnail").complete;
  for (let waited = 0; waited < CROP_MS && !shown(); waited += 20) await pause(20);
  await pause(HOLD_MS);
}

function confirm() {
  if (!doubtful(current)) return say("Nothing is to be confirmed in this hand.");
  current.confirmed = true;
  note(current);
  saver.save(current);
  $("last").textContent = `Last: ${current.id}, confirmed.`;
  leave();
}

function accept() {
  const offered = suggestion();
  if (!offered && holding) return;
  if (!offered) return say("No suggestion for this hand.");
  if (!change((marks) => { marks.points = [...offered]; })) return;
  hold("suggestion accepted", false); // its crop was seen
}

function nudge(dx, dy) {
  if (!current.points[chosen]) return;
  const [x, y] = current.points[chosen];
  change((marks) => { marks.points[chosen] = [x + dx, y + dy]; });
}

function remove(index) {
  if (index < 0 || !current.points[index]) return;
  change((marks) => { marks.points[index] = null; });
}

// A mirrored hand marked by the places of a usual one: ulna for radius, thumb for little finger.
function swap() {
  change((marks) => { const [u, r, ...f] = marks.points; marks.points = [r, u, ...f.reverse()]; });
}

const step = (...which) => { steps = steps.then(() => stepOnce(...which)); };

async function stepOnce(from, to, which) {
  const action = from.at(-1);
  if (!action) return say(which === "before" ? "Nothing to undo." : "Nothing to redo.");
  if (action.id !== current.id) await open(action.id);
  if (action.id !== current.id || shown === "loading") return; // it could not be opened, or another hand was wanted meanwhile
  if (!same(copy(current), which === "before" ? action.after : action.before)) {
    forget(action.id);
    return say("This hand was changed elsewhere since; your steps in it cannot be undone.");
  }
  from.pop();
  to.push(action);
  put(action[which]);
  const moved = action.before.points.findIndex((p, i) => !same(p, action.after.points[i]));
  if (moved >= 0) chosen = moved;
  draw();
}

// No more undo or redo in a hand: it is not as those steps left it.
function forget(id) {
  history = history.filter((action) => action.id !== id);
  future = future.filter((action) => action.id !== id);
}

function askSkip() {
  if (current.skipped) return change((marks) => { marks.skipped = ""; }, false);
  if (shown === "loading") return;
  $("skip").dataset.hand = current.id;
  $("reason").value = "";
  $("skip").returnValue = "cancel";
  $("skip").showModal();
}

$("skip").addEventListener("close", () => {
  if ($("skip").returnValue !== "skip") return;
  if ($("skip").dataset.hand !== current.id) return;
  const reason = $("reason").value.trim().replace(/\s+/g, " ") || "no reason given";
  if (change((marks) => { marks.skipped = reason; }, false)) go(+1, left);
});

// ---- which hand ----------------------------------------------------------------------------------------------------

const FILTERS = { all: () => true, left, done: (h) => h.state === "done", skipped: (h) => h.state === "skipped", flagged: (h) => h.flagged, doubtful: (h) => h.doubtful, suggested: (h) => left(h) && suggestedIds.has(h.id) };
const wanted = (h) => FILTERS[$("filter").value](h);

// The hand before or after the one shown that passes; once around the list.
function neighbour(direction, passes, from = current?.id) {
  const start = hands.findIndex((h) => h.id === from);
  for (let i = 1; i < hands.length; i++) {
    const h = hands[(start + direction * i + i * hands.length) % hands.length];
    if (passes(h)) return h;
  }
  return null;
}

function go(direction, passes = wanted, from = current?.id) {
  const next = neighbour(direction, (h) => passes(h) && (passes !== left || $("filter").value === "all" || wanted(h)), from);
  if (next) return open(next.id, passes === left ? left : null);
  if (from !== current?.id) return open(from);
  say(hands.some(left) ? "No other hand under this filter." : "All hands are done or skipped.");
  draw();
}

async function open(id, passes = null) {
  const mine = ++ticket;
  holding = null;
  shown = "loading";
  $("stage").classList.add("loading");
  try {
    const h = saver.waiting.get(id) ?? (await fetchHand(id)); // from disk, unless what we know of it is newer
    if (mine !== ticket) return;
    const listed = note(h);
    if (passes && !passes(listed)) return go(+1, passes, id); // done in another tab meanwhile
    current = h;
    chosen = Math.max(0, nextPoint(h) < 0 ? 6 : nextPoint(h) - 1);
    lastActive = performance.now();
    const picture = view.show(imageAddress(id), h.width, h.height);
    draw();
    await picture;
    if (mine !== ticket) return;
    shown = "ready";
    $("stage").classList.remove("loading");
    lastActive = performance.now();
  } catch (error) {
    if (mine !== ticket) return;
    if (current?.id === id) shown = "failed";
    say(`${id}: ${await why(id, error)}`);
    if (mine === ticket && current && current.id !== id) return open(current.id); // back to the hand that is shown
  }
  loadAhead();
}

async function why(id, error) {
  const answer = await fetch(imageAddress(id)).catch(() => null);
  return answer && !answer.ok ? (await answer.json().catch(() => ({}))).error ?? error.message : error.message;
}

// The pictures that may be wanted next: of the next two hands to do, of the hands before and after.
function loadAhead() {
  if (!current) return;
  const toDo = (h) => left(h) && wanted(h);
  const first = neighbour(+1, toDo);
  for (const next of [first, first && neighbour(+1, toDo, first.id), neighbour(+1, wanted), neighbour(-1, wanted)]) {
    if (!next || ahead.has(next.id)) continue;
    const image = new Image();
    image.src = imageAddress(next.id);
    ahead.set(next.id, image);
    if (ahead.size > 8) ahead.delete(ahead.keys().next().value);
  }
}

// ---- saving --------------------------------------------------------------------------------------------------------

const saver = new Saver({
  trouble: (text) => warn("saving", text),
  saved,
  conflict: (mine, theirs) => { questions = questions.then(() => settle(mine, theirs)); },
});
let questions = Promise.resolve(); // one after the other

const warnings = new Map(); // of saving, of reading
function warn(about, text) {
  warnings.set(about, text);
  $("banner").textContent = [...warnings.values()].filter(Boolean).join(" ");
  $("banner").hidden = !$("banner").textContent;
}

async function settle(mine, theirs) {
  if (mine.version === theirs.version) return; // settled by the question before
  $("conflict-hand").textContent = mine.id;
  $("conflict").showModal();
  const answer = await new Promise((answered) => { // not by "close": it comes later, and a click before it would be lost
    $("conflict").addEventListener("submit", (event) => answered(event.submitter.value), { once: true });
    $("conflict").addEventListener("cancel", () => answered("theirs"), { once: true });
  });
  mine.version = theirs.version;
  if (answer === "mine") {
    saver.save(mine);
  } else {
    forget(mine.id);
    Object.assign(mine, theirs);
  }
  note(mine);
  draw();
}

addEventListener("beforeunload", (event) => { if (saver.pending) event.preventDefault(); });

// ---- drawing -------------------------------------------------------------------------------------------------------

function say(text) {
  $("next").dataset.said = text;
  draw();
}

const span = (points, axis) => Math.ceil(Math.max(...points.map((p) => p[axis]))) - Math.floor(Math.min(...points.map((p) => p[axis]))) + 1;

let thumbnailTimer = 0;
function drawThumbnail(points) {
  const set = points.filter(Boolean);
  clearTimeout(thumbnailTimer);
  const show = (address) => { $("thumbnail").hidden = !address; $("no-thumbnail").hidden = Boolean(address); if (address && $("thumbnail").getAttribute("src") !== address) $("thumbnail").src = address; };
  $("no-thumbnail").textContent = set.length < 2 ? "The network's view appears with the second point." : "The network's view appears when the rectangle is less flat.";
  if (set.length < 2 || Math.min(span(set, 0), span(set, 1)) < SMALLEST) return show("");
  thumbnailTimer = setTimeout(() => show(thumbnailAddress(current.id, set)), 30);
}
$("thumbnail").addEventListener("error", () => { $("thumbnail").hidden = true; $("no-thumbnail").hidden = false; });

function draw() {
  if (!current) return;
  const offered = suggestion();
  const next = nextPoint();
  const shown = offered ?? current.points;
  view.draw({ points: current.points, suggested: offered, untouched: current.untouched, chosen, labels: labels() });
  $("hand").textContent = current.id;
  const state = stateOf(current);
  const asSuggested = state === "skipped" ? 0 : current.untouched.filter(Boolean).length;
  $("state").textContent = [state === "skipped" ? `skipped: ${current.skipped}` : state, doubtful(current) ? "in doubt" : "", asSuggested ? `${asSuggested} points as suggested` : "", current.flagged ? "flagged" : ""].filter(Boolean).join(", ");
  $("state").className = current.flagged ? "flagged" : doubtful(current) ? "doubtful" : state;
  $("next").textContent = $("next").dataset.said || (offered ? "Suggested: Enter accepts; click to mark it yourself" : next >= 0 ? `Next: ${WHERE[next]}` : doubtful(current) ? "Please check this hand" : holding ? "Done: this is what the network will see" : "All seven points are set");
  $("thumbnail").closest("figure").classList.toggle("whole", next < 0);
  drawRemarks(offered);
  $("drawing").setAttribute("transform", mirrored ? "translate(120 0) scale(-1 1)" : "");
  [...$("spots").children].forEach((spot, i) => spot.setAttribute("class", i === next ? "next" : current.points[i] ? "set" : ""));
  const set = shown.filter(Boolean);
  $("rectangle").textContent = set.length > 1 ? `rectangle ${span(set, 0)} × ${span(set, 1)} of ${current.width} × ${current.height} pixels` : "";
  drawThumbnail(shown);
  drawProgress();
  for (const button of $("buttons").children) button.disabled = button.dataset.key === "Enter" && !offered;
}

// What the server remarks about the hand shown, or about the points that are offered for it.
function drawRemarks(offered) {
  const remarks = offered ? current.suggested_remarks : current.skipped ? [] : current.remarks;
  $("remarks").hidden = remarks.length === 0;
  $("remarks").classList.toggle("confirmed", !offered && current.confirmed);
  $("remarks-title").textContent = offered ? "About the suggested points" : current.confirmed ? "Confirmed by you" : "This looks wrong";
  $("confirm").hidden = !doubtful(current);
  const list = [...$("remarks-list").children].map((item) => item.textContent);
  if (!same(list, remarks)) $("remarks-list").replaceChildren(...remarks.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

function drawProgress() {
  const count = (passes) => hands.filter(passes).length;
  const times = hands.filter((h) => h.state === "done" && h.seconds > 0).map((h) => h.seconds).sort((a, b) => a - b);
  const each = times.length ? times[times.length >> 1] : 0;
  const toDo = count(undone);
  const doubts = count(FILTERS.doubtful);
  const eta = each && toDo ? `, about ${Math.max(1, Math.round((each * toDo) / 60))} min to go` : "";
  $("progress").textContent = `${count(FILTERS.done)} done${doubts ? ` (${doubts} in doubt)` : ""}, ${count(FILTERS.skipped)} skipped, ${count(FILTERS.flagged)} flagged, ${toDo} left of ${hands.length}${each ? `; ${each.toFixed(1)} s a hand${eta}` : ""}`;
}

// ---- keys and buttons ----------------------------------------------------------------------------------------------

const tone = (name, by) => { const slider = $(name); slider.value = +slider.value + by; view.setTone({ [name]: +slider.value }); };
const zoomAt = (factor) => { lookCloser(); view.zoom(factor, ...(cursor ?? [])); };

const ACTIONS = [
  { keys: ["n", "PageDown"], shown: "N", does: "next hand", button: "Next", run: () => go(+1) },
  { keys: ["p", "PageUp"], shown: "P", does: "previous hand", button: "Previous", run: () => go(-1) },
  { keys: ["Enter"], shown: "Enter", does: "accept the suggested points", button: "Accept", run: accept },
  { keys: ["a"], shown: "A", does: "confirm that the points are right, although something is remarked", run: confirm },
  { keys: ["z", "ctrl+z"], shown: "Z", does: "undo, in earlier hands too", button: "Undo", run: () => step(history, future, "before") },
  { keys: ["y", "ctrl+y", "ctrl+shift+z"], shown: "Y", does: "redo", button: "Redo", run: () => step(future, history, "after") },
  { keys: ["s"], shown: "S", does: "skip this hand with a reason, or take it up again", button: "Skip", run: askSkip },
  { keys: ["f"], shown: "F", does: "flag for a second look", button: "Flag", run: () => change((marks) => { marks.flagged = !marks.flagged; }, false) },
  { keys: ["m"], shown: "M", does: "mirror the diagram: thumb on the other side", button: "Mirror", run: () => { mirrored = !mirrored; draw(); } },
  { keys: ["x"], shown: "X", does: "swap for a mirrored hand: ulna and radius, thumb and little finger …", button: "Swap", run: swap },
  { keys: ["Delete", "Backspace"], shown: "Delete", does: "delete the chosen point", button: "Delete", run: () => remove(chosen) },
  ...[..."1234567"].map((key, i) => ({ keys: [key], shown: i ? "" : "1 … 7", does: "choose a point; pressed twice, set it again", run: () => (chosen === i && current.points[i] ? remove(i) : ((chosen = i), lookCloser(), draw())) })),
  { keys: ["ArrowLeft"], held: true, shown: "Arrows", does: "move the chosen point by a pixel; with Shift by ten", run: (e) => nudge(e.shiftKey ? -10 : -1, 0) },
  { keys: ["ArrowRight"], held: true, run: (e) => nudge(e.shiftKey ? 10 : 1, 0) },
  { keys: ["ArrowUp"], held: true, run: (e) => nudge(0, e.shiftKey ? -10 : -1) },
  { keys: ["ArrowDown"], held: true, run: (e) => nudge(0, e.shiftKey ? 10 : 1) },
  { keys: ["c"], shown: "C", does: "set the next point at the cursor, or in the middle of the view", run: () => { const at = view.toImage(...(cursor ?? [$("stage").clientWidth / 2, $("stage").clientHeight / 2])); if (view.inside(at)) setPoint(at); } },
  { keys: ["+", "="], held: true, shown: "+ −", does: "zoom to the cursor", button: "Zoom in", run: () => zoomAt(1.25) },
  { keys: ["-"], held: true, button: "Zoom out", run: () => zoomAt(0.8) },
  { keys: ["0"], shown: "0", does: "the whole image", button: "Fit", run: () => view.fit() },
  { keys: ["h", "j", "k", "l"], held: true, shown: "H J K L", does: "move the picture left, down, up, right", run: (e) => { lookCloser(); view.pan(...({ h: [60, 0], j: [0, -60], k: [0, 60], l: [-60, 0] })[e.key.toLowerCase()]); } },
  { keys: ["b"], held: true, shown: "B / V", does: "brighter, darker", run: () => tone("brightness", 0.1) },
  { keys: ["v"], held: true, run: () => tone("brightness", -0.1) },
  { keys: ["]"], held: true, shown: "[ ]", does: "less, more contrast", run: () => tone("contrast", 0.1) },
  { keys: ["["], held: true, run: () => tone("contrast", -0.1) },
  { keys: ["."], held: true, shown: ", .", does: "lower, higher gamma", run: () => tone("gamma", 0.1) },
  { keys: [","], held: true, run: () => tone("gamma", -0.1) },
  { keys: ["i"], shown: "I", does: "invert grey", button: "Invert", run: () => view.setTone({ invert: !view.tone.invert }) },
  { keys: ["r"], shown: "R", does: "reset the display", run: resetTone },
  { keys: ["g"], shown: "G", does: "filter: all, to do, done, skipped, flagged, in doubt, suggested", run: () => { const f = $("filter"); f.selectedIndex = (f.selectedIndex + 1) % f.options.length; f.dispatchEvent(new Event("change")); } },
  { keys: ["?"], shown: "?", does: "these keys", button: "Keys", run: showHelp },
];
const BY_KEY = new Map(ACTIONS.flatMap((action) => action.keys.map((key) => [key, action])));

function showHelp() {
  $("help").showModal();
  $("help").scrollTop = 0; // not where its button is
}

function resetTone() {
  for (const name of ["brightness", "contrast", "gamma"]) $(name).value = 1;
  view.setTone({ brightness: 1, contrast: 1, gamma: 1, invert: false });
}

function perform(action, event) {
  if (!current) return;
  $("next").dataset.said = "";
  action.run(event);
}

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  if (event.target.matches("input, select")) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === " " && !event.target.matches("button")) { spaceHeld = true; return event.preventDefault(); }
  if (event.key === "Enter" && event.target.matches("button")) return;
  const plain = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const key = event.ctrlKey ? `ctrl+${event.shiftKey ? "shift+" : ""}${plain}` : plain;
  const action = BY_KEY.get(key);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !action.held) return; // a key held down accepts one hand, not all
  perform(action, event);
});
addEventListener("keyup", (event) => { if (event.key === " ") spaceHeld = false; });
addEventListener("blur", () => { spaceHeld = false; });

for (const action of ACTIONS) {
  if (action.shown) $("keys").append(Object.assign(document.createElement("dt"), { textContent: action.shown }), Object.assign(document.createElement("dd"), { textContent: action.does }));
  if (!action.button) continue;
  const button = Object.assign(document.createElement("button"), { textContent: action.button, title: `${action.does ?? action.button} (${action.shown ?? action.keys[0]})` });
  button.dataset.key = action.keys[0];
  button.addEventListener("click", (event) => { perform(action, event); $("stage").focus({ preventScroll: true }); });
  $("buttons").append(button);
}
$("help-open").addEventListener("click", showHelp);
$("confirm").addEventListener("click", (event) => { perform(BY_KEY.get("a"), event); $("stage").focus({ preventScroll: true }); });
for (const name of ["brightness", "contrast", "gamma"]) $(name).addEventListener("input", () => view.setTone({ [name]: +$(name).value }));
$("filter").addEventListener("change", () => { $("filter").blur(); if (current && !wanted(hands.find((h) => h.id === current.id))) go(+1); });

// ---- mouse, pen, touch ---------------------------------------------------------------------------------------------

const stage = $("stage");
const fingers = new Map(); // pointers that are down: id -> [x, y]
let spaceHeld = false;
let held = null; // { kind: "tap" | "point" | "pan" | "pinch", … }

const onStage = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

function lookCloser() { // whoever zooms or moves the picture of a finished hand wants to stay
  if (!holding) return;
  holding = null;
  draw();
}

function pointAt(place, reach) {
  const shown = suggestion() ?? current.points;
  let best = -1;
  let nearest = reach;
  shown.forEach((point, i) => {
    if (!point) return;
    const [x, y] = view.toStage(point);
    const distance = Math.hypot(x - place[0], y - place[1]);
    if (distance <= nearest) [best, nearest] = [i, distance];
  });
  return best;
}

stage.addEventListener("pointerdown", (event) => {
  if (!current || shown === "loading") return;
  event.preventDefault();
  stage.focus({ preventScroll: true });
  stage.setPointerCapture(event.pointerId);
  const place = onStage(event);
  fingers.set(event.pointerId, place);
  if (fingers.size === 2) { held = { kind: "pinch", before: [...fingers.values()].map((p) => [...p]) }; return; }
  if (event.button !== 0 || spaceHeld) { held = { kind: "pan" }; stage.classList.add("panning"); return; }
  const index = pointAt(place, NEAR[event.pointerType] ?? 9);
  held = index < 0 ? { kind: "tap", id: current.id } : { id: current.id, kind: "point", index, start: place, offered: suggestion(), points: [...(suggestion() ?? current.points)], moved: false };
  if (index >= 0) { chosen = index; draw(); }
});

stage.addEventListener("pointermove", (event) => {
  const place = onStage(event);
  cursor = place;
  const before = fingers.get(event.pointerId);
  if (!before || !held) return;
  fingers.set(event.pointerId, place);
  if (held.kind !== "tap" && held.kind !== "point") lookCloser();
  if (held.kind === "pan") view.pan(place[0] - before[0], place[1] - before[1]);
  if (held.kind === "pinch" && fingers.size === 2) {
    const now = [...fingers.values()];
    const middle = (pair) => [(pair[0][0] + pair[1][0]) / 2, (pair[0][1] + pair[1][1]) / 2];
    const apart = (pair) => Math.hypot(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1]) || 1;
    const [a, b] = [middle(held.before), middle(now)];
    view.pan(b[0] - a[0], b[1] - a[1]);
    view.zoom(apart(now) / apart(held.before), ...b);
    held.before = now.map((p) => [...p]);
  }
  if (held.kind === "point") {
    if (!held.moved && Math.hypot(place[0] - held.start[0], place[1] - held.start[1]) < 3) return;
    held.moved = true;
    held.points[held.index] = view.clamp(view.toImage(...place));
    view.draw({ points: held.points, suggested: null, untouched: current.untouched, chosen, labels: labels() });
    drawThumbnail(held.points);
  }
});

function release(event) {
  const was = held;
  const place = fingers.get(event.pointerId);
  fingers.delete(event.pointerId);
  stage.classList.remove("panning");
  if (was?.kind === "pinch" && fingers.size > 0) return; // until the last finger is up
  held = null;
  if (event.type === "pointercancel" || !was || !current || (was.id && was.id !== current.id)) return draw(); // not on another hand
  $("next").dataset.said = "";
  if (was.kind === "point" && was.moved) change((marks) => { marks.points = was.points; });
  const own = was.kind === "point" && !was.moved && was.offered; // a click beside a suggestion begins the hand's own marks
  if ((was.kind === "tap" || own) && place) {
    const at = view.toImage(...place);
    if (view.inside(at)) setPoint(at);
    else say("That is beside the image.");
  }
}
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", release);
stage.addEventListener("pointerleave", () => { cursor = null; });
stage.addEventListener("contextmenu", (event) => event.preventDefault());
stage.addEventListener("wheel", (event) => { event.preventDefault(); lookCloser(); view.zoom(Math.exp(-event.deltaY * 0.0015), ...onStage(event)); }, { passive: false });

// ---- begin ---------------------------------------------------------------------------------------------------------

for (const [x, y] of SPOTS) $("spots").append(make("circle", { cx: x, cy: y, r: 5 }));
const all = await overview().catch((error) => { warn("reading", `${error.message} Then load this page again.`); throw error; });
hands = all.hands;
suggestedIds = new Set(all.suggested);
setInterval(async () => { // what other tabs did
  if (document.hidden || saver.pending) return;
  try {
    const fresh = await overview();
    warn("reading", "");
    if (saver.pending) return;
    hands = fresh.hands;
    draw();
  } catch (error) {
    warn("reading", `What is on disk cannot be read now: ${error.message}`);
  }
}, LOOK_MS);
$("file").textContent = `Saved in ${all.table}`;
$("filter").querySelector("[value=suggested]").hidden = suggestedIds.size === 0;
await open((hands.find(undone) ?? hands.find(left) ?? hands[0]).id);
stage.focus({ preventScroll: true });
