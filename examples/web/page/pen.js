/** A round pen on a small grid of grey values: what is drawn is what the model sees, so nothing is resized. */

/**
 * Draws a line with soft edges into `pixels`.
 *
 * @param {Uint8Array} pixels rows × columns grey values, 255 is ink; changed in place
 * @param {number} columns
 * @param {{x: number, y: number}} from in pixels; the centre of the first pixel is (0.5, 0.5)
 * @param {{x: number, y: number}} to
 * @param {{radius: number, erases: boolean}} pen the radius in pixels
 */
export function drawLine(pixels, columns, from, to, { radius, erases }) {
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  for (let index = 0; index < pixels.length; index++) {
    const x = (index % columns) + 0.5 - from.x;
    const y = Math.floor(index / columns) + 0.5 - from.y;
    // How far along the line its closest point lies, from 0 to 1.
    const along = length && ((x * (to.x - from.x) + y * (to.y - from.y)) / length ** 2);
    const clamped = Math.min(1, Math.max(0, along));
    const distance = Math.hypot(x - clamped * (to.x - from.x), y - clamped * (to.y - from.y));
    const covered = Math.min(1, Math.max(0, radius + 0.5 - distance));
    const ink = Math.round(255 * covered);
    pixels[index] = erases ? Math.min(pixels[index], 255 - ink) : Math.max(pixels[index], ink);
  }
}
