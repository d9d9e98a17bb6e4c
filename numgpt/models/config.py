"""What the configs of all families share: each size under one name."""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class Sizes(NamedTuple):
    """Those of a model that is made from nothing."""

    vocab_size: int
    context_length: int
    layers: int
    heads: int
    kv_heads: int  # 0: as many as heads
    width: int


class Config:
    """The fields of a Hugging Face config.json that change the numbers; families add their own."""

    layers_field: ClassVar[str]  # the family's name for the number of blocks, …
    context_field: ClassVar[str]  # … and for the most tokens that the model sees at once
    heads_field: ClassVar[str]  # … and for the number of attention heads
    width_field: ClassVar[str]  # … and for the width of the residual stream

    model_type: str  # which family it is, and which of its members
    vocab_size: int
    initializer_range: float  # the standard deviation of first weights
    tie_word_embeddings: bool  # the unembedding is the embedding
    bos_token_id: int | None
    eos_token_id: int | list[int] | None  # ends a generated sequence
    pad_token_id: int | None  # fills up a batch

    @classmethod
    def of_sizes(cls, model_type: str, sizes: Sizes) -> Config:
        """A config for training from nothing.  Raises ValueError for sizes that the family can't
        have."""
        raise NotImplementedError

    def validate(self) -> None:
        """Raises ValueError naming the field that is invalid."""
        raise NotImplementedError

    def set_dropout(self, p: float) -> None:
        """The same dropout wherever the family has any."""
        raise NotImplementedError

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return getattr(self, self.layers_field)

    @property
    def heads(self) -> int:
        """H, the attention heads of a block."""
        return getattr(self, self.heads_field)

    @property
    def context_length(self) -> int:
        """The most tokens that the model sees at once."""
        return getattr(self, self.context_field)

    @property
    def attention_dropout(self) -> float:
        """Of the attention's probabilities."""
        raise NotImplementedError

    @property
    def branch_dropout(self) -> float:
        """Of what a branch adds to the residual stream."""
        return 0.0

    @property
    def width(self) -> int:
        """C, of the residual stream."""
        return getattr(self, self.width_field)

    @property
    def kv_heads(self) -> int:
        """K, the heads that keys and values have."""
        return self.heads

    @property
    def inner_width(self) -> int:
        """F, of the feed-forward layer."""
        raise NotImplementedError

    @property
    def head_size(self) -> int:
        """D."""
        return self.width // self.heads
