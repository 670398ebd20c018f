// Frames as dekag.frame writes them: what a delivery sends, as one binary file.

const MAGIC = [0x89, 0x44, 0x4b, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const VERSION = 2;
const PREFIX = 16;
const FIELDS = ["uses", "snr_db", "rayleigh", "blocks", "correlation", "phase", "pilots"];

/**
 * The first image of a frame of received symbols: its header, and what the codec's decoder takes, each a
 * Float32Array: pairs of real and imaginary part, the noise power, and the condition's fields in their order.
 * Throws an Error, one line, if the buffer is no such frame.
 */
export function readFrame(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  if (bytes.length < PREFIX || MAGIC.some((byte, place) => bytes[place] !== byte)) {
    throw new Error("the answer is no frame");
  }
  if (view.getUint32(8, true) !== VERSION) {
    throw new Error(`the frame has version ${view.getUint32(8, true)}, this page reads ${VERSION}`);
  }
  const start = PREFIX + view.getUint32(12, true);
  if (start > bytes.length) throw new Error("the frame is truncated");
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(PREFIX, start)));
  const images = header.condition.uses.length;
  const pairs = 2 * header.columns;
  if (!header.received) throw new Error("the frame holds symbols as sent, not as received");
  if (bytes.length !== start + 4 * images * (2 * pairs + 1) + 4) {
    throw new Error("the frame's length is not what its header says");
  }
  if (view.getUint32(bytes.length - 4, true) !== crc32(bytes.subarray(0, -4))) {
    throw new Error("the frame was damaged on its way");
  }
  const condition = FIELDS.map((name) => Number(header.condition[name][0]));
  const [uses, , rayleigh, blocks, , , pilots] = condition;
  const payload = uses - rayleigh * blocks * pilots;
  return {
    header,
    payload,
    symbols: floats(view, start, 2 * payload),
    gain: floats(view, start + 4 * images * pairs, 2 * payload),
    noisePower: floats(view, start + 8 * images * pairs, 1),
    condition: new Float32Array(condition),
  };
}

function floats(view, offset, count) {
  return Float32Array.from({ length: count }, (_, place) => view.getFloat32(offset + 4 * place, true));
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
