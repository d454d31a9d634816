// COCO's compressed run lengths: lengths of runs of outside and inside in turn, column by column, five bits a character.

/** The run lengths of `counts`, which sum to `pixels`. Throws RangeError on text that is none. */
export function runLengths(counts, pixels) {
  const runs = [];
  let total = 0;
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      if (!(code >= 0 && code < 64) || shift > 25) throw new RangeError("these are not COCO run lengths");
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift; // sign
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new RangeError("a run length is negative");
    runs.push(value);
    total += value;
  }
  if (total !== pixels) throw new RangeError(`run lengths of ${total} pixels, expected ${pixels}`);
  return runs;
}

/** Calls `visit(x, y0, y1)` for each vertical stretch [y0, y1) of pixels inside. */
export function eachStretch(runs, height, visit) {
  let begin = 0;
  runs.forEach((length, index) => {
    if (index % 2) {
      for (let at = begin; at < begin + length; ) {
        const x = Math.floor(at / height);
        const end = Math.min(begin + length, (x + 1) * height);
        visit(x, at - x * height, end - x * height);
        at = end;
      }
    }
    begin += length;
  });
}

/** The mask {size: [height, width], counts} as Uint8Array of 0 and 1, row by row. */
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  eachStretch(runLengths(counts, height * width), height, (x, y0, y1) => {
    for (let y = y0; y < y1; y++) mask[y * width + x] = 1;
  });
  return mask;
}
