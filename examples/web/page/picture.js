/** Paints pictures of few pixels onto canvases, many screen pixels each. */

export const SCALE = 12; // screen pixels for one of the picture
const HATCH = "#8a8f99";

/**
 * A canvas made ready for a picture of this size.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number} rows
 * @param {number} columns
 * @returns {CanvasRenderingContext2D}
 */
export function prepare(canvas, rows, columns) {
  canvas.width = columns * SCALE;
  canvas.height = rows * SCALE;
  return canvas.getContext("2d");
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Uint8Array} pixels grey values, row by row
 * @param {number} columns
 * @param {(row: number) => number[]} ink the colour (red, green, blue) of full ink in a row
 */
export function paintPixels(context, pixels, columns, ink = () => [255, 255, 255]) {
  pixels.forEach((grey, index) => {
    const row = Math.floor(index / columns);
    const colour = ink(row).map((full) => Math.round((full * grey) / 255));
    context.fillStyle = `rgb(${colour})`;
    context.fillRect((index % columns) * SCALE, row * SCALE, SCALE, SCALE);
  });
}

/** Hatches the rows from `first` on, of which nothing is known. */
export function paintUnknown(context, first) {
  const { width, height } = context.canvas;
  const top = first * SCALE;
  context.save();
  context.beginPath();
  context.rect(0, top, width, height - top);
  context.clip();
  context.clearRect(0, top, width, height - top);
  context.strokeStyle = HATCH;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = -height; x < width; x += SCALE) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
}
