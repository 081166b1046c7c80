// A zip of files that the browser holds: stored as they are, for pictures are compressed already.

const FLAGS = 0x0800; // names are UTF-8

/** A Blob of [{name, bytes}] as a zip with that time on every file. */
export function zipped(files, now = new Date()) {
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const encoded = new TextEncoder().encode(name);
    // version, flags, stored, time, date, checksum, size twice, length of the name, no extra field
    const shared = [[20, 2], [FLAGS, 2], [0, 2], [time, 2], [date, 2], [checksum(bytes), 4], [bytes.length, 4], [bytes.length, 4], [encoded.length, 2], [0, 2]];
    const head = packed([[0x04034b50, 4], ...shared]);
    directory.push(packed([[0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), encoded);
    parts.push(head, encoded, bytes);
    offset += head.length + encoded.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Numbers of so many bytes each, the lowest byte first. */
function packed(fields) {
  const bytes = [];
  for (const [value, width] of fields) {
    for (let place = 0; place < width; place += 1) bytes.push((value >>> (8 * place)) & 0xff);
  }
  return Uint8Array.from(bytes);
}

/** CRC-32 as the zip format has it. */
function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
