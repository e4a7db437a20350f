// An image on its way to the server, and what was kept of it, drawn.

import { moves } from "./animation.js";
import { Told } from "./stream.js";

const KINDS = ["image/jpeg", "image/png", "image/webp", "image/gif"];
const MOST_BYTES = 6e6;
const MOST_PIXELS = 16e6;
const DRAWN = 1024; // pixels of the longer side

/** Return an image file as the server takes it: as it is, or as a JPEG, of its first frame where it is an animation. */
export async function read(file) {
  const shown = new Image();
  shown.src = URL.createObjectURL(file);
  try {
    await shown.decode();
  } catch {
    URL.revokeObjectURL(shown.src);
    throw new Told(`This browser cannot read "${file.name}" as an image: choose a JPEG, PNG, WebP or GIF.`, "image");
  }
  const [width, height] = [shown.naturalWidth, shown.naturalHeight];
  const fits = file.size <= MOST_BYTES && width * height <= MOST_PIXELS;
  if (fits && !moves(new Uint8Array(await file.arrayBuffer())) && KINDS.includes(file.type)) return { shown, url: await dataUrl(file), changed: false };
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / 4 / (width * height)));
  [canvas.width, canvas.height] = [Math.round(width * scale) || 1, Math.round(height * scale) || 1];
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // a JPEG has no transparency, and would be black there
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(shown, 0, 0, canvas.width, canvas.height);
  return { shown, url: canvas.toDataURL("image/jpeg", 0.92), changed: true };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Told(`"${file.name}" cannot be read.`, "image"));
    reader.readAsDataURL(file);
  });
}

/** Return where the kept tokens lie: top, left, bottom, right in fractions of the image. */
export function places(seen) {
  if (seen.boxes) return seen.boxes;
  if (!seen.grid) return [];
  const { rows, columns } = seen.grid;
  const [top, left, bottom, right] = seen.view;
  const [height, width] = [(bottom - top) / rows, (right - left) / columns];
  return seen.kept_indices
    .map((index) => index - seen.first)
    .filter((cell) => cell >= 0 && cell < rows * columns)
    .map((cell) => {
      const [y, x] = [top + height * Math.floor(cell / columns), left + width * (cell % columns)];
      return [y, x, y + height, x + width];
    });
}

/** Draw an image; where something was pruned, darken what was, and frame what was kept. */
export function draw(canvas, image, seen) {
  const scale = Math.min(1, DRAWN / Math.max(image.naturalWidth, image.naturalHeight));
  const width = (canvas.width = Math.max(1, Math.round(image.naturalWidth * scale)));
  const height = (canvas.height = Math.max(1, Math.round(image.naturalHeight * scale)));
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, width, height);
  const kept = seen && seen.kept < seen.candidates ? places(seen) : [];
  if (!kept.length) return;
  pen.fillStyle = "rgba(10, 10, 14, 0.72)";
  pen.fillRect(0, 0, width, height);
  pen.beginPath();
  for (const [top, left, bottom, right] of kept) {
    pen.rect(left * width, top * height, (right - left) * width, (bottom - top) * height);
  }
  pen.save();
  pen.clip();
  pen.drawImage(image, 0, 0, width, height);
  pen.restore();
  pen.lineWidth = Math.max(1, Math.max(width, height) / 512);
  pen.strokeStyle = "#fff";
  pen.stroke();
}
