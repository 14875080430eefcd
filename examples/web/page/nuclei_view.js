/** Paints a grey picture, and outlines what is nucleus on it; one pixel of the canvas for one of the picture. */

const OUTLINE = [255, 138, 61]; // the outermost pixels of a nucleus
const AROUND = [0, 0, 0]; // those next to it, so that the outline is seen on bright ground, too
const TINT = 0.3; // how much of the colour lies over what is inside

/**
 * @param {HTMLCanvasElement} canvas which becomes as large as the picture
 * @param {Uint8Array} pixels grey values of a square
 * @param {?Uint8Array} mask of 0 and 1, where 1 is nucleus; null for the picture alone
 */
export function paintNuclei(canvas, pixels, mask = null) {
  const side = Math.sqrt(pixels.length);
  [canvas.width, canvas.height] = [side, side];
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  pixels.forEach((grey, index) => image.data.set([...colour(grey, index, mask, side), 255], 4 * index));
  context.putImageData(image, 0, 0);
}

function colour(grey, index, mask, side) {
  if (mask === null) return [grey, grey, grey];
  const isAtEdge = neighbours(index, side).some((other) => mask[other] !== mask[index]);
  if (isAtEdge) return mask[index] ? OUTLINE : AROUND;
  return OUTLINE.map((value) => (mask[index] ? Math.round(TINT * value + (1 - TINT) * grey) : grey));
}

/** The pixels above, below, left and right of one, as far as there are some. */
function neighbours(index, side) {
  const column = index % side;
  const found = [];
  if (index >= side) found.push(index - side);
  if (index < side * (side - 1)) found.push(index + side);
  if (column > 0) found.push(index - 1);
  if (column < side - 1) found.push(index + 1);
  return found;
}
