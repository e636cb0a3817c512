// Packs the files of a folder into a zip archive, as `syncbn submit --code` does.
"use strict";

const SKIPPED_FOLDERS = new Set(["__pycache__", "node_modules", "mlruns", "syncbn-data"]);
const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = crcTable[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

/** The files of a chosen folder that are code, by their paths within it: no hidden, generated or installed ones. */
function codeFiles(files) {
  const within = [...files].map((file) => [file.webkitRelativePath.split("/").slice(1).join("/"), file]);
  const environments = within.filter(([path]) => path.endsWith("/pyvenv.cfg")).map(([path]) => path.slice(0, -"pyvenv.cfg".length));
  return within
    .filter(([path]) => {
      const [name, ...folders] = path.split("/").reverse();
      return !name.startsWith(".") && !/\.py[co]$/.test(name)
        && !folders.some((folder) => folder.startsWith(".") || SKIPPED_FOLDERS.has(folder) || folder.endsWith(".egg-info"))
        && !environments.some((folder) => path.startsWith(folder));
    })
    .sort(([one], [other]) => (one < other ? -1 : 1));
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The fields of a zip record, little endian: [bytes, value] each. */
function record(...fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 4) view.setUint32(at, value, true); else view.setUint16(at, value, true);
    at += size;
  }
  return bytes;
}

/** A zip archive of [path, file] pairs. Order, times and permissions are fixed: equal files give equal bytes. */
async function zipped(files) {
  const parts = [], directory = [];
  let offset = 0, length = 0;
  for (const [path, file] of files) {
    const content = new Uint8Array(await file.arrayBuffer());
    const packed = await deflated(content), name = new TextEncoder().encode(path);
    // Version 2.0, names in UTF-8, deflated, 1 January 1980.
    const shared = [[2, 20], [2, 0x0800], [2, 8], [2, 0], [2, 0x21], [4, crc32(content)], [4, packed.length], [4, content.length], [2, name.length], [2, 0]];
    const head = record([4, 0x04034b50], ...shared);
    parts.push(head, name, packed);
    // Made on Unix: a plain file that all may read.
    const entry = record([4, 0x02014b50], [2, 0x0314], ...shared, [2, 0], [2, 0], [2, 0], [4, 0o100644 * 65536], [4, offset]);
    directory.push(entry, name);
    offset += head.length + name.length + packed.length;
    length += entry.length + name.length;
  }
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
