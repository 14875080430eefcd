/** A canvas to draw on, by pointer or keyboard. */

import { drawLine } from "./pen.js";
import { SCALE, paintPixels, prepare } from "./picture.js";

const PEN_RADIUS = 1.1; // pixels: about the strokes of the digits that the models have learnt from
const ERASER_RADIUS = 1.6;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** `pixels` (Uint8Array) is the drawing; after each change an event "change" is sent. */
export class DrawingPad extends EventTarget {
  #canvas;
  #context;
  #before = []; // drawings to go back to
  #last = null; // where the pointer was, while it is down
  #pen; // of the keyboard
  #penIsDown = false;
  #erases = false;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} rows
   * @param {number} columns
   */
  constructor(canvas, rows, columns) {
    super();
    this.#canvas = canvas;
    this.#context = prepare(canvas, rows, columns);
    this.rows = rows;
    this.columns = columns;
    this.pixels = new Uint8Array(rows * columns);
    this.#pen = { x: columns / 2, y: rows / 4 };
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => (this.#last = null));
    canvas.addEventListener("keydown", (event) => this.#type(event));
    canvas.addEventListener("focus", () => this.#paint());
    canvas.addEventListener("blur", () => this.#setDown(false));
    this.#paint();
  }

  get erases() {
    return this.#erases;
  }

  set erases(erases) {
    this.#erases = erases;
    this.dispatchEvent(new Event("tool"));
  }

  /** Replaces the drawing; `undo` brings back what was there. */
  show(pixels) {
    this.#remember();
    this.pixels = pixels.slice();
    this.#changed();
  }

  clear() {
    this.show(new Uint8Array(this.rows * this.columns));
  }

  undo() {
    if (this.#before.length === 0) return;
    this.pixels = this.#before.pop();
    this.#changed();
  }

  #remember() {
    this.#before.push(this.pixels.slice());
  }

  #draw(from, to) {
    const radius = this.#erases ? ERASER_RADIUS : PEN_RADIUS;
    drawLine(this.pixels, this.columns, from, to, { radius, erases: this.#erases });
    this.#changed();
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.columns,
      y: ((event.clientY - box.top) / box.height) * this.rows,
    };
  }

  #press(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#remember();
    this.#last = this.#place(event);
    this.#draw(this.#last, this.#last);
  }

  #drag(event) {
    if (this.#last === null || !event.isPrimary) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) {
      const place = this.#place(each);
      this.#draw(this.#last, place);
      this.#last = place;
    }
  }

  #type(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in STEPS) this.#move(...STEPS[key]);
    else if (key === " ") this.#setDown(!this.#penIsDown);
    else if (key === "e") this.erases = !this.erases;
    else if (key === "u") this.undo();
    else return;
    event.preventDefault();
  }

  #move(right, down) {
    const from = this.#pen;
    this.#pen = {
      x: Math.min(this.columns - 0.5, Math.max(0.5, from.x + right)),
      y: Math.min(this.rows - 0.5, Math.max(0.5, from.y + down)),
    };
    if (this.#penIsDown) this.#draw(from, this.#pen);
    else this.#paint();
  }

  #setDown(isDown) {
    this.#penIsDown = isDown;
    if (isDown) {
      this.#remember();
      this.#draw(this.#pen, this.#pen);
    } else this.#paint();
  }

  #changed() {
    this.#paint();
    this.dispatchEvent(new Event("change"));
  }

  #paint() {
    const context = this.#context;
    const { width, height } = this.#canvas;
    paintPixels(context, this.pixels, this.columns);
    context.setLineDash([6, 6]); // where the half ends that is kept
    context.strokeStyle = "#8a8f99";
    context.beginPath();
    context.moveTo(0, height / 2);
    context.lineTo(width, height / 2);
    context.stroke();
    context.setLineDash([]);
    if (this.#canvas.matches(":focus-visible")) this.#paintPen();
  }

  #paintPen() {
    const context = this.#context;
    context.strokeStyle = this.#penIsDown ? "#ff8a3d" : "#7fb2ff";
    context.lineWidth = 2;
    context.beginPath();
    context.arc(this.#pen.x * SCALE, this.#pen.y * SCALE, 1.5 * SCALE, 0, 2 * Math.PI);
    context.stroke();
    context.lineWidth = 1;
  }
}
