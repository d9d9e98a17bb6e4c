// The page's data: base64, zlib, JSON with arrays beside it. numgpt/insight/payload.py writes it.

async function unpacked(base64) {
  if (typeof DecompressionStream === "undefined")
    throw new Error("this browser is too old to unpack the page's data: it needs DecompressionStream (2023)");
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const json = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return revived(json.data, kinds(json.kinds, new Uint8Array(buffer, 4 + length)));
}

const ARRAYS = {
  half: Uint16Array,
  float32: Float32Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
};

// All numbers of each kind. They lie as planes: all first bytes, all second ones, …
function kinds(counts, bytes) {
  const found = {};
  let start = 0;
  for (const [kind, count] of counts) {
    const width = ARRAYS[kind].BYTES_PER_ELEMENT;
    const joined = new Uint8Array(count * width);
    for (let plane = 0; plane < width; plane++)
      for (let i = 0; i < count; i++) joined[i * width + plane] = bytes[start + plane * count + i];
    found[kind] = new ARRAYS[kind](joined.buffer);
    start += count * width;
  }
  return found;
}

// Arrays in the place of their descriptions.
function revived(value, numbers) {
  if (Array.isArray(value)) return value.map((item) => revived(item, numbers));
  if (value === null || typeof value !== "object") return value;
  if ("dtype" in value && "at" in value) return new NumberArray(value, numbers);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, revived(item, numbers)]));
}

// An array of numbers of any shape; it is decoded when it is first asked for.
class NumberArray {
  constructor({ shape, dtype, at, scale, length }, numbers) {
    this.shape = shape;
    const size = shape.reduce((product, length) => product * length, 1);
    this.written = numbers[dtype].subarray(at, at + size);
    if (dtype !== "half") this.numbers = this.written;
    else Object.assign(this, { scales: numbers.float32.subarray(scale), length });
  }

  get flat() {
    if (!this.numbers) {
      const { scales, length } = this;
      this.numbers = Float32Array.from(
        this.written,
        (half, i) => halfToNumber(half) * scales[Math.floor(i / length)],
      );
    }
    return this.numbers;
  }

  get largest() {
    this.most ??= largestOf(this.flat);
    return this.most;
  }

  at(...index) {
    return this.flat[this.offset(index)];
  }

  // The numbers of the last axes, where the first ones are given.
  row(...index) {
    const inner = this.shape.slice(index.length).reduce((product, length) => product * length, 1);
    const start = this.offset([...index, ...Array(this.shape.length - index.length).fill(0)]);
    return this.flat.subarray(start, start + inner);
  }

  offset(index) {
    return index.reduce((place, i, axis) => place * this.shape[axis] + i, 0);
  }
}

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
