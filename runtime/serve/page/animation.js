// Whether an image moves, by what its file says.

const ascii = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/** Return whether a file's bytes are an animation: a GIF of several images, a PNG or WebP that says to be one. */
export function moves(bytes) {
  if (ascii(bytes, 0, 4) === "GIF8") return images(bytes) > 1;
  if (ascii(bytes, 1, 4) === "PNG") return controlled(bytes);
  return ascii(bytes, 8, 16) === "WEBPVP8X" && Boolean(bytes[20] & 2);
}

/** Count a GIF's images, two at most. */
function images(bytes) {
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let at = 13 + table(bytes[10]);
  let count = 0;
  while (count < 2 && at < bytes.length) {
    const kind = bytes[at];
    if (kind === 0x2c) {
      count += 1;
      at += 11 + table(bytes[at + 9]);
    } else if (kind === 0x21) at += 2;
    else break;
    while (bytes[at]) at += bytes[at] + 1; // blocks of up to 255 bytes, until an empty one
    at += 1;
  }
  return count;
}

/** Whether a PNG has the chunk of animations, which is before its pixels. */
function controlled(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 8 <= bytes.length; at += view.getUint32(at) + 12) {
    const name = ascii(bytes, at + 4, at + 8);
    if (name === "acTL" || name === "IDAT") return name === "acTL";
  }
  return false;
}
