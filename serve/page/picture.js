// A file of any kind that the browser reads becomes a picture that the service takes, upright and within its limits.

import { ServiceError } from "./api.js";

const TAKEN = ["image/jpeg", "image/png", "image/webp"];

/**
 * {file, bitmap, width, height, name, note}: `file` is what is sent, `bitmap` what is shown, pixel for pixel the same.
 * The file is sent as it is where that is so; else it is written anew and `note` says why.
 */
export async function readPicture(file, limits) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turned upright as its EXIF says
  } catch {
    const allowed = "JPEG, PNG, WebP, or another picture that your browser shows";
    throw new ServiceError({ title: "The image cannot be read", detail: `“${file.name ?? "The file"}” is not a picture.`, seen: file.type || "unknown", allowed });
  }
  const scale = Math.min(1, limits.side / Math.max(bitmap.width, bitmap.height), Math.sqrt(limits.pixels / (bitmap.width * bitmap.height)));
  const photo = file.type === "image/jpeg";
  const turned = photo && (await orientation(file)) > 1;
  const large = file.size > limits.bytes;
  const whole = { name: file.name ?? "image", note: "" };
  if (scale === 1 && !turned && !large && TAKEN.includes(file.type)) return { ...whole, file, bitmap, width: bitmap.width, height: bitmap.height };
  const canvas = new OffscreenCanvas(Math.max(1, Math.floor(bitmap.width * scale)), Math.max(1, Math.floor(bitmap.height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const jpeg = () => canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
  let sent = await (photo || large ? jpeg() : canvas.convertToBlob({ type: "image/png" }));
  if (sent.size > limits.bytes) sent = await jpeg();
  const note = scale < 1 ? `Made smaller to ${canvas.width} × ${canvas.height}, which the service takes at most.` : "";
  return { ...whole, note, file: sent, bitmap: await createImageBitmap(sent), width: canvas.width, height: canvas.height };
}

/** EXIF orientation of a JPEG file: 1 is upright, 2 to 8 turned or mirrored. */
async function orientation(file) {
  const view = new DataView(await file.slice(0, 256 * 1024).arrayBuffer());
  const has = (at, count) => at + count <= view.byteLength;
  for (let at = 2; has(at, 4) && view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint16(at) !== 0xffe1 || !has(at, 18) || view.getUint32(at + 4) !== 0x45786966) continue; // "Exif"
    const tiff = at + 10;
    const little = view.getUint16(tiff) === 0x4949;
    const entries = tiff + view.getUint32(tiff + 4, little);
    const count = has(entries, 2) ? view.getUint16(entries, little) : 0;
    for (let entry = entries + 2; entry < entries + 2 + 12 * count && has(entry, 12); entry += 12) {
      if (view.getUint16(entry, little) === 0x0112) return view.getUint16(entry + 8, little);
    }
    return 1;
  }
  return 1;
}
