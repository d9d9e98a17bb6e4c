// Attention, the lens, attribution, loss and sampling.

const MOST_BARS = 24;

// A text in which an underscore begins an index.
function indexed(text) {
  return text.split(/_(\w+)/).map((part, i) => (i % 2 ? el("sub", {}, part) : part));
}

// Parts of an equation.
function formula(...parts) {
  return el("p", { class: "equation" }, ...parts.map((part) => el("span", {}, ...indexed(part))));
}

// A head's matrix, query by key, of (query, head, key).
function matrixOf(matrices, head) {
  const [T] = matrices.shape;
  const numbers = new Float32Array(T * T);
  for (let query = 0; query < T; query++) numbers.set(matrices.row(query, head), query * T);
  return numbers;
}

// The tokens beside a matrix.
function axisOf(data, kind) {
  const size = `${Math.min(12, Math.floor(560 / data.sizes.T))}px`;
  const names = data.pieces.map((piece) => el("span", {}, piece.slice(0, 12)));
  return el("div", { class: `axis ${kind}`, "aria-hidden": "true", style: `font-size: ${size}` }, ...names);
}

function attentionView(data, state, set) {
  const name = state.direction === "forward" ? "p" : "dp";
  const { T, H } = data.sizes;
  const columns = Math.min(H, window.innerWidth < 560 ? 6 : 12);
  const grid = el("div", {
    class: "thumbnails",
    style: `grid-template-columns: max-content repeat(${columns}, minmax(34px, 84px))`,
    role: "group",
    "aria-label": "All layers and heads",
  });
  for (const layer of data.layers) {
    const matrices = data.patterns[layer][name];
    for (let head = 0; head < H; head++) {
      if (head % columns === 0) grid.append(el("span", { class: "head" }, head ? "" : `L${layer}`));
      const numbers = matrixOf(matrices, head);
      const canvas = el("canvas", { "aria-hidden": "true" });
      paint(canvas, T, T, (i, j) => (j > i ? null : numbers[i * T + j]), largestOf(numbers));
      const pressed = layer === state.layer && head === state.head;
      grid.append(
        el(
          "button",
          {
            type: "button",
            "aria-pressed": String(pressed),
            "aria-label": `Layer ${layer}, head ${head}`,
            "data-key": `${layer}/${head}`,
            title: `layer ${layer}, head ${head}`,
            onclick: () => set({ layer, head }),
          },
          canvas,
        ),
      );
    }
    for (let rest = H % columns; rest && rest < columns; rest++) grid.append(el("span"));
  }
  const numbers = matrixOf(data.patterns[state.layer][name], state.head);
  const symbol = name === "p" ? "p" : "∂loss/∂p";
  const piece = (t) => `${t} “${data.pieces[t]}”`;
  const list = el("div");
  const listKeys = (query) => {
    const keys = [...Array(query + 1).keys()].sort(
      (a, b) => Math.abs(numbers[query * T + b]) - Math.abs(numbers[query * T + a]),
    );
    const rows = keys.slice(0, 8).map((key) => [piece(key), number(numbers[query * T + key], 3)]);
    list.replaceChildren(
      table(`Query ${piece(query)}: the keys with the largest ${symbol}`, ["key", symbol], rows),
    );
  };
  const field = heat({
    rows: T,
    columns: T,
    valueAt: (i, j) => (j > i ? null : numbers[i * T + j]),
    describe: (i, j) =>
      j > i
        ? `query ${piece(i)} does not see key ${piece(j)}, which is later`
        : `query ${piece(i)}, key ${piece(j)}: ${symbol} = ${number(numbers[i * T + j], 3)}`,
    label: `${symbol} of layer ${state.layer}, head ${state.head}: rows are queries, columns keys. Arrow keys read single values.`,
    start: [state.token, 0],
    onmove: listKeys,
  });
  field.canvas.style.aspectRatio = "1";
  listKeys(state.token);
  return [
    el(
      "h2",
      {},
      name === "p" ? "Where each head looks" : "The loss's gradient by the attention's probabilities",
    ),
    el(
      "p",
      { class: "faint" },
      "A small picture is a head. Its rows are queries, the tokens that look, from the first one down; its columns are keys, the",
      " tokens that are looked at. The stronger the colour, the larger the number: by the square root, up to the picture's own largest",
      name === "p" ? "." : "; blue is above zero, orange below.",
      " The empty triangle are tokens that come later, which nobody sees.",
    ),
    grid,
    el("h3", {}, `Layer ${state.layer}, head ${state.head}`),
    el("p", { class: "readout-line" }, field.readout),
    el("div", { class: "map" }, axisOf(data, "rows"), field.canvas, el("span"), axisOf(data, "columns")),
    list,
  ];
}

function lensView(data, state, set) {
  const { names, top, probabilities, kl, ranks, predicted } = data.lens;
  const details = el("div", { "aria-live": "polite" });
  const show = (l, t) => {
    const rows = [...top.row(l, t)].map((id, n) => [
      visible(data.vocabulary[id]),
      percent(probabilities.at(l, t, n)),
    ]);
    details.replaceChildren(
      el("h3", {}, `After ${names[l]}, at token ${t} “${data.pieces[t]}”`),
      table("It would predict", ["token", "probability"], rows),
      el(
        "p",
        {},
        `It is ${number(kl.at(l, t))} nats away from the final prediction (KL divergence: 0 where the two are the same).`,
        ` “${visible(data.vocabulary[predicted.at(t)])}”, which wins in the end, has rank ${ranks.at(l, t) + 1} here.`,
      ),
    );
  };
  const buttons = [];
  const rows = names.map((name, l) => {
    const cells = data.pieces.map((_, t) => {
      const p = probabilities.at(l, t, 0);
      const ground = colour(0.55 * p * p);
      const button = el(
        "button",
        {
          type: "button",
          tabindex: l === names.length - 1 && t === state.token ? 0 : -1,
          style: `background: rgb(${ground.join(", ")}); color: ${inkOn(ground)}`,
          "aria-label": `${name}, token ${t}: ${visible(data.vocabulary[top.at(l, t, 0)])}, ${percent(p)}`,
          onclick: () => focusCell(l, t),
        },
        visible(data.vocabulary[top.at(l, t, 0)]),
      );
      button.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[
          event.key
        ];
        if (!move) return;
        event.preventDefault();
        focusCell(
          Math.min(names.length - 1, Math.max(0, l + move[0])),
          Math.min(data.sizes.T - 1, Math.max(0, t + move[1])),
        );
      });
      return button;
    });
    buttons.push(cells);
    return el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)));
  });
  const focusCell = (l, t) => {
    mark(buttons.flat(), "aria-pressed", l * data.sizes.T + t);
    buttons[l][t].focus();
    show(l, t);
  };
  show(names.length - 1, state.token);
  // Once it is in the page:
  setTimeout(() =>
    buttons[names.length - 1][state.token].scrollIntoView({ block: "nearest", inline: "nearest" }),
  );
  const head = data.pieces.map((piece) => el("th", { scope: "col", class: "text piece" }, piece));
  return [
    el("h2", {}, "What it would predict if it stopped early"),
    el(
      "p",
      { class: "faint" },
      ...indexed(
        "The stream after each block, taken as if it were the last: through the final norm and the unembedding W_U, the matrix that",
      ),
      " makes the logits. A cell is the token that is likeliest then. The stronger the colour, the surer it is. The row of the last",
      " block is the model's prediction.",
    ),
    formula("p_l = softmax(norm(x_l) W_Uᵀ)", "KL(p_l ‖ p) = Σ_v p_l(v) (log p_l(v) − log p(v))"),
    el("p", { class: "faint" }, ...indexed("l is the block, x_l the stream after it, p the prediction at the end, v a token of the vocabulary.")),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "lens" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "after"), ...head)),
        el("tbody", {}, ...rows.reverse()),
      ),
    ),
    details,
  ];
}

function attributionView(data, state) {
  const centres = data.norm === "LayerNorm";
  const { tokens, logits, parts, values } = data.attribution;
  const rows = parts.map((name, i) => [name, values.at(state.token, i)]);
  rows.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const shownRows = rows.slice(0, MOST_BARS);
  const rest = rows.slice(MOST_BARS);
  if (rest.length) shownRows.push([rest.length === 1 ? "the other one" : `the ${rest.length} others`, rest.reduce((sum, row) => sum + row[1], 0)]);
  return [
    el("h2", {}, `Where the logit of “${visible(data.vocabulary[tokens.at(state.token)])}” comes from`),
    el(
      "p",
      {},
      `After token ${state.token} “${data.pieces[state.token]}” its logit is`,
      ` ${number(logits.at(state.token))}. It is a sum of what the embedding, each head and each feed-forward layer have`,
      " added to the stream, through the final norm:",
    ),
    formula(
      centres
        ? "logit_v = Σ_part (weight · (x_part − mean(x_part)) · rstd) · W_U[v] + bias · W_U[v]"
        : "logit_v = Σ_part (weight · x_part · rstd) · W_U[v]",
      "x = Σ_part x_part, the stream",
    ),
    el(
      "p",
      { class: "faint" },
      `weight${centres ? ", bias" : ""} and rstd, the factor that brings a vector to size, are those of the final ${data.norm} on the`,
      ...indexed(" whole stream; W_U is the unembedding. A part above zero speaks for the token, one below against it."),
    ),
    bars(
      "Parts of the logit",
      shownRows.map(([name, value]) => [name, value, number(value, 3)]),
    ),
  ];
}

function lossView(data, state, set) {
  const { loss, entropy, rank, top, logprobs } = data.report;
  const most = largestOf(loss.flat.slice(0, -1));
  const text = el("p", {
    class: "loss-text",
    role: "img",
    "aria-label": "The text, each token coloured by its loss; the table has the numbers",
  });
  text.append(el("span", {}, data.vocabulary[data.ids.at(0)]));
  for (let t = 1; t < data.sizes.T; t++)
    text.append(
      el(
        "span",
        {
          style: `background: rgba(var(--loss), calc(var(--strongest) * ${loss.at(t - 1) / (most || 1)}))`,
          title: `${number(loss.at(t - 1))} nats`,
        },
        data.vocabulary[data.ids.at(t)],
      ),
    );
  const rows = data.pieces.map((piece, t) => [
    `${t} ${piece}`,
    visible(data.vocabulary[data.targets.at(t)]) + (isAssumed(data, t) ? " (assumed)" : ""),
    number(loss.at(t)),
    percent(Math.exp(-loss.at(t))),
    String(rank.at(t) + 1),
    number(entropy.at(t)),
    [...top.row(t)]
      .map((id, n) => `“${visible(data.vocabulary[id])}” ${percent(Math.exp(logprobs.at(t, n)))}`)
      .join(", "),
  ]);
  return [
    el("h2", {}, "How surprising each token was"),
    el(
      "p",
      {},
      `Mean loss ${number(data.loss)} nats a token (nats: logarithms to the base e), a perplexity of ${number(Math.exp(data.loss))}: as if that`,
      " many tokens were equally likely each time.",
      data.assumed ? " The last row is not of the text: what it assumes is the model's likeliest token, and is part of the mean." : "",
      " The stronger a token's colour, the larger its own loss.",
    ),
    formula("loss = −log p(came)", "entropy = −Σ_v p_v log p_v", "perplexity = exp(mean loss)"),
    text,
    el(
      "p",
      { class: "faint" },
      "p is the probability that what came had, rank its place among all tokens, 1 being the likeliest; entropy is the loss that the",
      " model expected on average, before it saw what came.",
    ),
    table(
      "Each prediction: what came after a token, with its loss, and what was likeliest there",
      ["after", "came", "loss", "p", "rank", "entropy", "likeliest"],
      rows,
      { text: [0, 1, 6], result: false },
    ),
  ];
}

function samplingView(data, state) {
  const logits = data.logits.row(state.token);
  const settings = state.sampling;
  const chart = el("div", { id: "distribution" });
  const said = el("p", { "aria-live": "polite" });
  const before = softmax(logits);
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 20);
  const draw = () => {
    const after = softmax(processed(logits, settings));
    const kept = after.reduce((count, p) => count + (p > 0), 0);
    said.textContent = `${kept} of ${logits.length} tokens can be drawn. Filled: as it is sampled; outlined: at temperature 1, with all tokens.`;
    chart.replaceChildren(
      bars(
        "Probabilities of the next token",
        order.map((id) => [visible(data.vocabulary[id]), after[id], percent(after[id]), before[id]]),
      ),
    );
  };
  const slider = (id, label, key, attributes, text) => {
    const output = el("output", { for: id }, text(settings[key]));
    const input = el("input", { type: "range", id, ...attributes, value: settings[key] });
    input.addEventListener("input", () => {
      settings[key] = Number(input.value);
      output.textContent = text(settings[key]);
      draw();
    });
    return [el("label", { for: id }, label), input, output];
  };
  draw();
  return [
    el("h2", {}, `What may come after token ${state.token} “${data.pieces[state.token]}”`),
    formula("p_v = exp(z_v / temperature) / Z, of the tokens that are left, Z being the sum over them"),
    el(
      "p",
      { class: "faint" },
      "The logits z are divided by the temperature: below 1 the likely become likelier still. Top-k leaves the k likeliest tokens;",
      " top-p then the fewest that have at least probability p together. One of what is left is drawn.",
    ),
    el(
      "div",
      { class: "sliders" },
      ...slider("temperature", "Temperature", "temperature", { min: 0.05, max: 2, step: 0.05 }, (x) =>
        x.toFixed(2),
      ),
      ...slider("top-k", "Top-k", "topK", { min: 0, max: Math.min(200, logits.length), step: 1 }, (x) =>
        x ? String(x) : "all",
      ),
      ...slider("top-p", "Top-p", "topP", { min: 0.05, max: 1, step: 0.01 }, (x) => x.toFixed(2)),
    ),
    said,
    chart,
  ];
}
