/** Which digit a picture shows, and which cells attention has read. */

import { Tensor } from "./models.js";

/**
 * Grey values as the model wants them: what the image processor of the model computes.
 *
 * @param {Uint8Array} pixels
 * @param {{rescale_factor: number, image_mean: number, image_std: number}} settings
 * @returns {Float32Array}
 */
export function toPixelValues(pixels, { rescale_factor, image_mean, image_std }) {
  return Float32Array.from(pixels, (grey) => (grey * rescale_factor - image_mean) / image_std);
}

/**
 * @param {import("./models.js").Models} models
 * @param {Uint8Array} pixels
 * @returns {Promise<{logits: Float32Array, probabilities: number[], maps: Maps, milliseconds: number}>}
 */
export async function classify({ graphs, settings }, pixels) {
  const start = performance.now();
  const pixel_values = new Tensor("float32", toPixelValues(pixels, settings), [1, 1, settings.rows, settings.columns]);
  const { logits, attentions } = await graphs.classifier.run({ pixel_values });
  const milliseconds = performance.now() - start;
  const maps = new Maps(attentions.data, attentions.dims);
  return { logits: logits.data, probabilities: softmax(logits.data), maps, milliseconds };
}

/**
 * @param {Float32Array} logits
 * @returns {number[]}
 */
export function softmax(logits) {
  const highest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((total, value) => total + value);
  return exponentials.map((value) => value / sum);
}

/** Attention maps of a square grid of rows and columns. Axis 0 runs down the columns, axis 1 along the rows. */
export class Maps {
  /**
   * @param {Float32Array} values
   * @param {number[]} shape (layers, 2 axes, lines, heads, queries, keys)
   */
  constructor(values, shape) {
    [this.layers, , this.length, this.heads] = shape;
    this.values = values;
  }

  /**
   * How much attention each cell of the grid gets along an axis, the mean over heads; 1 is what it would get if all
   * cells of its line got the same.
   *
   * @param {number} axis
   * @param {{layer: ?number, cell: ?{row: number, column: number}}} choice of one layer or the mean of all (null), and
   *   from one cell or the mean of all
   * @returns {Float64Array} row by row; 0 for cells that the chosen one does not read
   */
  received(axis, { layer = null, cell = null } = {}) {
    const { length } = this;
    const layers = layer === null ? [...Array(this.layers).keys()] : [layer];
    const everything = [...Array(length).keys()];
    const lines = cell ? [axis === 0 ? cell.column : cell.row] : everything;
    const queries = cell ? [axis === 0 ? cell.row : cell.column] : everything;
    const received = new Float64Array(length * length);
    for (const line of lines) {
      for (const key of everything) {
        let sum = 0;
        for (const each of layers)
          for (let head = 0; head < this.heads; head++)
            for (const query of queries) sum += this.#weight(each, axis, line, head, query, key);
        const mean = sum / (layers.length * this.heads * queries.length);
        received[axis === 0 ? key * length + line : line * length + key] = mean * length;
      }
    }
    return received;
  }

  #weight(layer, axis, line, head, query, key) {
    const { length, heads } = this;
    return this.values[((((layer * 2 + axis) * length + line) * heads + head) * length + query) * length + key];
  }
}
