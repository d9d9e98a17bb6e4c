"""The formulas of a pass, forwards and backwards, one entry a step: what the page shows above its
numbers. The functions that compute them, and their derivations, are those of numgpt.layers.

An underscore begins an index, a word ("s_ij") or what is in braces ("z_{H−1}"); the letters of
shapes are those of layers/__init__.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Formula(NamedTuple):
    title: str
    forward: str
    forward_shapes: str  # "x: BTC; weight: C"
    forward_functions: str  # of numgpt.layers
    backward: str
    backward_shapes: str
    backward_functions: str
    symbols: str = ""  # what the others mean
    backward_symbols: str = ""  # … those that only the backward has
    words: str = ""  # what the step does, for somebody who meets it for the first time
    lesson: str = ""  # the course's notebook that derives it

    def of(self, direction: str) -> tuple[str, str, list[str], str]:
        """Equation, shapes, functions and symbols of one direction, "forward" or "backward"."""
        is_forward = direction == "forward"
        equation, shapes, functions = self[1:4] if is_forward else self[4:7]
        symbols = (self.symbols, "" if is_forward else self.backward_symbols)
        names = [name for name in functions.split(", ") if name]
        return equation, shapes, names, "; ".join(filter(None, symbols))

    def without_biases(self) -> Formula:
        """Where the model has none."""
        forward = re.sub(r" \+ b(_\w+)?", "", self.forward)
        backward = re.sub(r",   db\w* = Σ \w+(, …)?", "", self.backward)
        return self._replace(forward=forward, backward=backward)

    def and_symbols(self, text: str, backward: bool = False) -> Formula:
        """With another sentence on what a symbol means."""
        name = "backward_symbols" if backward else "symbols"
        both = filter(None, (getattr(self, name), text))
        return self._replace(**{name: "; ".join(both)})


_BOTH = "in its table W · weight is one factor"
_GELU = (
    "Each number by itself: large ones pass, those below zero are held back. Without such a bend"
    " two matrices in a row would be no more than one matrix."
)

FORMULAS = {
    "embedding": Formula(
        "Embedding",
        "x_t = wte[id_t]",
        "ids: BT; wte: VC; x: BTC",
        "embedding_forward",
        "dwte[v] = Σ_{t with id v} dx_t",
        "dx: BTC; dwte: VC",
        "embedding_backward",
        "wte is the table of the tokens' vectors",
        words="A token's id chooses a row of a table: its vector, with which the stream begins.",
    ),
    "layernorm": Formula(
        "LayerNorm",
        "x̂ = (x − mean(x)) · rstd,   rstd = 1/√(var(x) + ε),   y = weight · x̂ + bias",
        "x, x̂, y: BTC; weight, bias: C",
        "layernorm_forward",
        "g = dy · weight,   dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)),"
        "   dweight = Σ dy · x̂,   dbias = Σ dy",
        "dy, g, dx: BTC; dweight, dbias: C",
        "layernorm_backward",
        "mean and var are those of a token's C features",
        "the sums go over the tokens",
        words="A token's numbers are moved and scaled to mean 0 and variance 1, so that what reads"
        " them meets vectors of one size; then each feature has a scale (weight) and a shift"
        " (bias) of its own, which training finds.",
    ),
    "rmsnorm": Formula(
        "RMSNorm",
        "x̂ = x · rstd,   rstd = 1/√(mean(x²) + ε),   y = weight · x̂",
        "x, x̂, y: BTC; weight: C",
        "rmsnorm_forward",
        "g = dy · weight,   dx = rstd · (g − x̂ · mean(g · x̂)),   dweight = Σ dy · x̂",
        "dy, g, dx: BTC; dweight: C",
        "rmsnorm_backward",
        "mean is that of a token's C features",
        "the sum goes over the tokens",
        words="A token's numbers are scaled to mean square 1, so that what reads them meets"
        " vectors of one size; then each feature has a scale (weight) of its own, which training"
        " finds.",
    ),
    "qkv": Formula(
        "Queries, keys, values",
        "q = y W_q + b_q,   k = y W_k + b_k,   v = y W_v + b_v",
        "y: BTC; q: BTHD; k, v: BTKD",
        "linear_forward",
        "dy = dq W_qᵀ + dk W_kᵀ + dv W_vᵀ,   dW_q = yᵀ dq, …,   db_q = Σ dq, …,   g = dy · weight",
        "dq: BTHD; dk, dv: BTKD; dy, g: BTC",
        "linear_backward",
        "y is what the norm before has made",
        f"g is the gradient at that norm's x̂, weight being the norm's; {_BOTH}",
        words="Three vectors of each token, for each head: the query is what the token looks for,"
        " the key what it is found by, the value what is taken from it.",
    ),
    "head norms": Formula(
        "Norms of queries and keys",
        "x̂ = q · rstd,   rstd = 1/√(mean(q²) + ε),   q° = weight · x̂,   k° likewise",
        "q, q°, x̂: BTHD; k, k°: BTKD; weight: D",
        "rmsnorm_forward",
        "g = dq° · weight,   dq = rstd · (g − x̂ · mean(g · x̂)),   dweight = Σ dq° · x̂,"
        "   dk likewise",
        "dq, dq°, g: BTHD; dk, dk°: BTKD; dweight: D",
        "rmsnorm_backward",
        "mean is that of a query's or a key's D features; queries have one weight, keys another",
        "the sum goes over tokens and heads",
        words="Each query and each key is brought to one size, as the tokens' vectors are before a"
        " branch, so that the scores stay within bounds.",
    ),
    "rope": Formula(
        "Rotary positions",
        "q′_1 = q_1 cos(t ω_i) − q_2 sin(t ω_i),   q′_2 = q_2 cos(t ω_i) + q_1 sin(t ω_i),"
        "   k′ likewise",
        "q, q′: BTHD; k, k′: BTKD",
        "rope_forward",
        "dq_1 = dq′_1 cos(t ω_i) + dq′_2 sin(t ω_i),   dq_2 = dq′_2 cos(t ω_i) − dq′_1 sin(t ω_i),"
        "   dk likewise",
        "dq, dq′: BTHD; dk, dk′: BTKD",
        "rope_backward",
        words="Queries and keys are turned, two of their numbers at a time, by an angle that grows"
        " with the token's place: their product then depends on how far apart two tokens are.",
    ),
    "scores": Formula(
        "Scores",
        "s_ij = scale · q_i · k_j for j ≤ i, else −∞",
        "q: BTHD; k: BTKD; s: BHTS",
        "tile_forward",
        "dq_i = scale · Σ_j ds_ij k_j,   dk_j = scale · Σ_i ds_ij q_i",
        "ds: BHTS; dq: BTHD; dk: BTKD",
        "tile_backward",
        "i is a query's place, j a key's",
        words="How well each key fits a query: their scalar product. A query sees its own token"
        " and those before it.",
    ),
    "softmax": Formula(
        "Softmax",
        "p_ij = exp(s_ij − M_i) / Z_i,   M_i = max_j s_ij,   Z_i = Σ_j exp(s_ij − M_i)",
        "s, p: BHTS; M, Z: BHT",
        "exponentials, softmax_forward",
        "ds_ij = p_ij (dp_ij − Σ_m dp_im p_im)",
        "p, dp, ds: BHTS",
        "softmax_backward",
        "",
        "m goes over the keys, as j does",
        words="Scores become probabilities, which are above 0 and have the sum 1: how much the"
        " query looks at each key.",
    ),
    "values": Formula(
        "Sum of values",
        "z_i = Σ_j p_ij v_j",
        "p: BHTS; v: BTKD; z: BTHD",
        "tile_forward, attention_forward",
        "dp_ij = dz_i · v_j,   dv_j = Σ_i p_ij dz_i",
        "dz: BTHD; dp: BHTS; dv: BTKD",
        "tile_backward, attention_backward",
        words="What the head takes from the tokens: the sum of their values, each times its"
        " probability.",
    ),
    "output": Formula(
        "Heads together",
        "out = (z_0, …, z_{H−1}) W_O + b_O = Σ_h z_h W_O[h] + b_O",
        "z: BTHD; out: BTC",
        "linear_forward",
        "dz = dout W_Oᵀ,   dW_O = zᵀ dout,   db_O = Σ dout",
        "dout: BTC; dz: BTHD",
        "linear_backward",
        "W_O[h] are the D rows of W_O that head h has",
        words="One matrix turns what all heads have taken into a vector of the stream's width.",
    ),
    "stream": Formula(
        "Into the stream",
        "x ← x + out",
        "x, out: BTC",
        "",
        "dout = dx,   and dx goes on, unchanged, to the x before",
        "dx, dout: BTC",
        "",
        words="The vector is added to the stream: what was there stays.",
    ),
    "feed-forward in": Formula(
        "Feed-forward, in",
        "pre = y W + b",
        "y: BTC; pre: BTF",
        "linear_forward",
        "dy = dpre Wᵀ,   dW = yᵀ dpre,   db = Σ dpre,   g = dy · weight",
        "dpre: BTF; dy, g: BTC",
        "linear_backward",
        "y is what the norm before has made",
        f"g is the gradient at that norm's x̂, weight being the norm's; {_BOTH}",
        words="A vector of F numbers, more than the stream has, each of them a weighted sum of the"
        " token's numbers with weights of its own.",
    ),
    "gated feed-forward in": Formula(
        "Feed-forward, in",
        "gate = y W_gate + b_gate,   up = y W_up + b_up",
        "y: BTC; gate, up: BTF",
        "linear_forward",
        "dy = dgate W_gateᵀ + dup W_upᵀ,   dW_gate = yᵀ dgate, …,   db_gate = Σ dgate, …,"
        "   g = dy · weight",
        "dgate, dup: BTF; dy, g: BTC",
        "linear_backward",
        "y is what the norm before has made",
        f"g is the gradient at that norm's x̂, weight being the norm's; {_BOTH}",
        words="Two vectors of F numbers, more than the stream has: each number of the one (gate)"
        " decides how much passes of the other (up).",
    ),
    "gelu_tanh": Formula(
        "GELU",
        "post = ½ pre (1 + tanh u) = pre · σ(2u),   u = √(2/π) (pre + 0.044715 pre³)",
        "pre, post: BTF",
        "gelu_tanh_forward",
        "dpre = dpost · slope,   slope = σ + pre σ (1 − σ) · 2u′,"
        "   u′ = √(2/π) (1 + 3 · 0.044715 pre²)",
        "dpost, dpre: BTF",
        "gelu_tanh_backward",
        "σ(x) = 1/(1 + exp(−x))",
        "σ stands for σ(2u), u for what it is in the forward",
        words=_GELU,
    ),
    "gelu_erf": Formula(
        "GELU",
        "post = pre · Φ(pre),   Φ(x) = ½ (1 + erf(x/√2))",
        "pre, post: BTF",
        "gelu_erf_forward",
        "dpre = dpost · slope,   slope = Φ(pre) + pre φ(pre),   φ(x) = exp(−x²/2) / √(2π)",
        "dpost, dpre: BTF",
        "gelu_erf_backward",
        words=_GELU,
    ),
    "relu": Formula(
        "ReLU",
        "post = max(pre, 0)",
        "pre, post: BTF",
        "relu_forward",
        "dpre = dpost · slope,   slope = 1 where pre > 0, else 0",
        "dpost, dpre: BTF",
        "relu_backward",
        words="Each number by itself: above zero it passes, below it becomes 0. Without such a"
        " bend two matrices in a row would be no more than one matrix.",
    ),
    "swiglu": Formula(
        "SwiGLU",
        "post = silu(gate) · up,   silu(z) = z σ(z),   σ(z) = 1/(1 + exp(−z))",
        "gate, up, post: BTF",
        "swiglu_forward",
        "dgate = dpost · up · (σ + silu(gate) (1 − σ)),   dup = dpost · silu(gate)",
        "dpost, dgate, dup: BTF",
        "swiglu_backward",
        "",
        "σ stands for σ(gate), σ(z) = 1/(1 + exp(−z))",
        words="Each number of up is multiplied by silu(gate): about gate where gate is large,"
        " about 0 where it is far below zero.",
    ),
    "feed-forward out": Formula(
        "Feed-forward, out",
        "out = post W + b",
        "post: BTF; out: BTC",
        "linear_forward",
        "dpost = dout Wᵀ,   dW = postᵀ dout,   db = Σ dout",
        "dout: BTC; dpost: BTF",
        "linear_backward",
        words="Back to a vector of the stream's width, by one matrix.",
    ),
    "logits": Formula(
        "Logits",
        "z_v = y · W_U[v]",
        "y: BTC; W_U: VC; z: BTV",
        "linear_forward",
        "dy = dz W_U,   dW_U = dzᵀ y,   g = dy · weight = Σ_v dz_v (W_U[v] · weight)",
        "dz: BTV; dy, g: BTC",
        "linear_cross_entropy",
        "v is a token of the vocabulary, y what the final norm has made",
        f"g is the gradient at that norm's x̂, weight being the norm's; {_BOTH}",
        words="How well the token's last vector fits every token of the vocabulary: a scalar"
        " product each, the logit.",
    ),
    "loss": Formula(
        "Probabilities and loss",
        "p_v = exp(z_v − M) / Z,   L = 1/T Σ_t −log p_t[target_t]",
        "z, p: BTV",
        "exponentials, linear_cross_entropy",
        "dz_v = (p_v − [v = target]) / T",
        "p, dz: BTV",
        "linear_cross_entropy",
        "M = max_v z_v,   Z = Σ_v exp(z_v − M)",
        "[v = target] is 1 where v is the target, and else 0",
        words="Logits become probabilities, and the loss is −log of the probability of the token"
        " that comes: 0 if it was certain.",
    ),
}

# The notebook of the course (`numgpt lessons`) that each step is derived in.
_LESSONS = {
    "02_from_a_neuron_to_a_layer": ("relu",),
    "03_softmax_and_cross_entropy": ("loss",),
    "04_layernorm_and_gelu": ("layernorm", "gelu_tanh", "gelu_erf"),
    "05_attention": ("qkv", "scores", "softmax", "values", "output"),
    "06_your_own_gpt": ("embedding", "stream", "feed-forward in", "feed-forward out", "logits"),
    "09_real_weights": ("rmsnorm", "head norms", "rope", "gated feed-forward in", "swiglu"),
}
FORMULAS |= {
    step: FORMULAS[step]._replace(lesson=notebook)
    for notebook, steps in _LESSONS.items()
    for step in steps
}
