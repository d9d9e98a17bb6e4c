"""What each step does, in a sentence, for somebody who meets it for the first time; and the lesson
that derives it."""

WORDS = {
    "embedding": (
        "A token's id chooses a row of a table: its vector, with which the stream begins."
    ),
    "embedding and position": (
        "A token's id chooses a row of one table, its place in the text a row of another: their"
        " sum is the vector with which the stream begins."
    ),
    "layernorm": (
        "A token's numbers are moved and scaled to mean 0 and variance 1, so that what reads"
        " them meets vectors of one size; then each feature has a scale (weight) and a shift"
        " (bias) of its own, which training finds."
    ),
    "rmsnorm": (
        "A token's numbers are scaled to mean square 1, so that what reads them meets vectors"
        " of one size; then each feature has a scale (weight) of its own, which training finds."
    ),
    "qkv": (
        "Three vectors of each token, for each head: the query is what the token looks for,"
        " the key what it is found by, the value what is taken from it."
    ),
    "head norms": (
        "Each query and each key is brought to one size, as the tokens' vectors are before a"
        " branch, so that the scores stay within bounds."
    ),
    "rope": (
        "Queries and keys are turned, two of their numbers at a time, by an angle that grows"
        " with the token's place: their product then depends on how far apart two tokens are."
    ),
    "scores": (
        "How well each key fits a query: their scalar product. A query sees its own token and"
        " those before it."
    ),
    "softmax": (
        "Scores become probabilities, which are above 0 and have the sum 1: how much the"
        " query looks at each key."
    ),
    "values": (
        "What the head takes from the tokens: the sum of their values, each times its probability."
    ),
    "output": ("One matrix turns what all heads have taken into a vector of the stream's width."),
    "stream": "The vector is added to the stream: what was there stays.",
    "feed-forward in": (
        "A vector of F numbers, more than the stream has, each of them a weighted sum of the"
        " token's numbers with weights of its own."
    ),
    "gated feed-forward in": (
        "Two vectors of F numbers, more than the stream has: each number of the one (gate)"
        " decides how much passes of the other (up)."
    ),
    "gelu_tanh": (
        "Each number by itself: large ones pass, those below zero are held back. Without such"
        " a bend two matrices in a row would be no more than one matrix."
    ),
    "relu": (
        "Each number by itself: above zero it passes, below it becomes 0. Without such a bend"
        " two matrices in a row would be no more than one matrix."
    ),
    "swiglu": (
        "Each number of up is multiplied by silu(gate): about gate where gate is large, about"
        " 0 where it is far below zero."
    ),
    "feed-forward out": "Back to a vector of the stream's width, by one matrix.",
    "logits": (
        "How well the token's last vector fits every token of the vocabulary: a scalar"
        " product each, the logit."
    ),
    "loss": (
        "Logits become probabilities, and the loss is −log of the probability of the token"
        " that comes: 0 if it was certain."
    ),
}
WORDS["gelu_erf"] = WORDS["gelu_tanh"]

# The notebook of the course (`numgpt lessons`) that each step is derived in.
_LESSONS = {
    "02_from_a_neuron_to_a_layer": ("relu",),
    "03_softmax_and_cross_entropy": ("loss",),
    "04_layernorm_and_gelu": ("layernorm", "gelu_tanh", "gelu_erf"),
    "05_attention": ("qkv", "scores", "softmax", "values", "output"),
    "06_your_own_gpt": ("embedding", "stream", "feed-forward in", "feed-forward out", "logits"),
    "09_real_weights": ("rmsnorm", "head norms", "rope", "gated feed-forward in", "swiglu"),
}
LESSONS = {step: notebook for notebook, steps in _LESSONS.items() for step in steps}
