// A file of any kind that the browser reads becomes a picture that the service takes, upright and within its limits.

import { ServiceError } from "./api.js";

const KINDS = [
  ["image/jpeg", /^\xff\xd8\xff/],
  ["image/png", /^.PNG\r\n/],
  ["image/webp", /^RIFF[^]{4}WEBP/],
];
const EXIF = /(?:Exif\0\0|eXIf|EXIF[^]{4})(?:II\*\0|MM\0\*)/; // of JPEG, PNG and WebP, and the head of the TIFF file in it

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
  const start = asText(await file.slice(0, 12).arrayBuffer());
  const [kind] = KINDS.find(([, pattern]) => pattern.test(start)) ?? [""]; // the file's name, and with it its type, may say something else
  const large = file.size > limits.bytes;
  const whole = { name: file.name ?? "image", note: "" };
  if (kind && scale === 1 && !large && orientation(await file.arrayBuffer()) === 1) {
    return { ...whole, file: file.slice(0, file.size, kind), bitmap, width: bitmap.width, height: bitmap.height };
  }
  const canvas = new OffscreenCanvas(Math.max(1, Math.floor(bitmap.width * scale)), Math.max(1, Math.floor(bitmap.height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const jpeg = () => canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
  let sent = await (kind === "image/jpeg" || large ? jpeg() : canvas.convertToBlob({ type: "image/png" }));
  if (sent.size > limits.bytes) sent = await jpeg();
  const note = scale < 1 ? `Made smaller to ${canvas.width} × ${canvas.height}, which the service takes at most.` : "";
  return { ...whole, note, file: sent, bitmap: await createImageBitmap(sent), width: canvas.width, height: canvas.height };
}

/** EXIF orientation of a JPEG, PNG or WebP file: 1 is upright, 2 to 8 turned or mirrored. */
function orientation(buffer) {
  const exif = EXIF.exec(asText(buffer));
  if (!exif) return 1;
  const view = new DataView(buffer, exif.index + exif[0].length - 4);
  const little = view.getUint8(0) === 0x49;
  const number = (at) => (at + 2 <= view.byteLength ? view.getUint16(at, little) : 0);
  const entries = view.byteLength < 8 ? 0 : view.getUint32(4, little);
  for (let entry = entries + 2; entry < entries + 2 + 12 * number(entries); entry += 12) {
    if (number(entry) === 0x0112) return number(entry + 8);
  }
  return 1;
}

/** Bytes as a text of as many characters. */
const asText = (buffer) => new TextDecoder("latin1").decode(buffer);
