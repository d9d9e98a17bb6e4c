// The page: what is chosen, and the view of it.

const VIEWS = {
  follow: { title: "Step by step", make: followView, uses: ["direction", "layer", "head"] },
  attention: { title: "Attention", make: attentionView, uses: ["direction", "layer", "head"] },
  lens: { title: "Lens", make: lensView, uses: [] },
  attribution: { title: "Attribution", make: attributionView, uses: [] },
  loss: { title: "Loss", make: lossView, uses: [] },
  sampling: { title: "Sampling", make: samplingView, uses: [] },
};

const byId = (id) => document.getElementById(id);

// Whether what comes after a token is no part of the text, but the model's own guess.
function isAssumed(data, token) {
  return data.assumed && token === data.sizes.T - 1;
}

// What somebody has to know who has never seen such a model.
function introduction({ sizes, blocks }) {
  const word = (text) => el("b", {}, text);
  const count = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
  return [
    el(
      "p",
      {},
      "The model reads a text as ",
      word("tokens"),
      `: words, pieces of words, punctuation; each has a number in its vocabulary of ${sizes.V}. Of each token it makes a vector`,
      ` of ${sizes.C} numbers, its features. These vectors side by side are the `,
      word("stream"),
      `: they pass through ${count(blocks, "block")}, also called layers, one after another. A `,
      word("block"),
      " reads the stream and adds to it, twice: by attention, in which ",
      word(count(sizes.H, "head")),
      " compare tokens and carry something from earlier ones to later ones, and by a feed-forward layer, which works on",
      " each token by itself. Both are made of matrices and vectors that training found: W, b, weight, bias.",
    ),
    el(
      "p",
      {},
      "What has become of a token's vector at the end is compared with a vector of every token of the vocabulary: their",
      " scalar product is that token's ",
      word("logit"),
      ". The larger it is, the likelier it comes next; the softmax makes probabilities of all logits. The ",
      word("loss"),
      " is −log of the probability that the token had which did come: near 0 where the model was sure of it, large where",
      " it was surprised.",
    ),
    el(
      "p",
      {},
      word("Forward"),
      " is the way from the text to the loss; ",
      word("backward"),
      " is the way back, on which every number x gets its gradient ∂loss/∂x: how much the loss grows where x grows a",
      " little. Training moves each weight against its gradient.",
    ),
  ];
}

async function start() {
  byId("main").replaceChildren(el("p", {}, "The page's data are unpacked …"));
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // in a frame of a notebook, #main would be the notebook's
    byId("main").focus();
  });
  const data = await unpacked(byId("data").textContent);
  byId("data").textContent = "";
  data.pieces = [...data.ids.flat].map((id) => visible(data.vocabulary[id])); // of the text
  const state = {
    view: "follow",
    direction: "forward",
    token: data.token,
    layer: data.layers[0],
    head: 0,
    chosen: {}, // of each product, which of its features
    opened: new Set(), // code that is shown
    sampling: { temperature: 1, topK: 0, topP: 1 },
  };
  const set = (changes) => {
    Object.assign(state, changes);
    show();
  };
  const show = () => {
    hideTip();
    readPalette();
    const view = VIEWS[state.view];
    const focused = document.activeElement?.dataset.key;
    for (const name of ["direction", "layer", "head"])
      byId(`${name}-choice`).hidden = !view.uses.includes(name);
    byId("token").value = state.token;
    byId("layer").value = state.layer;
    byId("head").value = state.head;
    const came = data.targets.at(state.token);
    byId("chosen").textContent =
      `Token ${state.token} (of 0 to ${data.sizes.T - 1}): “${data.pieces[state.token]}”, id ${data.ids.at(state.token)}. ` +
      (state.token ? `Its loss was ${number(data.report.loss.at(state.token - 1))}. ` : "") +
      (isAssumed(data, state.token) ? "After it, it is assumed, comes" : "After it comes") +
      ` “${visible(data.vocabulary[came])}”, with a loss of ${number(data.report.loss.at(state.token))}.`;
    byId("where").textContent = view.uses.length
      ? `${state.direction}, layer ${state.layer}, head ${state.head}`
      : "";
    mark(byId("tokens").querySelectorAll("button"), "aria-checked", state.token);
    mark(byId("tabs").querySelectorAll("button"), "aria-selected", Object.keys(VIEWS).indexOf(state.view));
    byId("main").setAttribute("aria-labelledby", `tab-${state.view}`);
    byId("main").replaceChildren(...view.make(data, state, set));
    if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus();
  };

  byId("model").textContent = data.model;
  byId("words").append(...introduction(data));
  byId("notes").append(...data.notes.map((note) => el("li", {}, note)));
  const most = largestOf(data.report.loss.flat.slice(0, -1)); // the last is of what comes after the text
  byId("tokens").append(
    ...data.pieces.map((piece, t) => {
      const loss = t ? data.report.loss.at(t - 1) : 0;
      return el(
        "button",
        {
          type: "button",
          class: "token",
          role: "radio",
          style: `background: rgba(var(--loss), calc(var(--strongest) * ${loss / (most || 1)}))`,
          "aria-label": `Token ${t}, ${piece}${t ? `, its loss ${number(loss)}` : ""}`,
          onclick: () => set({ token: t }),
        },
        piece,
        el("small", { "aria-hidden": "true" }, String(t)),
      );
    }),
  );
  moveWithArrows(byId("tokens"), (t) => set({ token: t }));
  byId("tabs").append(
    ...Object.entries(VIEWS).map(([name, view]) =>
      el(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": "main",
          onclick: () => set({ view: name }),
        },
        view.title,
      ),
    ),
  );
  moveWithArrows(byId("tabs"), (i) => set({ view: Object.keys(VIEWS)[i] }));
  byId("token").append(...data.pieces.map((piece, t) => el("option", { value: t }, `${t} “${piece}”`)));
  byId("layer").append(...data.layers.map((layer) => el("option", { value: layer }, String(layer))));
  byId("head").append(
    ...Array.from({ length: data.sizes.H }, (_, head) => el("option", { value: head }, String(head))),
  );
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").addEventListener("change", () =>
    set({
      token: Number(byId("token").value),
      direction: document.querySelector("input[name=direction]:checked").value,
      layer: Number(byId("layer").value),
      head: Number(byId("head").value),
    }),
  );
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  window.matchMedia("print").addEventListener("change", show);
  show();
  window.numgpt = { data, state, set, processed, softmax }; // for who wants to look further, in the console
  document.documentElement.dataset.ready = "true";
}

// The arrows go from one to the next, and choose it.
function moveWithArrows(holder, choose) {
  holder.addEventListener("keydown", (event) => {
    const buttons = [...holder.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
    const to =
      { Home: 0, End: buttons.length - 1 }[event.key] ??
      (event.key in steps ? at + steps[event.key] : undefined);
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = (to + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
  });
}

start().catch((error) => {
  byId("main").replaceChildren(el("p", { role: "alert" }, `The page can't be shown: ${error.message}`));
  throw error;
});
