/** The autoregressive model: draws the rest of a picture, pixel by pixel, from the rows that are known. */

import { drawValue } from "./draws.js";
import { Tensor, integers, zeros } from "./models.js";

/** One picture of one class on its way through the model, with all that is kept from step to step. */
class Stream {
  /** @returns {Promise<Stream>} */
  static async open(graphs, classLabel) {
    const { context } = await graphs.context.run({ class_label: integers([classLabel], [1]) });
    return new Stream(graphs, context);
  }

  constructor(graphs, context) {
    this.graphs = graphs;
    [, this.rows, this.columns, this.width] = context.dims;
    this.context = context.data;
    this.gathered = new Float32Array(this.columns * this.width); // what the rows above tell: nothing yet
    this.pixelState = zeros(graphs.pixel, "state");
    this.rowState = zeros(graphs.row, "state");
  }

  /** @returns {Promise<Float32Array>} of the values at (row, column), after `token` on its left */
  async logits(token, row, column) {
    const start = (row * this.columns + column) * this.width;
    const context = this.context.slice(start, start + this.width);
    for (let index = 0; index < this.width; index++) context[index] += this.gathered[column * this.width + index];
    const { logits, new_state } = await this.graphs.pixel.run({
      token: integers([token], [1]),
      position: integers([column], [1]),
      context: new Tensor("float32", context, [1, 1, 1, this.width]),
      state: this.pixelState,
    });
    this.pixelState = new_state;
    return logits.data;
  }

  /** Reads a row whose tokens are all there. */
  async finishRow(tokens, row) {
    const size = this.columns * this.width;
    const context = this.context.slice(row * size, (row + 1) * size);
    const { gathered, new_state } = await this.graphs.row.run({
      tokens: integers(tokens, [1, this.columns]),
      position: integers([row], [1]),
      context: new Tensor("float32", context, [1, 1, this.columns, this.width]),
      state: this.rowState,
    });
    this.gathered = gathered.data;
    this.rowState = new_state;
  }
}

/**
 * @param {import("./models.js").Models} models
 * @param {object} options
 * @param {Uint8Array} options.pixels the picture, of which the first rows count
 * @param {number} options.knownRows how many
 * @param {number[]} options.classLabels one class; or two, and what is drawn is led away from the second to the first
 * @param {number} options.guidanceScale how far, where 1 is not at all
 * @param {(count: number) => Float64Array} options.uniform the next draws from 0 to 1: for each row, one for each of
 *   its pixels and each value that this may have, also of rows that are known
 * @param {(picture: Uint8Array, rows: number) => Promise<void>} [options.onRow] called when so many rows are there
 * @returns {Promise<{pixels: Uint8Array, drawn: number, milliseconds: number}>}
 */
export async function complete({ graphs }, { pixels, knownRows, classLabels, guidanceScale, uniform, onRow }) {
  const start = performance.now();
  const streams = [];
  for (const label of classLabels) streams.push(await Stream.open(graphs, label));
  const [{ rows, columns }] = streams;
  const vocabulary = graphs.pixel.outputMetadata.find((output) => output.name === "logits").shape[1];
  const picture = pixels.slice();
  picture.fill(0, knownRows * columns);
  for (let row = 0; row < rows; row++) {
    const tokens = picture.subarray(row * columns, (row + 1) * columns);
    const draws = uniform(columns * vocabulary);
    for (let column = 0; column < columns && row >= knownRows; column++) {
      const scores = [];
      for (const stream of streams) scores.push(await stream.logits(column ? tokens[column - 1] : 0, row, column));
      const ofPixel = draws.subarray(column * vocabulary, (column + 1) * vocabulary);
      tokens[column] = drawValue(guided(scores, guidanceScale), ofPixel);
    }
    if (onRow && row >= knownRows) await onRow(picture, row + 1);
    if (row + 1 < rows) for (const stream of streams) await stream.finishRow(tokens, row);
  }
  return { pixels: picture, drawn: (rows - knownRows) * columns, milliseconds: performance.now() - start };
}

function guided([logits, without], scale) {
  if (!without) return Float64Array.from(logits);
  return Float64Array.from(logits, (logit, value) => without[value] + scale * (logit - without[value]));
}
