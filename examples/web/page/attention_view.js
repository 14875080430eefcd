/** Two pictures of what attention reads along each axis, laid over the drawing, and one cell to look from. */

import { SCALE, paintPixels, prepare } from "./picture.js";

const MORE = "255, 138, 61";
const LESS = "47, 123, 255";
const STRONGEST = 3; // times its share: full colour from here on
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const AXES = ["down the columns", "along the rows"];

/** After each change of the cell an event "change" is sent. */
export class AttentionView extends EventTarget {
  #contexts;
  #side; // screen pixels of a cell
  #shown = null;

  /**
   * @param {HTMLCanvasElement[]} canvases one for each axis
   * @param {HTMLElement} text told what is seen
   * @param {{rows: number, columns: number}} settings of the picture
   */
  constructor(canvases, text, { rows, columns }) {
    super();
    this.text = text;
    this.columns = columns;
    this.cell = null;
    this.layer = null;
    this.#contexts = canvases.map((canvas) => prepare(canvas, rows, columns));
    for (const canvas of canvases) {
      canvas.addEventListener("pointerdown", (event) => this.#touch(canvas, event));
      canvas.addEventListener("keydown", (event) => this.#type(event));
    }
  }

  /**
   * @param {Uint8Array} pixels
   * @param {import("./classifier.js").Maps} maps
   */
  show(pixels, maps) {
    this.#shown = { pixels, maps };
    this.#paint();
  }

  /** @param {?{row: number, column: number}} cell to look from, null for all */
  select(cell) {
    this.cell = cell;
    this.#paint();
    this.dispatchEvent(new Event("change"));
  }

  /** @param {?number} layer null for the mean of all */
  selectLayer(layer) {
    this.layer = layer;
    this.#paint();
  }

  #touch(canvas, event) {
    if (!this.#shown) return;
    const box = canvas.getBoundingClientRect();
    const { length } = this.#shown.maps;
    const index = (offset, size) => Math.min(length - 1, Math.max(0, Math.floor((offset / size) * length)));
    this.select({
      row: index(event.clientY - box.top, box.height),
      column: index(event.clientX - box.left, box.width),
    });
  }

  #type(event) {
    if (!this.#shown) return;
    if (event.key === "Escape") this.select(null);
    else if (event.key in STEPS) {
      const { length } = this.#shown.maps;
      const middle = Math.floor(length / 2);
      const [down, right] = this.cell ? STEPS[event.key] : [0, 0];
      const { row, column } = this.cell ?? { row: middle, column: middle };
      const inside = (index) => Math.min(length - 1, Math.max(0, index));
      this.select({ row: inside(row + down), column: inside(column + right) });
    } else return;
    event.preventDefault();
  }

  #paint() {
    if (!this.#shown) return;
    const { pixels, maps } = this.#shown;
    this.#side = (this.columns * SCALE) / maps.length;
    const received = this.#contexts.map((_, axis) => maps.received(axis, { layer: this.layer, cell: this.cell }));
    this.#contexts.forEach((context, axis) => {
      paintPixels(context, pixels, this.columns, () => [190, 190, 190]);
      received[axis].forEach((share, index) => this.#paintCell(context, axis, index, share, maps.length));
      if (this.cell) this.#outline(context, this.cell);
    });
    this.text.textContent = this.cell ? this.#ofCell(received, maps.length) : this.#ofAll(received, maps.length);
    this.#contexts.forEach(({ canvas }, axis) =>
      canvas.setAttribute("aria-label", `Attention ${AXES[axis]}. ${this.text.textContent}`),
    );
  }

  #paintCell(context, axis, index, share, length) {
    const [row, column] = [Math.floor(index / length), index % length];
    if (this.cell && (axis === 0 ? column !== this.cell.column : row !== this.cell.row)) return; // on no line of it
    const strength = share > 1 ? Math.min(1, (share - 1) / (STRONGEST - 1)) * 0.85 : (1 - share) * 0.45;
    context.fillStyle = `rgba(${share > 1 ? MORE : LESS}, ${strength})`;
    context.fillRect(column * this.#side, row * this.#side, this.#side, this.#side);
  }

  #outline(context, { row, column }) {
    context.strokeStyle = "#ffffff";
    context.lineWidth = 3;
    context.strokeRect(column * this.#side + 1.5, row * this.#side + 1.5, this.#side - 3, this.#side - 3);
  }

  #ofCell(received, length) {
    const [down, along] = received.map(strongest);
    const { row, column } = this.cell;
    return (
      `The cell in row ${row + 1}, column ${column + 1} of ${length} × ${length} reads most from ` +
      `row ${Math.floor(down.index / length) + 1} (${down.share.toFixed(1)} times its share) and ` +
      `column ${(along.index % length) + 1} (${along.share.toFixed(1)} times).`
    );
  }

  #ofAll(received, length) {
    const parts = received.map((shares, axis) => {
      const { index, share } = strongest(shares);
      const place = `row ${Math.floor(index / length) + 1}, column ${(index % length) + 1}`;
      return `${AXES[axis]} ${place} (${share.toFixed(1)} times its share)`;
    });
    return `Read most: ${parts.join(", ")}.`;
  }
}

function strongest(shares) {
  const share = Math.max(...shares);
  return { share, index: shares.indexOf(share) };
}
