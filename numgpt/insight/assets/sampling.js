// How the next token is drawn, as numgpt/generation/processors.py has it: temperature, top-k, top-p.

function softmax(logits) {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = Float64Array.from(logits, (z) => Math.exp(z - highest));
  const total = p.reduce((a, b) => a + b, 0);
  return p.map((value) => value / total);
}

// Logits (V) -> logits, -Infinity where a token is not to be drawn.
function processed(logits, { temperature, topK, topP }) {
  const z = Float64Array.from(logits, (value) => value / temperature);
  if (topK > 0 && topK < z.length) {
    const least = Float64Array.from(z).sort()[z.length - topK];
    z.forEach((value, i) => {
      if (value < least) z[i] = -Infinity;
    }); // what equals it stays
  }
  if (topP < 1) {
    const possible = [...z.keys()].filter((i) => z[i] > -Infinity);
    possible.sort((a, b) => z[a] - z[b] || a - b);
    const p = softmax(possible.map((i) => z[i]));
    let tail = 0; // the probability of a token and all that are less likely
    possible.forEach((i, place) => {
      tail += p[place];
      if (tail <= 1 - topP && place < possible.length - 1) z[i] = -Infinity;
    });
  }
  return z;
}
