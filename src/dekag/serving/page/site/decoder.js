// The user's decoders: received symbols to a latent, the latent to a picture, both in this browser.

import * as ort from "./vendor/onnxruntime-web-1.30.0/ort.wasm.bundle.min.mjs";
import { getBytes, getJson } from "./api.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {
  wasm: new URL("./vendor/onnxruntime-web-1.30.0/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

// the first run is slow: it is of nothing, while the edge draws
const WARM_UP = {
  symbols: new Float32Array(128),
  gain: new Float32Array(128),
  noisePower: Float32Array.of(1),
  condition: Float32Array.of(64, 0, 0, 1, 0, 0, 0),
  payload: 64,
};

let loaded = null;

/** Fetch the edge's decoders and make them ready; the next call finds them. */
export function loadDecoders() {
  loaded ??= load().catch((error) => {
    loaded = null;
    throw error;
  });
  return loaded;
}

/** Have the next call fetch them again: the edge may have changed its update. */
export function forgetDecoders() {
  loaded = null;
}

/** The picture in a frame: {pixels: Float32Array, RGB planes in [0, 1], side, milliseconds}. */
export async function decode(frame) {
  let decoders = await loadDecoders();
  if ((frame.header.bundles.transmission ?? null) !== decoders.transmission) {
    forgetDecoders();
    decoders = await loadDecoders();
    if ((frame.header.bundles.transmission ?? null) !== decoders.transmission) {
      throw new Error("the edge sent with an update that it has no decoder for; try again");
    }
  }
  const started = performance.now();
  const { image } = await run(decoders, frame);
  return { pixels: image.data, side: image.dims[3], milliseconds: performance.now() - started };
}

/** The latent and the picture of a frame's first image, as tensors. */
async function run({ codec, image }, { symbols, gain, noisePower, condition, payload }) {
  const { latent } = await codec.run({
    symbols: tensor(symbols, [1, payload, 2]),
    gain: tensor(gain, [1, payload, 2]),
    noise_power: tensor(noisePower, [1]),
    condition: tensor(condition, [1, condition.length]),
  });
  return { latent, ...(await image.run({ latent })) };
}

async function load() {
  const told = await getJson("v1/decoders");
  const [codec, image] = await Promise.all([session(told.codec), session(told.image)]);
  await run({ codec, image }, WARM_UP);
  return { transmission: told.transmission, codec, image };
}

async function session(file) {
  return ort.InferenceSession.create(await getBytes(file.url.replace(/^\//, "")), { executionProviders: ["wasm"] });
}

function tensor(values, shape) {
  return new ort.Tensor("float32", values, shape);
}
