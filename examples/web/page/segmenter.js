/** Which pixels of a picture are nuclei of cells. */

import { toPixelValues } from "./classifier.js";
import { Tensor } from "./models.js";

/**
 * @param {import("./models.js").Models} models
 * @param {Uint8Array} pixels grey values of a square, whose side is `settings.segmenter.side`
 * @returns {Promise<{logits: Float32Array, mask: Uint8Array, milliseconds: number}>} `logits`: those of the background,
 *   row by row, then those of nuclei; `mask`: 1 where a nucleus is likelier
 */
export async function segment({ graphs, settings }, pixels) {
  const start = performance.now();
  const { side } = settings.segmenter;
  const pixel_values = new Tensor("float32", toPixelValues(pixels, settings.segmenter), [1, 1, side, side]);
  const { logits } = await graphs.segmenter.run({ pixel_values });
  const [background, nucleus] = [0, pixels.length].map((first) => logits.data.subarray(first, first + pixels.length));
  const mask = Uint8Array.from(pixels, (_, index) => nucleus[index] > background[index]);
  return { logits: logits.data, mask, milliseconds: performance.now() - start };
}

/**
 * @param {Uint8Array} mask of 0 and 1
 * @returns {number} how many are 1
 */
export function count(mask) {
  return mask.reduce((sum, value) => sum + value, 0);
}

/**
 * How well two masks agree: what is in both, as a share of what is in either.
 *
 * @param {Uint8Array} mask of 0 and 1
 * @param {Uint8Array} truth as many
 * @returns {number}
 */
export function intersectionOverUnion(mask, truth) {
  return count(mask.map((value, index) => value & truth[index])) / count(mask.map((value, index) => value | truth[index]));
}
