// One colour a segment: hues a golden angle apart, in three lightnesses, in a space where equal steps look equal (Oklch).

const TONES = [[0.7, 0.16], [0.8, 0.13], [0.62, 0.17]]; // lightness, chroma

/** [r, g, b] of 0 to 255 for the segment at place `index`, from 0. */
export function colour(index) {
  const [lightness, chroma] = TONES[index % TONES.length];
  const hue = ((index * 137.508 + 30) * Math.PI) / 180;
  const a = chroma * Math.cos(hue);
  const b = chroma * Math.sin(hue);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map(encoded);
}

function encoded(linear) {
  const value = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
}

/** The colour as CSS writes it. */
export function css([r, g, b], alpha = 1) {
  return `rgb(${r} ${g} ${b} / ${alpha})`;
}
