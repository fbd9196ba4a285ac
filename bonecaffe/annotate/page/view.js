// The radiograph on the stage: zoom, pan, display tone, and what is drawn over it. Pixels of the image in, pixels of the screen out.

const SVG = "http://www.w3.org/2000/svg";

export const tenth = (v) => Math.round(v * 10) / 10; // as the table is written

export class View {
  constructor(stage, picture, overlay) {
    Object.assign(this, { stage, picture, overlay, scale: 1, left: 0, top: 0, width: 1, height: 1, fitted: true });
    new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(stage);
    this.tone = { brightness: 1, contrast: 1, gamma: 1, invert: false };
  }

  // Show an image of a known size; resolves when it can be seen.
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

  // Scale by a factor; the place (x, y) of the stage stays where it is.
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

  // Pixel centres lie at whole numbers.
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

  // What to draw: { points, suggested, untouched, chosen, labels }; without an argument, the same again.
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
    shown.forEach((point, index) => {
      if (!point) return;
      const [x, y] = this.toStage(point);
      const kind = content.suggested ? "suggested" : content.untouched?.[index] ? "set untouched" : "set";
      const group = make("g", { class: `${kind} ${index === content.chosen ? "chosen" : ""}` });
      group.append(make("circle", { cx: x, cy: y, r: 6 }), make("circle", { cx: x, cy: y, r: 0.75 }));
      const label = make("text", { x: x + 9, y: y - 7 });
      label.textContent = content.labels[index];
      group.append(label);
      parts.push(group);
    });
    this.overlay.replaceChildren(...parts);
  }
}

export function make(kind, attributes) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
