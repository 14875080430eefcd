/** Draws from a seed, the same on every machine, and what becomes of them: a value drawn from logits. */

/**
 * Uniform draws from 0 to 1, both excluded: "sfc32" of Chris Doty-Humphrey's PractRand, 52 bits of two numbers each.
 *
 * @param {number} seed a whole number from 0 to 2³² - 1
 * @returns {(count: number) => Float64Array} the next `count` draws
 */
export function uniformFromSeed(seed) {
  let [a, b, c, counter] = [0, seed >>> 0, 0, 1];
  const next = () => {
    const sum = (a + b + counter) >>> 0;
    counter = (counter + 1) >>> 0;
    a = (b ^ (b >>> 9)) >>> 0;
    b = (c + (c << 3)) >>> 0;
    c = (((c << 21) | (c >>> 11)) + sum) >>> 0;
    return sum;
  };
  for (let round = 0; round < 15; round++) next(); // until every bit of the seed has reached every bit of the state
  return (count) => Float64Array.from({ length: count }, () => ((next() >>> 6) * 2 ** 26 + (next() >>> 6) + 0.5) / 2 ** 52);
}

/**
 * A value drawn with the probabilities softmax(scores), as argmax(scores + Gumbel noise).
 *
 * @param {Float64Array} scores
 * @param {Float64Array} uniform as many draws
 * @returns {number}
 */
export function drawValue(scores, uniform) {
  let best = 0;
  let highest = -Infinity;
  for (let value = 0; value < scores.length; value++) {
    const score = scores[value] - Math.log(-Math.log(uniform[value]));
    if (score > highest) [best, highest] = [value, score];
  }
  return best;
}
