/** A picture file of the user's, as the grey square that a model takes. */

/**
 * Grey values as Pillow computes them: 0.299 red + 0.587 green + 0.114 blue, in whole numbers.
 *
 * @param {Uint8ClampedArray} rgba four values a pixel
 * @returns {Uint8Array}
 */
export function toGrey(rgba) {
  const grey = new Uint8Array(rgba.length / 4);
  for (let index = 0; index < grey.length; index++) {
    const [red, green, blue] = rgba.subarray(4 * index, 4 * index + 3);
    grey[index] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
  }
  return grey;
}

/**
 * The largest square in the middle of a picture, resized.
 *
 * @param {File} file in a format that the browser knows
 * @param {number} side of what is returned
 * @returns {Promise<{pixels: Uint8Array, width: number, height: number}>} the size is that of the file
 */
export async function readPicture(file, side) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no picture that this browser can read. Take a PNG or JPEG file.`);
  });
  const { width, height } = bitmap;
  const taken = Math.min(width, height);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [side, side];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#ffffff"; // behind what is transparent
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - taken) / 2, (height - taken) / 2, taken, taken, 0, 0, side, side);
  bitmap.close();
  return { pixels: toGrey(context.getImageData(0, 0, side, side).data), width, height };
}
