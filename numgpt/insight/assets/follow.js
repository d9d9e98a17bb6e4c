// A token's way, step by step: equation, shapes, code, whole vectors, and the formula's numbers.

const STRIP_COLUMNS = 400; // numbers of a vector side by side
const ROUNDING = 1e-6; // of the largest number of all tokens, below which there is nothing else

const LETTERS = [
  ["B", "texts at once, the batch"],
  ["T", "tokens of the text; in attention those that look, the queries"],
  ["S", "tokens, as keys"],
  ["C", "features of the stream"],
  ["H", "heads of attention"],
  ["K", "heads of keys and values, each for H/K heads"],
  ["D", "features of a head"],
  ["F", "features of the feed-forward layer"],
  ["V", "tokens of the vocabulary"],
  ["P", "places that the model can see at once"],
];

function followView(data, state) {
  const groups = data.groups.filter((group) => group.layer === null || group.layer === state.layer);
  const parts = groups.flatMap((group) => {
    const steps = groupOf(data, state, group);
    if (group.layer === null) return [steps];
    return [between(data, group.layer), steps, between(data, data.blocks - group.layer - 1)];
  });
  const first = state.direction === "forward" ? [piecesStep(data, state), legend()] : [];
  if (state.direction === "backward") {
    parts.reverse();
    parts.unshift(
      el(
        "p",
        {},
        `The loss is ${number(data.loss)} nats a token (logarithms to the base e): `,
        data.sizes.T === 1
          ? "−log p of the token after this one."
          : `the mean of −log p over ${data.sizes.T} predictions, of each token of the text but the first, and of one after it.`,
        " Below stands the gradient of everything on the way, from the loss back to the embedding; a d before a name",
        " is short for it: dx for ∂loss/∂x, ds for ∂loss/∂s, and so on. The names are those of the forward direction.",
        Object.keys(data.checks).length
          ? ` At token ${data.token}, in layer ${data.layers[0]} and outside the blocks, in most steps one number, the largest, is checked by a finite difference: the loss is computed again with this one number moved a little.`
          : "",
      ),
      legend(),
    );
  }
  return [...first, ...parts];
}

// What the strips of colours are.
function legend() {
  const canvas = el("canvas", { role: "img", "aria-label": "from orange, −m, over zero to blue, m" });
  paint(canvas, 1, 141, (_, c) => c - 70, 70);
  return el(
    "p",
    { class: "legend" },
    el("span", {}, "−m"),
    canvas,
    el("span", {}, "m"),
    el(
      "span",
      {},
      "A strip is a vector, each of its cells a number; a long one goes on in a second row. m is the largest of the strip, without its",
      " sign; zero is in the middle of the bar, and small numbers are drawn stronger than they are, by the square root. Here and below",
      " “largest” is said of numbers without their signs.",
    ),
  );
}

// A word on the blocks that are left out before or after the one that is shown.
function between(data, count) {
  const where =
    data.layers.length === data.blocks ? "“Layer” chooses" : "those that are kept are under “Layer”";
  const blocks = count === 1 ? "block" : "blocks";
  return el("p", { class: "faint between", hidden: count === 0 }, `… ${count} more ${blocks}: ${where}`);
}

function groupOf(data, state, group) {
  const steps = group.steps.map((step) => stepOf(data, state, step));
  if (state.direction === "backward") steps.reverse();
  return el("section", { "aria-label": group.title }, el("h2", {}, group.title), ...steps);
}

function piecesStep(data, state) {
  const t = state.token;
  const rows = data.pieces.map((piece, place) => [
    `${place}${place === t ? " ◂" : ""}`,
    el("span", { class: "piece" }, piece),
    String(data.ids.at(place)),
  ]);
  return el(
    "section",
    { "aria-label": "Text to ids" },
    el("h2", {}, "The text"),
    el(
      "div",
      { class: "step" },
      el("h3", {}, "Text → pieces → ids"),
      el(
        "p",
        {},
        `Token ${t} is “${data.pieces[t]}”, number ${data.ids.at(t)} of a vocabulary of ${data.sizes.V}.`,
      ),
      opening(state, "All pieces", "All pieces", () => [
        table("", ["place", "piece", "id"], rows, { text: [0, 1] }),
      ]),
      opening(state, "letters", "The letters of shapes", () => [
        table(
          "",
          ["letter", "size", "of"],
          LETTERS.map(([letter, of]) => [letter, String(data.sizes[letter]), of]),
          { text: [0, 2], result: false },
        ),
      ]),
    ),
  );
}

function stepOf(data, state, step) {
  const side = step[state.direction];
  const equation = el("p", { class: "equation" });
  equation.innerHTML = side.equation; // written by numgpt from its own formulas
  const symbols = side.symbols ? el("p", { class: "shapes" }) : null;
  if (symbols) symbols.innerHTML = side.symbols;
  return el(
    "article",
    { class: "step", "data-step": step.name, "data-hook": step.hook },
    el("h3", {}, step.title),
    side.words ? el("p", { class: "words" }, side.words) : null,
    equation,
    symbols,
    el("p", { class: "shapes" }, side.shapes.join(" · ")),
    lessonOf(step),
    ...side.strips.map((strip) => stripOf(data, state, strip)),
    el(
      "div",
      { class: "tables" },
      ...side.tables.map((numbers, i) =>
        tableOf(data, state, numbers, `${step.name}/${state.direction}/${i}`),
      ),
    ),
    state.direction === "backward" ? checkOf(data, state, step) : null,
    ...side.functions.map((name) => sourceOf(data, state, name, `${step.name}/${state.direction}/${name}`)),
  );
}

// Where the course derives a step: beside the page, if "numgpt lessons" has written it there.
function lessonOf(step) {
  const name = `lesson ${parseInt(step.lesson, 10)}`;
  const link = el("a", { href: `lessons/${step.lesson}.ipynb`, target: "_blank" }, name);
  link.title = "a notebook, which numgpt lessons writes beside this page";
  return el("p", { class: "lesson" }, "derived in ", link);
}

// The head whose numbers a table or strip shows: a group of heads shares keys and values.
function headOf(data, state, heads) {
  return heads === "K" ? Math.floor((state.head * data.sizes.K) / data.sizes.H) : state.head;
}

function headName(data, state, heads) {
  const kind = heads === "K" && data.sizes.K < data.sizes.H ? "KV head" : "head";
  return heads ? ` of ${kind} ${headOf(data, state, heads)}` : "";
}

function place(data, state, heads) {
  return heads ? [state.token, headOf(data, state, heads)] : [state.token];
}

function stripOf(data, state, strip) {
  const numbers = strip.array.row(...place(data, state, strip.heads));
  const rows = Math.ceil(numbers.length / STRIP_COLUMNS);
  const columns = Math.ceil(numbers.length / rows);
  const largest = largestOf(numbers);
  const peak = numbers.findIndex((x) => Math.abs(x) === largest);
  const nothing = largest < ROUNDING * strip.array.largest;
  const label =
    `${strip.label}${headName(data, state, strip.heads)}: ${numbers.length} numbers, ` +
    (nothing ? "0 but for rounding" : `the largest ${number(numbers[peak], 3)} at feature ${peak}`);
  const field = heat({
    rows,
    columns,
    valueAt: (r, c) => (nothing ? 0 : (numbers[r * columns + c] ?? null)),
    describe: (r, c) => {
      const at = r * columns + c;
      return at < numbers.length ? `${strip.label}[${at}] = ${number(numbers[at], 3)}` : null;
    },
    label: `${label}. Arrow keys read single numbers.`,
    height: Math.max(22, 12 * rows),
    start: [Math.floor(peak / columns), peak % columns],
  });
  const head = el("div", { class: "label" }, el("span", {}, label), field.readout);
  return el("div", { class: "strip" }, head, field.canvas);
}

function rowName(data, kind, index) {
  if (kind === "token") return `“${visible(data.vocabulary[index])}”`;
  return kind === "key" ? `key ${index}, “${data.pieces[index]}”` : `feature ${index}`;
}

function tableOf(data, state, numbers, key) {
  if (numbers.kind === "values") return valuesOf(data, state, numbers);
  return numbers.kind === "keys" ? keysOf(data, state, numbers) : productOf(data, state, numbers, key);
}

function valuesOf(data, state, numbers) {
  const at = place(data, state, numbers.heads);
  const target = data.targets.at(state.token);
  const rows = [...numbers.chosen.row(...at)].map((index, n) => [
    numbers.rows === "feature"
      ? String(index)
      : rowName(data, numbers.rows, index) + (numbers.rows === "token" && index === target
        ? isAssumed(data, state.token)
          ? " ◂ assumed"
          : " ◂ came"
        : ""),
    ...numbers.columns.map((_, column) => number(numbers.values.at(...at, column, n))),
  ]);
  const caption =
    numbers.rows === "token"
      ? "The likeliest tokens, and the one that comes"
      : `The ${rows.length} features with the largest ${numbers.columns.at(-1)}`;
  return table(
    `${caption}${headName(data, state, numbers.heads)}`,
    [numbers.rows, ...numbers.columns],
    rows,
  );
}

function keysOf(data, state, numbers) {
  const query = state.token;
  const scalars = Object.entries(numbers.scalars).map(
    ([name, of]) => `${name} = ${number(of.at(query, state.head), 3)}`,
  );
  const rows = [];
  for (let key = 0; key <= query; key++)
    rows.push([
      rowName(data, "key", key),
      ...numbers.matrices.map((matrix) => {
        const x = matrix.at(query, state.head, key);
        return Math.abs(x) > ROUNDING * matrix.largest ? number(x, 3) : "0"; // the rest is rounding
      }),
    ]);
  const caption = `Head ${state.head}: query ${query} and each key that it sees, which are those up to itself${scalars.length ? `; ${scalars.join(", ")}` : ""}`;
  return table(caption, ["key", ...numbers.columns], rows);
}

// What a sum's term is of, and its x: inputs are parts, one after another, as tables.py has them.
function inputOf(data, inputs, at, index) {
  for (const { name, x, by } of inputs) {
    if (x === null) return [inputName(data, name, index, 0, null), null];
    if (by === "query") {
      const { T, H, K } = data.sizes;
      const head = (at[1] * H) / K + Math.floor(index / T);
      return [inputName(data, name, index % T, 0, H > K ? head : null), x.at(index % T, head, at[0])];
    }
    const numbers = x.row(...at.slice(0, by === "head" ? 2 : 1));
    if (index < numbers.length) {
      const size = by === "head" || x.shape.length === 2 ? 0 : x.shape[2];
      return [inputName(data, name, index, size, null), numbers[index]];
    }
    index -= numbers.length;
  }
  throw new Error(`no input ${index}`);
}

// head: whose query it is, where several share a KV head.
function inputName(data, name, index, size, head) {
  if (name === "token") return `“${visible(data.vocabulary[index])}”`;
  if (name === "key" || name === "query") {
    return `${name} ${index} “${data.pieces[index]}”${head === null ? "" : `, head ${head}`}`;
  }
  const grouped = /^d?[kv]$/.test(name) && data.sizes.K < data.sizes.H;
  return size ? `${name}[${grouped ? "KV " : ""}head ${Math.floor(index / size)}, ${index % size}]` : `${name}[${index}]`;
}

// y_j = Σ_i x_i W_ij + b_j of one j, chosen among those with the largest results.
function productOf(data, state, numbers, key) {
  const at = place(data, state, numbers.heads);
  const [xName, wName] = numbers.factors;
  const chosen = [...numbers.chosen.row(...at)];
  const most = numbers.sums.largest;
  // What is that small beside the others is nothing but their rounding.
  const half = (x) => (Math.abs(x) < ROUNDING * most ? "0" : number(x, 3));
  const holder = el("div");
  const choices = el("div", {
    class: "choices",
    role: "group",
    "aria-label": `Which ${numbers.rows} of ${numbers.title}`,
  });
  const show = (n) => {
    state.chosen[key] = n;
    const [rest, bias, result] = [0, 1, 2].map((which) => numbers.sums.at(...at, which, n));
    const rows = [];
    let inRows = 0;
    [...numbers.terms_index.row(...at, n)].forEach((index, m) => {
      const term = numbers.terms.at(...at, n, m);
      if (term === 0) return;
      inRows++;
      const [name, input] = inputOf(data, numbers.inputs, at, index);
      const factors = [input ?? numbers.x.at(...at, n, m), numbers.w.at(...at, n, m)];
      rows.push([name, ...factors.map((x) => number(x, 3)), half(term)]);
    });
    if (rest !== 0) rows.push(["all others", "", "", half(rest)]);
    if (bias !== 0) rows.push(["bias", "", "", half(bias)]);
    rows.push([`${numbers.title}, ${rowName(data, numbers.rows, chosen[n])}`, "", "", half(result)]);
    const product =
      numbers.factor === 1 ? `${xName} · ${wName}` : `${number(numbers.factor)} · ${xName} · ${wName}`;
    const terms = inRows === 1 ? "the largest term" : `the ${inRows} largest terms`;
    const which = rest === 0 ? "all terms of its sum" : `${terms} of its sum, then the others together`;
    const caption = `${numbers.title}, ${rowName(data, numbers.rows, chosen[n])}: ${which}`;
    holder.replaceChildren(table(caption, ["from", xName, wName, product], rows));
    choices
      .querySelectorAll("button")
      .forEach((button, i) => button.setAttribute("aria-pressed", String(i === n)));
  };
  chosen.forEach((index, n) => {
    if (numbers.rows === "key" && index > state.token) return; // not seen
    const text = `${rowName(data, numbers.rows, index)}: ${half(numbers.sums.at(...at, 2, n))}`;
    choices.append(
      el("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => show(n) }, text),
    );
  });
  const opening = state.chosen[key] ?? 0;
  show(opening < choices.children.length ? opening : 0);
  const of = headName(data, state, numbers.heads);
  const title = el("p", { class: "sum" }, `One number of ${numbers.title}${of}, as a sum. Choose which:`);
  return el("div", { "data-product": numbers.title }, title, choices, holder);
}

// What stands at the hooks that are checked.
const CHECKED = {
  "attn.hook_q": "q", "attn.hook_q_normed": "q°", "attn.hook_rot_q": "q′", "attn.hook_z": "z", "attn.hook_pattern": "p",
  "mlp.hook_pre": "what goes into the activation", "mlp.hook_post": "post", hook_normalized: "x̂",
  hook_embed: "wte[id]", hook_resid_pre: "x", hook_resid_mid: "x", hook_resid_post: "x",
};

function checkOf(data, state, step) {
  const check = data.checks[step.hook];
  if (!check || state.token !== data.token) return null;
  const [first, second, third] = check.place;
  const headFirst = step.hook.endsWith("pattern") || step.hook.endsWith("normed");
  let place = `token ${first}, feature ${second}`;
  if (third !== undefined) place = `token ${first}, head ${second}, feature ${third}`;
  if (step.hook.endsWith("normed")) place = `token ${second}, head ${first}, feature ${third}`;
  if (step.hook.endsWith("pattern")) place = `head ${first}, query ${second}, key ${third}`;
  const what = CHECKED[step.hook.split(".").slice(-2).join(".")] ?? CHECKED[step.hook.split(".").pop()] ?? "this number";
  const head = headFirst ? first : third === undefined ? null : second;
  const elsewhere = head === null || head === state.head ? "" : ` (“Head” ${head} shows it)`;
  const off = Math.abs(check.gradient - check.difference) / (Math.abs(check.gradient) || 1);
  return el(
    "p",
    { class: "check" },
    `Checked at ${place}${elsewhere}: where ${what} moves by up to ±${number(check.step)}, the loss moves with a slope of `,
    el("b", {}, number(check.difference)),
    "; by the backward pass it is ",
    el("b", {}, number(check.gradient)),
    ` (${percent(off)} apart).`,
  );
}

function sourceOf(data, state, name, key) {
  const { file, line, text, derivation } = data.functions[name];
  return opening(state, key, `${name}, ${file}:${line}`, () => [
    el("pre", { tabindex: 0 }, text),
    el("details", {}, el("summary", {}, "The derivation"), el("pre", { tabindex: 0 }, derivation)),
  ]);
}

// What is made when it is opened, and stays open while another token, layer or head is looked at.
function opening(state, key, title, make) {
  const inside = el("div");
  const open = state.opened.has(key);
  if (open) inside.append(...make());
  const details = el("details", { open }, el("summary", {}, title), inside);
  details.addEventListener("toggle", () => {
    if (details.open && !inside.firstChild) inside.append(...make());
    if (details.open) state.opened.add(key);
    else state.opened.delete(key);
  });
  return details;
}
