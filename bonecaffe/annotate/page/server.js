// Talk with the server: hands in, changes out, one after the other. A change that cannot be sent is kept and sent again.

import { tenth } from "./view.js";

async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: { "Content-Type": "application/json" }, ...options }).catch(() => { throw new Error("bonecaffe annotate does not answer"); });
  const said = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return { status: answer.status, said };
}

async function get(path) {
  const { status, said } = await ask(path);
  if (status !== 200) throw new Error(said.error);
  return said;
}

export const overview = () => get("hands");

export async function hand(id) {
  const said = await get(`hands/${encodeURIComponent(id)}`);
  return { ...said, points: said.points.map((p) => p && p.map(tenth)) };
}

export const imageAddress = (id) => `images/${encodeURIComponent(id)}`;

export function thumbnailAddress(id, points) {
  const pairs = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(";");
  return `thumbnails/${encodeURIComponent(id)}?points=${encodeURIComponent(pairs)}`;
}

const AGAIN_MS = 1500;
const marks = ({ points, skipped, flagged }) => JSON.stringify([points.map((p) => p && p.map(tenth)), skipped, flagged]);
const content = ({ points, skipped, flagged, seconds, confirmed }) => ({ points, skipped, flagged, seconds, confirmed });
const judged = ({ remarks, confirmed, untouched }) => ({ remarks, confirmed, untouched });

// Writes changes in order; one that cannot be written waits and is sent again. `on.saved(mine)`, `on.conflict(mine, theirs)`
// and `on.trouble(text or "")` tell what became of them.
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
    this.waiting.delete(mine.id); // to the end of the line
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
        if (this.waiting.get(id) === mine) { // the others' turn
          this.waiting.delete(id);
          this.waiting.set(id, mine);
        }
      }
      this.#tell();
      if (this.failed.size > 0 && [...this.waiting.keys()].every((each) => this.failed.has(each))) await new Promise((wake) => setTimeout(wake, AGAIN_MS));
    }
  }

  async #send(id, mine) {
    const sent = JSON.stringify(content(mine));
    const unanswered = (mine.unanswered ??= new Set()); // may be on disk: the server can end between writing and answering
    unanswered.add(marks(mine));
    const { status, said } = await ask(`hands/${encodeURIComponent(id)}`, { method: "PUT", body: JSON.stringify({ ...content(mine), version: mine.version }) });
    if (status === 409 && unanswered.has(marks(said.hand))) {
      mine.version = said.hand.version; // a change of our own, no conflict; what came after it is sent again
    } else if (status === 409) {
      unanswered.clear();
      this.waiting.delete(id);
      this.on.conflict(mine, said.hand);
    } else if (status === 200) {
      mine.version = said.version;
      unanswered.clear();
      if (this.waiting.get(id) !== mine || sent !== JSON.stringify(content(mine))) return; // it changed meanwhile, and waits again
      this.waiting.delete(id);
      Object.assign(mine, judged(said));
      this.on.saved(mine);
    } else {
      throw new Error(status === 404 ? "another bonecaffe answers here now" : said.error);
    }
  }

  #tell() {
    const [first] = this.failed;
    if (!first) return this.on.trouble("");
    const hands = this.failed.size === 1 ? `Hand ${first[0]} is` : `${this.failed.size} hands are`;
    this.on.trouble(`Not saved yet: ${first[1]}. ${hands} kept here and sent again; leave this page open. If bonecaffe annotate has ended, start it again as before.`);
  }
}
