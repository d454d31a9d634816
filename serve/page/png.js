// A grey PNG of 8 or 16 bits: a canvas can write none.

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** A Blob of `values` (row by row, at most `most`) as a grey PNG: 8 bits where `most` fits, else 16. */
export async function greyPng(values, { width, height }, most) {
  const bytes = most < 256 ? 1 : 2;
  const rows = new Uint8Array(height * (1 + width * bytes)); // each row begins with its filter: 0, none
  for (let y = 0, to = 0, from = 0; y < height; y++) {
    to++;
    for (let x = 0; x < width; x++, from++) {
      if (bytes === 2) rows[to++] = values[from] >> 8;
      rows[to++] = values[from] & 255;
    }
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8 * bytes;
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  return new Blob([signature, chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

function chunk(name, data) {
  const out = new Uint8Array(12 + data.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(name), 4);
  out.set(data, 8);
  let crc = ~0;
  for (const byte of out.subarray(4, 8 + data.length)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc);
  return out;
}
