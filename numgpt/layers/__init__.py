"""THE MATHEMATICS. One file, one layer: formula, derivation, forward, backward.

Every layer is a pair of functions,

    y, cache = f_forward(x, ...)            dx = f_backward(dy, cache, ...)

where dx means ∂loss/∂x. A layer with parameters returns their gradients as well, (dx, dweight, …):
new arrays, or the sums (runtime.Accumulator) that the caller hands over, which they are added to.
The dtype follows the input: float32 for work, float64 for numerical checks.

One notation is used everywhere:

    B  batch                 C  width of the residual stream      x, y   input and output
    T  queries               F  feed-forward width                p      probabilities
    S  keys, S >= T          V  vocabulary                        m      dropout mask, scaled
    H  (attention) heads     N  rows, B · T                       x̂      normalised input
    K  KV heads              D  head size                         g      gradient at x̂
    G  query heads a KV head, H/K                                 dx     ∂loss/∂x
"""

from numgpt.layers.attention import attention_backward, attention_forward
from numgpt.layers.attention_pattern import (
    attention_pattern,
    pattern_backward,
    pattern_forward,
    scores_backward,
)
from numgpt.layers.cross_entropy import (
    IGNORE_INDEX,
    TokenStatistics,
    linear_cross_entropy,
    linear_log_probs_backward,
    linear_log_probs_forward,
    mean_weights,
)
from numgpt.layers.dropout import dropout_backward, dropout_forward
from numgpt.layers.embedding import embedding_backward, embedding_forward
from numgpt.layers.gelu import (
    gelu_erf_backward,
    gelu_erf_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
)
from numgpt.layers.gradcheck import gradcheck
from numgpt.layers.layernorm import layernorm_backward, layernorm_forward, layernorm_output
from numgpt.layers.linear import LinearCache, linear_backward, linear_forward
from numgpt.layers.lora import lora_backward, lora_forward
from numgpt.layers.relu import relu_backward, relu_forward
from numgpt.layers.rmsnorm import rmsnorm_backward, rmsnorm_forward, rmsnorm_output
from numgpt.layers.rope import (
    llama3_frequencies,
    rope_backward,
    rope_forward,
    rope_frequencies,
    rope_rotation,
)
from numgpt.layers.softmax import softmax_backward, softmax_forward
from numgpt.layers.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "IGNORE_INDEX",
    "LinearCache",
    "TokenStatistics",
    "attention_backward",
    "attention_forward",
    "attention_pattern",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_erf_backward",
    "gelu_erf_forward",
    "gelu_tanh_backward",
    "gelu_tanh_forward",
    "gradcheck",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_output",
    "linear_backward",
    "linear_cross_entropy",
    "linear_forward",
    "linear_log_probs_backward",
    "linear_log_probs_forward",
    "llama3_frequencies",
    "lora_backward",
    "lora_forward",
    "mean_weights",
    "pattern_backward",
    "pattern_forward",
    "relu_backward",
    "relu_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rmsnorm_output",
    "rope_backward",
    "rope_forward",
    "rope_frequencies",
    "rope_rotation",
    "scores_backward",
    "softmax_backward",
    "softmax_forward",
    "swiglu_backward",
    "swiglu_forward",
]
