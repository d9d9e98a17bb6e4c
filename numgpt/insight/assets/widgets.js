// Elements, numbers as text, colours, and fields of numbers that can be looked at and read out.

// el("p", { class: "faint" }, "text", child): texts are texts, never HTML.
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Digits: 4 of float32 numbers, 3 of those that were written as float16.
function number(x, digits = 4) {
  if (x === 0) return "0";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : Number.isNaN(x) ? "NaN" : "−∞";
  const size = Math.abs(x);
  const text = size >= 1e-3 && size < 1e5 ? x.toPrecision(digits) : x.toExponential(digits - 1);
  return text.replace(/-/g, "−");
}

function percent(p) {
  const value = 100 * p;
  if (value >= 99.95 && p < 1) return ">99.9%";
  return value >= 0.1 ? `${value.toFixed(1)}%` : value > 0 ? "<0.1%" : "0%";
}

// A piece of text as it can be seen: spaces, line breaks.
function visible(piece) {
  return piece.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

// Of buttons that the arrow keys go through one is chosen: the tab key leads to it.
function mark(buttons, attribute, chosen) {
  buttons.forEach((button, i) => {
    button.setAttribute(attribute, String(i === chosen));
    button.tabIndex = i === chosen ? 0 : -1;
  });
}

const palette = { below: [0, 0, 0], zero: [0, 0, 0], above: [0, 0, 0] };

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of Object.keys(palette)) {
    const hex = style.getPropertyValue(`--${name}`).trim();
    const digits = hex.length === 4 ? [...hex.slice(1)].map((c) => c + c).join("") : hex.slice(1);
    palette[name] = [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
  }
}

// -1 … 1 -> a colour between those of below, zero and above; small numbers are lifted.
function colour(share) {
  const end = share < 0 ? palette.below : palette.above;
  const part = Math.sqrt(Math.min(1, Math.abs(share)));
  return palette.zero.map((from, i) => Math.round(from + (end[i] - from) * part));
}

// Text on a colour: dark or light, whichever is read better.
function inkOn([red, green, blue]) {
  const light = [red, green, blue].map((c) => ((c / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.18 ? "#000" : "#fff";
}

function paint(canvas, rows, columns, valueAt, largest) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) {
      const value = valueAt(r, c);
      const [red, green, blue] = value === null ? palette.zero : colour(largest ? value / largest : 0);
      image.data.set([red, green, blue, 255], 4 * (r * columns + c));
    }
  context.putImageData(image, 0, 0);
}

function largestOf(numbers) {
  return numbers.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
}

// A field of numbers: shown in colours, read with the mouse or with the arrow keys.
// describe(row, column) says what is there; null where there is nothing.
function heat({ rows, columns, valueAt, describe, label, height, start, onmove }) {
  let largest = 0;
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) largest = Math.max(largest, Math.abs(valueAt(r, c) ?? 0));
  const canvas = el("canvas", { class: "heat", tabindex: 0, role: "img", "aria-label": label });
  paint(canvas, rows, columns, valueAt, largest);
  if (height) canvas.style.height = `${height}px`;
  const readout = el("span", { class: "readout", "aria-live": "polite" });
  let [row, column] = start ?? [0, 0];
  const say = () => {
    const text = describe(row, column);
    if (text !== null) readout.textContent = text;
    if (onmove) onmove(row, column);
  };
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    row = Math.min(rows - 1, Math.max(0, row + move[0]));
    column = Math.min(columns - 1, Math.max(0, column + move[1]));
    say();
  });
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const inside = (at, size, count) => Math.min(count - 1, Math.max(0, Math.floor((at / size) * count)));
    return [
      inside(event.clientY - box.top, box.height, rows),
      inside(event.clientX - box.left, box.width, columns),
    ];
  };
  canvas.addEventListener("mousemove", (event) => showTip(event, describe(...under(event))));
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("click", (event) => {
    [row, column] = under(event);
    say();
  });
  return { canvas, readout };
}

function showTip(event, text) {
  const tip = document.getElementById("tip");
  tip.hidden = text === null;
  if (text === null) return;
  tip.textContent = text;
  tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 14}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// rows: arrays of texts or elements; `text` columns are aligned left, the last is the result.
function table(caption, heads, rows, { text = [0], result = true } = {}) {
  const kind = (i) =>
    [text.includes(i) ? "text" : "", result && i === heads.length - 1 ? "result" : ""].join(" ").trim();
  const cells = (row, name) =>
    row.map((cell, i) =>
      el(name, name === "th" ? { scope: "col", class: kind(i) } : { class: kind(i) }, cell),
    );
  const body = el(
    "table",
    { "aria-label": caption || null },
    el("thead", {}, el("tr", {}, ...cells(heads, "th"))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, "td")))),
  );
  // Beside the table, which may be wider than the page and move under it.
  return el(
    "div",
    { class: "titled" },
    caption ? el("p", { class: "caption" }, caption) : null,
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption || "Table" }, body),
  );
}

// Bars to the right and left of nothing. rows: [label, value, text, outlined value or null].
function bars(label, rows) {
  const least = Math.min(0, ...rows.flatMap(([, value, , before]) => [value, before ?? 0]));
  const most = Math.max(0, ...rows.flatMap(([, value, , before]) => [value, before ?? 0]));
  const span = most - least || 1;
  const bar = (value, kind) => {
    const from = (Math.min(0, value) - least) / span;
    return el("span", {
      class: kind,
      style: `left: ${100 * from}%; width: ${(100 * Math.abs(value)) / span}%`,
    });
  };
  return el(
    "div",
    { class: "bars", role: "list", "aria-label": label },
    ...rows.flatMap(([name, value, text, before]) => [
      el("span", { class: "piece", role: "listitem", "aria-label": `${name}: ${text}` }, name),
      el(
        "div",
        { class: "bar", "aria-hidden": "true" },
        bar(value, value < 0 ? "below" : ""),
        before === undefined ? null : bar(before, "before"),
      ),
      el("span", { class: "number", "aria-hidden": "true" }, text),
    ]),
  );
}
