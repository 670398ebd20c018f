// Pictures: files to numbers, numbers to canvases, and how far two of them are apart.

/** The pixels of a PNG file in base64: {pixels: Float32Array, RGB planes in [0, 1], side, bytes}. */
export async function fromPng(base64) {
  const file = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([file], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const count = bitmap.width * bitmap.height;
  const pixels = new Float32Array(3 * count);
  for (let place = 0; place < count; place += 1) {
    for (let colour = 0; colour < 3; colour += 1) pixels[colour * count + place] = data[4 * place + colour] / 255;
  }
  return { pixels, side: bitmap.width, bytes: file.length };
}

/** Show a picture of RGB planes on a canvas. */
export function show(canvas, { pixels, side }) {
  const count = side * side;
  const image = new ImageData(side, side);
  for (let place = 0; place < count; place += 1) {
    for (let colour = 0; colour < 3; colour += 1) image.data[4 * place + colour] = 255 * pixels[colour * count + place];
    image.data[4 * place + 3] = 255;
  }
  canvas.width = side;
  canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** PSNR in dB for a peak value of 1; Infinity where nothing differs. */
export function psnrDb(reference, estimate) {
  let sum = 0;
  for (let place = 0; place < reference.length; place += 1) sum += (reference[place] - estimate[place]) ** 2;
  return -10 * Math.log10(sum / reference.length);
}
