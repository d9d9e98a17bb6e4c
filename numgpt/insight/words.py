"""What each step does, in a sentence, for somebody who meets it for the first time."""

WORDS = {
    "embedding": (
        "A token's id chooses a row of a table: its vector, with which the stream begins."
    ),
    "layernorm": (
        "A token's numbers are moved and scaled to mean 0 and variance 1, so that what reads"
        " them meets vectors of one size; then each feature has a scale (weight) and a shift"
        " (bias) of its own, which are learnt."
    ),
    "rmsnorm": (
        "A token's numbers are scaled to mean square 1, so that what reads them meets vectors"
        " of one size; then each feature has a scale (weight) of its own, which is learnt."
    ),
    "qkv": (
        "Three vectors of each token, for each head: the query is what the token looks for,"
        " the key what it is found by, the value what is taken from it."
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
    "output": "What all heads have taken, by one matrix, as a vector of the stream's width.",
    "stream": "The vector is added to the stream: what was there stays.",
    "feed-forward in": (
        "A vector of F numbers, more than the stream has: each asks something else of the token."
    ),
    "gated feed-forward in": (
        "Two vectors of F numbers, more than the stream has: each number of the one (gate)"
        " will decide how much passes of the other (up)."
    ),
    "gelu_tanh": (
        "Each number by itself: large ones pass, those below zero are held back. Without such"
        " a bend two products one after the other would be no more than one."
    ),
    "relu": (
        "Each number by itself: above zero it passes, below it becomes 0. Without such a bend"
        " two products one after the other would be no more than one."
    ),
    "swiglu": (
        "Each number of up passes as far as its gate is open: fully where gate is large,"
        " hardly where it is far below zero."
    ),
    "feed-forward out": "Back to a vector of the stream's width, by one matrix.",
    "logits": (
        "How well the token's last vector fits every token of the vocabulary: a scalar"
        " product each, the logit."
    ),
    "loss": (
        "Logits become probabilities, and the loss is −log of the one that the token has"
        " which comes: 0 if it was certain. ([a = b] is 1 where a is b, and else 0.)"
    ),
}
WORDS["gelu_erf"] = WORDS["gelu_tanh"]
