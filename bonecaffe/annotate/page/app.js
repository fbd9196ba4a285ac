// Marking: the hand shown, the next point, and what keys and clicks do. Each change is drawn, kept for undo, and saved.

import { Saver, hand as fetchHand, imageAddress, overview, thumbnailAddress } from "./server.js";
import { View, make } from "./view.js";

const $ = (id) => document.getElementById(id);
const SHORT = ["U", "R", "1", "2", "3", "4", "5"];
const NAMES = ["ulna", "radius", "1 thumb", "2 index", "3 middle", "4 ring", "5 little"];
const WHERE = ["distal end of the ulna", "distal end of the radius", "thumb: base of its proximal phalanx", "index finger: base of its proximal phalanx", "middle finger: base of its proximal phalanx", "ring finger: base of its proximal phalanx", "little finger: base of its proximal phalanx"];
const SPOTS = [[47, 114], [68, 112], [92, 80], [75, 60], [60, 58], [45, 60], [28, 69]];
const NEAR = { mouse: 9, pen: 12, touch: 24 }; // a press within so many screen pixels of a point grabs it
const SMALLEST = 8; // shortest side, in pixels, of a rectangle that is shown as a crop
const IDLE_S = 60; // a longer pause does not count as working time
const HOLD_MS = 700; // the finished crop is shown for this long before the next hand opens
const CROP_MS = 3000; // the page waits no longer than this for a crop
const LOOK_MS = 20_000; // interval between checks for changes by other tabs and programs

const view = new View($("stage"), $("picture"), $("overlay"));
let hands = []; // { id, state, flagged, seconds, doubtful } of every hand
let suggestedIds = new Set();
let current = null; // the hand shown
let chosen = -1; // the point that keys move; -1 for none
let mirrored = false;
let holding = null; // { id, look }: the hand just completed; the next one opens once it is saved and has no remarks
let cursor = null; // where the pointer is on the stage
let history = []; // steps that can be undone: { id, before, after }
let future = []; // steps that can be redone
let message = null; // { text, of }: a message in the status line, and the state of the page that it is about
let lastActive = 0;
let shown = "loading"; // the picture on the stage: "loading", "ready" or "failed"
let ticket = 0; // number of the latest request to open a hand
let steps = Promise.resolve(); // undo and redo, one after the other
const ahead = new Map(); // images being loaded

// ---- a hand and its points -----------------------------------------------------------------------------------------

const empty = () => current.points.every((p) => !p);
const suggestion = () => (current && empty() && !current.skipped ? current.suggested : null);
const labels = () => SHORT.map((label, i) => (i === chosen ? NAMES[i] : label));
const nextPoint = (h = current) => h.points.findIndex((p) => !p);
const countOf = (h) => h.points.filter(Boolean).length;
const stateOf = (h) => (h.skipped ? "skipped" : countOf(h) === h.points.length ? "done" : countOf(h) ? "partial" : "unmarked");
const stateText = (h) => ({ skipped: `skipped: ${h.skipped}`, done: "done", partial: `${countOf(h)} of ${h.points.length} points`, unmarked: "not marked" })[stateOf(h)];
const incomplete = (h) => h.state === "unmarked" || h.state === "partial";
const left = (h) => incomplete(h) || h.doubtful; // an implausible hand counts as to do until it is confirmed or corrected
const doubtful = (h) => stateOf(h) === "done" && h.remarks.length > 0 && !h.confirmed;
const copy = (h) => ({ points: [...h.points], skipped: h.skipped, flagged: h.flagged });
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// Change the hand shown, by a function on a copy of its marks. The change is kept for undo, drawn and saved. Returns whether
// it was allowed: a hand that is still loading has not been seen, and a hand without a readable image can only be skipped or
// flagged.
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
  if (!same(current.points, marks.points)) { // the server answers with the new remarks
    const untouched = current.untouched.map((was, i) => was && same(current.points[i], marks.points[i]));
    Object.assign(current, { remarks: [], confirmed: false, untouched });
  }
  Object.assign(current, { ...marks, points: [...marks.points] });
  note(current);
  saver.save(current);
  draw();
}

function note(h) {
  const entry = hands.find((each) => each.id === h.id);
  return Object.assign(entry, { state: stateOf(h), flagged: h.flagged, seconds: h.seconds, doubtful: doubtful(h) });
}

function setPoint(place) {
  const index = nextPoint();
  if (index < 0 && holding && !doubtful(current)) return; // one click too many: the next hand is about to open
  if (index < 0) return showStatus("All seven points are set. Drag a point to move it, or press its number twice to set it again.");
  if (!change((marks) => { marks.points[index] = place; marks.skipped = ""; chosen = index; })) return;
  if (nextPoint() < 0) hold("done", true);
}

// The hand is complete. The next one opens when the server has saved it without remarks; with `look`, its crop is shown first.
function hold(what, look) {
  $("last").textContent = `Last: ${current.id}, ${what}. Undo (Z) goes back to it.`;
  holding = { id: current.id, look };
  draw();
}

async function saved(mine) {
  note(mine);
  draw();
  const completed = holding;
  if (completed?.id !== mine.id || doubtful(mine)) return; // stay: somebody must look at it
  if (completed.look) await cropSeen();
  while (holding === completed && (gesture || document.querySelector("dialog[open]"))) await pause(50); // a drag, or a reason being typed
  if (holding === completed) leave();
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
  if (!doubtful(current)) return showStatus("This hand has nothing to confirm.");
  current.confirmed = true;
  note(current);
  saver.save(current);
  $("last").textContent = `Last: ${current.id}, confirmed.`;
  leave();
}

function accept() {
  const offered = suggestion();
  if (!offered && holding) return;
  if (!offered) return showStatus(empty() ? "There is no suggestion for this hand." : "This hand has points already. N opens the next hand.");
  if (!change((marks) => { marks.points = [...offered]; })) return;
  hold("suggestion accepted", false); // its crop has been shown
}

// Move the chosen point. Moving a suggested point accepts the other six, as dragging it does.
function nudge(dx, dy) {
  const points = suggestion() ?? current.points;
  if (!points[chosen]) return suggestion() && showStatus("Choose a point first: press 1 to 7.");
  const [x, y] = points[chosen];
  change((marks) => { marks.points = [...points]; marks.points[chosen] = [x + dx, y + dy]; });
}

function remove(index) {
  if (index < 0 || !current.points[index]) return;
  change((marks) => { marks.points[index] = null; });
}

// For a mirrored hand that was marked in the usual order: exchange ulna and radius, thumb and little finger, and so on.
function swap() {
  change((marks) => { const [u, r, ...f] = marks.points; marks.points = [r, u, ...f.reverse()]; });
}

const step = (...which) => { steps = steps.then(() => stepOnce(...which)); };

async function stepOnce(from, to, which) {
  const action = from.at(-1);
  if (!action) return showStatus(which === "before" ? "Nothing to undo." : "Nothing to redo.");
  if (action.id !== current.id) await open(action.id);
  if (action.id !== current.id || shown === "loading") return; // it could not be opened, or another hand was opened meanwhile
  if (!same(copy(current), which === "before" ? action.after : action.before)) {
    forget(action.id);
    return showStatus("This hand was changed elsewhere since. Your steps in it cannot be undone.");
  }
  from.pop();
  to.push(action);
  put(action[which]);
  const moved = action.before.points.findIndex((p, i) => !same(p, action.after.points[i]));
  if (moved >= 0) chosen = moved;
  if (suggestion()) chosen = -1; // an arrow key must not accept a suggestion by accident
  $("last").textContent = which === "before" ? `Undone in ${action.id}. Redo (Y) does it again.` : `Redone in ${action.id}.`;
  draw();
}

// Remove the undo and redo steps of a hand that is no longer as those steps left it.
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

const FILTERS = { all: () => true, left, unmarked: (h) => h.state === "unmarked", partial: (h) => h.state === "partial", done: (h) => h.state === "done", skipped: (h) => h.state === "skipped", flagged: (h) => h.flagged, doubtful: (h) => h.doubtful, suggested: (h) => left(h) && suggestedIds.has(h.id) };
const listed = (h) => FILTERS[$("filter").value](h);

// The next (+1) or previous (-1) hand that passes, searched once around the list.
function neighbour(direction, passes, from = current?.id) {
  const start = hands.findIndex((h) => h.id === from);
  for (let i = 1; i < hands.length; i++) {
    const h = hands[(start + direction * i + i * hands.length) % hands.length];
    if (passes(h)) return h;
  }
  return null;
}

function go(direction, passes = listed, from = current?.id) {
  const next = neighbour(direction, (h) => passes(h) && (passes !== left || $("filter").value === "all" || listed(h)), from);
  if (next) return open(next.id, passes === left ? left : null);
  if (from !== current?.id) return open(from);
  showStatus(hands.some(left) ? "No other hand under this filter." : "All hands are done or skipped.");
  draw();
}

async function open(id, passes = null) {
  const mine = ++ticket;
  holding = null;
  shown = "loading";
  $("stage").classList.add("loading");
  try {
    const h = saver.waiting.get(id) ?? (await fetchHand(id)); // from disk, unless a newer state waits to be saved
    if (mine !== ticket) return;
    const entry = note(h);
    if (passes && !passes(entry)) return go(+1, passes, id); // completed in another tab meanwhile
    current = h;
    chosen = (nextPoint(h) < 0 ? h.points.length : nextPoint(h)) - 1;
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
    showStatus(`${id}: ${await why(id, error)}`);
    if (mine === ticket && current && current.id !== id) return open(current.id); // back to the hand that is shown
  }
  loadAhead();
}

async function why(id, error) {
  const answer = await fetch(imageAddress(id)).catch(() => null);
  return answer && !answer.ok ? (await answer.json().catch(() => ({}))).error ?? error.message : error.message;
}

// Load the pictures that are likely to be shown next: those of the next two hands to do, and of the neighbouring hands.
function loadAhead() {
  if (!current) return;
  const toDo = (h) => left(h) && listed(h);
  const first = neighbour(+1, toDo);
  for (const next of [first, first && neighbour(+1, toDo, first.id), neighbour(+1, listed), neighbour(-1, listed)]) {
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

const warnings = new Map(); // "saving", "reading" -> text
function warn(topic, text) {
  warnings.set(topic, text);
  $("banner").textContent = [...warnings.values()].filter(Boolean).join(" ");
  $("banner").hidden = !$("banner").textContent;
}

async function settle(mine, theirs) {
  if (mine.version === theirs.version) return; // settled by the question before
  $("conflict-hand").textContent = mine.id;
  $("conflict").showModal();
  const answer = await new Promise((answered) => { // not by "close", which fires later: a click before it would be lost
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

// A message stays until the next key or click, or until the hand changes in any other way: undo, redo, another tab.
function showStatus(text) {
  message = { text, of: pageState() };
  draw();
}

const pageState = () => JSON.stringify([current?.id, current && copy(current)]);

function statusText(offered, next) {
  if (message && message.of !== pageState()) message = null;
  if (message) return message.text;
  if (offered) return "Suggested: Enter accepts, drag corrects";
  if (current.skipped) return "Skipped: S marks it after all";
  if (next >= 0) return `Next: ${WHERE[next]}`;
  if (doubtful(current)) return "Please check this hand";
  return holding ? "Done: this is what the network will see" : "All seven points are set. N opens the next hand.";
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
  $("state").textContent = [stateText(current), doubtful(current) ? "in doubt" : "", asSuggested ? `${asSuggested} ${asSuggested === 1 ? "point" : "points"} as suggested` : "", current.flagged ? "flagged" : ""].filter(Boolean).join(", ");
  $("state").title = $("state").textContent;
  $("state").className = current.flagged ? "flagged" : doubtful(current) ? "doubtful" : state;
  $("status").textContent = statusText(offered, next);
  $("thumbnail").closest("figure").classList.toggle("whole", next < 0);
  drawRemarks(offered);
  $("drawing").setAttribute("transform", mirrored ? "translate(120 0) scale(-1 1)" : "");
  [...$("spots").children].forEach((spot, i) => spot.setAttribute("class", offered ? "suggested" : i === next ? "next" : current.points[i] ? "set" : ""));
  const set = shown.filter(Boolean);
  $("rectangle").textContent = set.length > 1 ? `rectangle ${span(set, 0)} × ${span(set, 1)} of ${current.width} × ${current.height} pixels` : "";
  drawThumbnail(shown);
  drawProgress();
  for (const { element, enabled } of ACTIONS) if (element && enabled) element.disabled = !enabled();
}

// The server's remarks about the hand shown, or about the points suggested for it.
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
  const toDo = count(incomplete);
  const doubts = count(FILTERS.doubtful);
  const eta = each && toDo ? `, about ${Math.max(1, Math.round((each * toDo) / 60))} min to go` : "";
  $("progress").textContent = `${count(FILTERS.done)} done${doubts ? ` (${doubts} in doubt)` : ""}, ${count(FILTERS.skipped)} skipped, ${count(FILTERS.flagged)} flagged, ${toDo} left of ${hands.length}${each ? `; ${each.toFixed(1)} s a hand${eta}` : ""}`;
}

// ---- keys and buttons ----------------------------------------------------------------------------------------------

const tone = (name, by) => { const slider = $(name); slider.value = +slider.value + by; view.setTone({ [name]: +slider.value }); };
const zoomAt = (factor) => { lookCloser(); view.zoom(factor, ...(cursor ?? [])); };

// In the order of the buttons, and of the list of keys. `enabled` is whether the button can do anything now.
const ACTIONS = [
  { keys: ["p", "PageUp"], shown: "P", does: "previous hand", button: "Previous", group: "Hand", width: "wide", run: () => go(-1) },
  { keys: ["n", "PageDown"], shown: "N", does: "next hand", button: "Next", group: "Hand", width: "wide", run: () => go(+1) },
  { keys: ["Enter"], shown: "Enter", does: "accept the suggested points", button: "Accept", group: "Hand", enabled: () => Boolean(suggestion()), run: accept },
  { keys: ["a"], shown: "A", does: "confirm that the points are right, despite the remark", run: confirm },
  { keys: ["s"], shown: "S", does: "skip this hand and give a reason; again: mark it after all", button: "Skip", group: "Hand", run: askSkip },
  { keys: ["f"], shown: "F", does: "flag for a second look", button: "Flag", group: "Hand", run: () => change((marks) => { marks.flagged = !marks.flagged; }, false) },
  { keys: ["z", "ctrl+z"], shown: "Z", does: "undo, also in earlier hands", button: "Undo", group: "Points", width: "narrow", enabled: () => history.length > 0, run: () => step(history, future, "before") },
  { keys: ["y", "ctrl+y", "ctrl+shift+z"], shown: "Y", does: "redo", button: "Redo", group: "Points", width: "narrow", enabled: () => future.length > 0, run: () => step(future, history, "after") },
  { keys: ["Delete", "Backspace"], shown: "Delete", does: "delete the chosen point", button: "Delete", face: "Del", group: "Points", width: "narrow", enabled: () => Boolean(current.points[chosen]), run: () => remove(chosen) },
  { keys: ["x"], shown: "X", does: "mirrored hand: exchange ulna and radius, thumb and little finger, and so on", button: "Swap", group: "Points", width: "narrow", enabled: () => !empty(), run: swap },
  ...[..."1234567"].map((key, i) => ({ keys: [key], shown: i ? "" : "1 … 7", does: "choose a point (1 ulna, 2 radius, 3 thumb … 7 little finger); pressed twice, set it again", run: () => (chosen === i && current.points[i] ? remove(i) : ((chosen = i), lookCloser(), draw())) })),
  { keys: ["ArrowLeft"], held: true, shown: "Arrows", does: "move the chosen point by a pixel; with Shift by ten", run: (e) => nudge(e.shiftKey ? -10 : -1, 0) },
  { keys: ["ArrowRight"], held: true, run: (e) => nudge(e.shiftKey ? 10 : 1, 0) },
  { keys: ["ArrowUp"], held: true, run: (e) => nudge(0, e.shiftKey ? -10 : -1) },
  { keys: ["ArrowDown"], held: true, run: (e) => nudge(0, e.shiftKey ? 10 : 1) },
  { keys: ["c"], shown: "C", does: "set the next point at the cursor, or in the middle of the view", run: () => { const at = view.toImage(...(cursor ?? [$("stage").clientWidth / 2, $("stage").clientHeight / 2])); if (view.inside(at)) setPoint(at); } },
  { keys: ["+", "="], held: true, shown: "+ −", does: "zoom to the cursor", button: "Zoom in", face: "+", group: "View", run: () => zoomAt(1.25) },
  { keys: ["-"], held: true, button: "Zoom out", face: "−", group: "View", run: () => zoomAt(0.8) },
  { keys: ["0"], shown: "0", does: "the whole image", button: "Fit", group: "View", run: () => view.fit() },
  { keys: ["h", "j", "k", "l"], held: true, shown: "H J K L", does: "move the picture left, down, up, right", run: (e) => { lookCloser(); view.pan(...({ h: [60, 0], j: [0, -60], k: [0, 60], l: [-60, 0] })[e.key.toLowerCase()]); } },
  { keys: ["b"], held: true, shown: "B / V", does: "brighter, darker", run: () => tone("brightness", 0.1) },
  { keys: ["v"], held: true, run: () => tone("brightness", -0.1) },
  { keys: ["]"], held: true, shown: "[ ]", does: "less, more contrast", run: () => tone("contrast", 0.1) },
  { keys: ["["], held: true, run: () => tone("contrast", -0.1) },
  { keys: ["."], held: true, shown: ", .", does: "lower, higher gamma", run: () => tone("gamma", 0.1) },
  { keys: [","], held: true, run: () => tone("gamma", -0.1) },
  { keys: ["i"], shown: "I", does: "invert the greys", button: "Invert", group: "View", run: () => view.setTone({ invert: !view.tone.invert }) },
  { keys: ["m"], shown: "M", does: "mirror the diagram, with the thumb on the other side", button: "Mirror", group: "View", run: () => { mirrored = !mirrored; draw(); } },
  { keys: ["r"], shown: "R", does: "reset the display", button: "Reset", group: "View", run: resetTone },
  { keys: ["g"], shown: "G", does: "next filter: all, to do, not marked, partly marked, done, skipped, flagged, in doubt, suggested", run: nextFilter },
  { keys: ["?"], shown: "?", does: "these keys", run: showHelp },
];
const BY_KEY = new Map(ACTIONS.flatMap((action) => action.keys.map((key) => [key, action])));

function nextFilter() {
  const options = [...$("filter").options].filter((option) => !option.hidden);
  $("filter").value = options[(options.findIndex((option) => option.selected) + 1) % options.length].value;
  $("filter").dispatchEvent(new Event("change"));
}

function showHelp() {
  $("help").showModal();
  $("help").scrollTop = 0; // focus on the button at the end has scrolled it down
}

function resetTone() {
  for (const name of ["brightness", "contrast", "gamma"]) $(name).value = 1;
  view.setTone({ brightness: 1, contrast: 1, gamma: 1, invert: false });
}

function perform(action, event) {
  if (!current) return;
  message = null;
  action.run(event);
  draw();
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
  const button = document.createElement("button");
  const key = Object.assign(document.createElement("kbd"), { textContent: action.face ?? action.shown ?? action.keys[0] });
  button.append(action.button, key);
  button.title = `${action.does ?? action.button} (${action.shown ?? action.keys[0]})`;
  button.className = action.width ?? "";
  button.addEventListener("click", (event) => { perform(action, event); $("stage").focus({ preventScroll: true }); });
  groupOf(action).append(button);
  action.element = button;
}

function groupOf({ group }) {
  const existing = $("buttons").querySelector(`[aria-label=${group}]`);
  if (existing) return existing;
  const added = Object.assign(document.createElement("div"), { className: "group" });
  added.setAttribute("role", "group");
  added.setAttribute("aria-label", group);
  added.append(Object.assign(document.createElement("h3"), { textContent: group }));
  $("buttons").append(added);
  return added;
}
$("help-open").addEventListener("click", showHelp);
$("confirm").addEventListener("click", (event) => { perform(BY_KEY.get("a"), event); $("stage").focus({ preventScroll: true }); });
for (const name of ["brightness", "contrast", "gamma"]) $(name).addEventListener("input", () => view.setTone({ [name]: +$(name).value }));
$("filter").addEventListener("change", () => { $("filter").blur(); if (current && !listed(hands.find((h) => h.id === current.id))) go(+1); });

// ---- mouse, pen, touch ---------------------------------------------------------------------------------------------

const stage = $("stage");
const fingers = new Map(); // pointers that are down: id -> [x, y]
let spaceHeld = false;
let gesture = null; // { kind: "tap" | "point" | "pan" | "pinch", … }

const onStage = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

function lookCloser() { // somebody who zooms or moves the picture of a finished hand wants to stay
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
  if (fingers.size === 2) { gesture = { kind: "pinch", before: [...fingers.values()].map((p) => [...p]) }; return; }
  if (event.button !== 0 || spaceHeld) { gesture = { kind: "pan" }; stage.classList.add("panning"); return; }
  const index = pointAt(place, NEAR[event.pointerType] ?? 9);
  gesture = index < 0 ? { kind: "tap", id: current.id } : { id: current.id, kind: "point", index, start: place, offered: suggestion(), points: [...(suggestion() ?? current.points)], moved: false };
  if (index >= 0) { chosen = index; draw(); }
});

stage.addEventListener("pointermove", (event) => {
  const place = onStage(event);
  cursor = place;
  const before = fingers.get(event.pointerId);
  if (!before || !gesture) return;
  fingers.set(event.pointerId, place);
  if (gesture.kind !== "tap" && gesture.kind !== "point") lookCloser();
  if (gesture.kind === "pan") view.pan(place[0] - before[0], place[1] - before[1]);
  if (gesture.kind === "pinch" && fingers.size === 2) {
    const now = [...fingers.values()];
    const middle = (pair) => [(pair[0][0] + pair[1][0]) / 2, (pair[0][1] + pair[1][1]) / 2];
    const apart = (pair) => Math.hypot(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1]) || 1;
    const [a, b] = [middle(gesture.before), middle(now)];
    view.pan(b[0] - a[0], b[1] - a[1]);
    view.zoom(apart(now) / apart(gesture.before), ...b);
    gesture.before = now.map((p) => [...p]);
  }
  if (gesture.kind === "point") {
    if (!gesture.moved && Math.hypot(place[0] - gesture.start[0], place[1] - gesture.start[1]) < 3) return;
    gesture.moved = true;
    gesture.points[gesture.index] = view.clamp(view.toImage(...place));
    view.draw({ points: gesture.points, suggested: null, untouched: current.untouched, chosen, labels: labels() });
    drawThumbnail(gesture.points);
  }
});

function release(event) {
  const was = gesture;
  const place = fingers.get(event.pointerId);
  fingers.delete(event.pointerId);
  stage.classList.remove("panning");
  if (was?.kind === "pinch" && fingers.size > 0) return; // the pinch lasts until the last finger is up
  gesture = null;
  if (event.type === "pointercancel" || !was || !current || (was.id && was.id !== current.id)) return draw(); // the gesture began on another hand
  message = null;
  if (was.kind === "point" && was.moved) change((marks) => { marks.points = was.points; });
  const own = was.kind === "point" && !was.moved && was.offered; // a click on a suggested point starts marking by hand, too
  if ((was.kind === "tap" || own) && place) {
    const at = view.toImage(...place);
    if (view.inside(at)) setPoint(at);
    else showStatus("That is outside the image.");
  }
}
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", release);
stage.addEventListener("pointerleave", () => { cursor = null; });
stage.addEventListener("contextmenu", (event) => event.preventDefault());
stage.addEventListener("wheel", (event) => { event.preventDefault(); lookCloser(); view.zoom(Math.exp(-event.deltaY * 0.0015), ...onStage(event)); }, { passive: false });

// ---- begin ---------------------------------------------------------------------------------------------------------

for (const [x, y] of SPOTS) $("spots").append(make("circle", { cx: x, cy: y, r: 5 }));
const all = await overview().catch((error) => { warn("reading", `${error.message}. Start it again, then reload this page.`); throw error; });
hands = all.hands;
suggestedIds = new Set(all.suggested);
setInterval(async () => { // read what other tabs did
  if (document.hidden || saver.pending) return;
  try {
    const fresh = await overview();
    warn("reading", "");
    if (saver.pending) return;
    hands = fresh.hands;
    draw();
  } catch (error) {
    warn("reading", `The table on disk cannot be read now: ${error.message}`);
  }
}, LOOK_MS);
$("file").textContent = `Saved in ${all.table}`;
$("filter").querySelector("[value=suggested]").hidden = suggestedIds.size === 0;
await open((hands.find(incomplete) ?? hands.find(left) ?? hands[0]).id);
stage.focus({ preventScroll: true });
