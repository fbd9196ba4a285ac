// Requests to the server: read hands, send changes one at a time. A change that cannot be sent is kept and sent again.

import { tenth } from "./view.js";

async function ask(path, options = {}) {
  const response = await fetch(path, { headers: { "Content-Type": "application/json" }, ...options }).catch(() => { throw new Error("bonecaffe annotate does not answer"); });
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  return { status: response.status, answer };
}

async function get(path) {
  const { status, answer } = await ask(path);
  if (status !== 200) throw new Error(answer.error);
  return answer;
}

export const overview = () => get("hands");

export async function hand(id) {
  const answer = await get(`hands/${encodeURIComponent(id)}`);
  return { ...answer, points: answer.points.map((p) => p && p.map(tenth)) };
}

export const imageAddress = (id) => `images/${encodeURIComponent(id)}`;

export function thumbnailAddress(id, points) {
  const pairs = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(";");
  return `thumbnails/${encodeURIComponent(id)}?points=${encodeURIComponent(pairs)}`;
}

const AGAIN_MS = 1500;
const marks = ({ points, skipped, flagged }) => JSON.stringify([points.map((p) => p && p.map(tenth)), skipped, flagged]);
const content = ({ points, skipped, flagged, seconds, confirmed }) => ({ points, skipped, flagged, seconds, confirmed });
const assessment = ({ remarks, confirmed, untouched }) => ({ remarks, confirmed, untouched });

// Sends changes in order. One that cannot be saved waits and is sent again. The results are reported by `on.saved(mine)`,
// `on.conflict(mine, theirs)` and `on.trouble(text, or "" when there is none)`.
export class Saver {
  constructor(on) {
    this.on = on;
    this.waiting = new Map(); // id -> the newest state of that hand
    this.failed = new Map(); // id -> why it is not on disk
    this.running = null;
  }

  get pending() {
    return this.waiting.size > 0 || this.running !== null;
  }

  save(mine) {
    this.waiting.delete(mine.id); // to the end of the queue
    this.waiting.set(mine.id, mine);
    this.running ??= this.#run().finally(() => { this.running = null; });
    return this.running;
  }

  async #run() {
    while (this.waiting.size > 0) {
      const [id, mine] = this.waiting.entries().next().value;
      try {
        await this.#send(id, mine);
        this.failed.delete(id);
      } catch (error) {
        this.failed.set(id, error.message);
        if (this.waiting.get(id) === mine) { // the other hands get their turn
          this.waiting.delete(id);
          this.waiting.set(id, mine);
        }
      }
      this.#report();
      if (this.failed.size > 0 && [...this.waiting.keys()].every((each) => this.failed.has(each))) await new Promise((wake) => setTimeout(wake, AGAIN_MS));
    }
  }

  async #send(id, mine) {
    const sent = JSON.stringify(content(mine));
    const unanswered = (mine.unanswered ??= new Set()); // these may be on disk: the server can end between writing and answering
    unanswered.add(marks(mine));
    const { status, answer } = await ask(`hands/${encodeURIComponent(id)}`, { method: "PUT", body: JSON.stringify({ ...content(mine), version: mine.version }) });
    if (status === 409 && unanswered.has(marks(answer.hand))) {
      mine.version = answer.hand.version; // our own change, so no conflict; send the newer one again
    } else if (status === 409) {
      unanswered.clear();
      this.waiting.delete(id);
      this.on.conflict(mine, answer.hand);
    } else if (status === 200) {
      mine.version = answer.version;
      unanswered.clear();
      if (this.waiting.get(id) !== mine || sent !== JSON.stringify(content(mine))) return; // changed meanwhile, and queued again
      this.waiting.delete(id);
      Object.assign(mine, assessment(answer));
      this.on.saved(mine);
    } else {
      throw new Error(status === 404 ? "another bonecaffe is running at this address now" : answer.error);
    }
  }

  #report() {
    const [first] = this.failed;
    if (!first) return this.on.trouble("");
    const hands = this.failed.size === 1 ? `Hand ${first[0]} is` : `${this.failed.size} hands are`;
    this.on.trouble(`Not saved yet: ${first[1]}. ${hands} kept here and will be sent again, so leave this page open. If bonecaffe annotate has ended, start it again as before.`);
  }
}
