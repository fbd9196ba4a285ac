// The radiograph on the stage: zoom, pan, display tone, points and labels. Takes pixels of the image, draws pixels of the screen.

const SVG = "http://www.w3.org/2000/svg";

export const tenth = (v) => Math.round(v * 10) / 10; // as the table is written

export class View {
  constructor(stage, picture, overlay) {
    Object.assign(this, { stage, picture, overlay, scale: 1, left: 0, top: 0, width: 1, height: 1, fitted: true });
    new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(stage);
    this.tone = { brightness: 1, contrast: 1, gamma: 1, invert: false };
  }

  // Show an image of a known size. Resolves when the image is visible.
  async show(address, width, height) {
    Object.assign(this, { width, height });
    this.picture.style.width = `${width}px`;
    this.picture.style.height = `${height}px`;
    this.picture.src = address;
    this.fit();
    await this.picture.decode();
  }

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height) * 0.98;
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  // Scale by a factor. The image stays fixed at (x, y) of the stage.
  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const scale = Math.min(20, Math.max(0.02, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.fitted = false;
    this.draw();
  }

  // Pixel centres are at whole numbers.
  toImage(x, y) {
    return [(x - this.left) / this.scale - 0.5, (y - this.top) / this.scale - 0.5];
  }

  toStage([x, y]) {
    return [(x + 0.5) * this.scale + this.left, (y + 0.5) * this.scale + this.top];
  }

  inside([x, y]) {
    return x >= -0.5 && y >= -0.5 && x <= this.width - 0.5 && y <= this.height - 0.5;
  }

  clamp([x, y]) {
    return [tenth(Math.min(this.width - 1, Math.max(0, x))), tenth(Math.min(this.height - 1, Math.max(0, y)))];
  }

  setTone(change) {
    Object.assign(this.tone, change);
    const { brightness, contrast, gamma, invert } = this.tone;
    for (const part of document.querySelectorAll("#tone-filter [type=gamma]")) part.setAttribute("exponent", 1 / gamma);
    const plain = brightness === 1 && contrast === 1 && gamma === 1 && !invert;
    const steps = [gamma === 1 ? "" : "url(#tone-filter)", `brightness(${brightness})`, `contrast(${contrast})`, invert ? "invert(1)" : ""];
    this.picture.style.filter = plain ? "" : steps.join(" ");
  }

  // Draw { points, suggested, untouched, chosen, labels }; without an argument, draw the last content again.
  draw(content = this.content) {
    this.content = content;
    this.picture.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.picture.style.imageRendering = this.scale > 3 ? "pixelated" : "auto";
    if (!content) return;
    const parts = [];
    const shown = content.suggested ?? content.points;
    const set = shown.filter(Boolean);
    if (set.length > 1) {
      const [left, top] = this.toStage([Math.floor(Math.min(...set.map((p) => p[0]))) - 0.5, Math.floor(Math.min(...set.map((p) => p[1]))) - 0.5]);
      const [right, bottom] = this.toStage([Math.ceil(Math.max(...set.map((p) => p[0]))) + 0.5, Math.ceil(Math.max(...set.map((p) => p[1]))) + 0.5]);
      parts.push(make("rect", { x: left, y: top, width: right - left, height: bottom - top }));
    }
    const boxes = placeLabels(shown.map((point) => point && this.toStage(point)), content.labels, [this.stage.clientWidth, this.stage.clientHeight]);
    shown.forEach((point, index) => {
      if (!point) return;
      const [x, y] = this.toStage(point);
      const kind = content.suggested ? "suggested" : content.untouched?.[index] ? "set untouched" : "set";
      const group = make("g", { class: `${kind} ${index === content.chosen ? "chosen" : ""}` });
      group.append(...["halo", "ring"].map((part) => make("circle", { class: part, cx: x, cy: y, r: RING })));
      group.append(make("circle", { class: "dot", cx: x, cy: y, r: 2 }));
      const box = boxes[index];
      const end = [Math.min(box.right, Math.max(box.left, x)), Math.min(box.bottom, Math.max(box.top, y))]; // nearest to the dot
      const length = Math.hypot(end[0] - x, end[1] - y) || 1;
      const start = [x + ((end[0] - x) * (RING + 1)) / length, y + ((end[1] - y) * (RING + 1)) / length];
      group.append(...["shade", "leader"].map((part) => make("line", { class: part, x1: start[0], y1: start[1], x2: end[0], y2: end[1] })));
      const label = make("text", { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2 });
      label.textContent = content.labels[index];
      group.append(label);
      parts.push(group);
    });
    this.overlay.replaceChildren(...parts);
  }
}

// ---- labels --------------------------------------------------------------------------------------------------------

const RING = 7; // radius of a point's ring, in pixels of the screen
const CLEAR = RING + 3; // no label comes nearer to a dot
const LINE = 17; // height of a label
const DISTANCES = [23, 32, 43, 56, 72, 90, 110];
const DIRECTIONS = 24;

const pen = document.createElement("canvas").getContext("2d");
const widths = new Map();

function widthOf(text) {
  pen.font = "600 13px system-ui, sans-serif"; // as in style.css
  if (!widths.has(text)) widths.set(text, pen.measureText(text).width + 5); // with its dark outline
  return widths.get(text);
}

const overlap = (a, b) => Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) * Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
const around = ([x, y], width, height) => ({ left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 });

// A box on the stage for each label: near its dot, away from the other dots, clear of dots and other labels. `dots` are
// places on the stage, null for a point that is not set. Where there is no free place, the one that covers least is used.
export function placeLabels(dots, labels, [width, height]) {
  const set = dots.filter(Boolean);
  const middle = [0, 1].map((axis) => set.reduce((sum, dot) => sum + dot[axis], 0) / set.length);
  const obstacles = set.map((dot) => around(dot, 2 * CLEAR, 2 * CLEAR));
  return dots.map((dot, index) => {
    if (!dot) return null;
    const visible = dot[0] >= 0 && dot[1] >= 0 && dot[0] <= width && dot[1] <= height;
    const outward = Math.atan2(dot[1] - middle[1], dot[0] - middle[0] || 1); // a single dot has its label to the right
    const size = widthOf(labels[index]);
    let best = null;
    let least = Infinity;
    let free = false;
    for (const distance of DISTANCES) {
      for (let turn = 0; turn < DIRECTIONS; turn++) {
        const angle = outward + ((turn % 2 ? 1 : -1) * Math.ceil(turn / 2) * 2 * Math.PI) / DIRECTIONS;
        const reach = [distance + (size - LINE) / 2, distance]; // a wide label needs more room on either side
        const box = around([dot[0] + Math.cos(angle) * reach[0], dot[1] + Math.sin(angle) * reach[1]], size, LINE);
        const outside = visible && (box.left < 0 || box.top < 0 || box.right > width || box.bottom > height);
        const covered = obstacles.reduce((sum, obstacle) => sum + overlap(box, obstacle), 0);
        const cost = (outside ? 1000 : 0) + covered * 10 + distance / 4 + turn / 8;
        if (cost < least) [best, least] = [box, cost];
        free ||= covered === 0 && !outside;
      }
      if (free) break; // no need to look farther away
    }
    obstacles.push(best);
    return best;
  });
}

export function make(kind, attributes) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
