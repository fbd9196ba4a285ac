// Talk with the server: hands in, changes out, one after the other. A change that cannot be sent is kept and sent again.

async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: { "Content-Type": "application/json" }, ...options });
  const said = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return { status: answer.status, said };
}

export async function overview() {
  return (await ask("hands")).said;
}

export async function hand(id) {
  const { status, said } = await ask(`hands/${encodeURIComponent(id)}`);
  if (status !== 200) throw new Error(said.error);
  return said;
}

export const imageAddress = (id) => `images/${encodeURIComponent(id)}`;

export function thumbnailAddress(id, points) {
  const pairs = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(";");
  return `thumbnails/${encodeURIComponent(id)}?points=${encodeURIComponent(pairs)}`;
}

// Writes changes in order. `on.saved(hand)`, `on.conflict(mine, theirs)`, `on.trouble(text or "")` tell what became of them.
export class Saver {
  constructor(on) {
    this.on = on;
    this.waiting = new Map(); // id -> the newest state of that hand
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
      const { points, skipped, flagged, seconds } = mine;
      const sent = JSON.stringify({ points, skipped, flagged, seconds, version: mine.version });
      try {
        const { status, said } = await ask(`hands/${encodeURIComponent(id)}`, { method: "PUT", body: sent });
        if (status === 200) {
          mine.version = said.version; // `mine` may have changed meanwhile; then it waits again
          if (this.waiting.get(id) === mine && sent === JSON.stringify({ points: mine.points, skipped: mine.skipped, flagged: mine.flagged, seconds: mine.seconds, version: said.version - 1 })) this.waiting.delete(id);
          this.on.trouble("");
          this.on.saved(said);
        } else if (status === 409) {
          this.waiting.delete(id);
          this.on.conflict(mine, said.hand);
        } else if (status === 507 || status >= 500) {
          throw new Error(said.error);
        } else {
          this.waiting.delete(id);
          this.on.trouble(`Not saved: ${said.error}`);
        }
      } catch (error) {
        this.on.trouble(`Not saved yet: ${error.message}. What you marked is kept here and is sent again; leave this page open.`);
        await new Promise((wake) => setTimeout(wake, 1500));
      }
    }
  }
}
