"""Small models that chat, and what they ought to say: the whole conversation computed anew."""

from dataclasses import dataclass, field

from support import clear
from tokenizer.chat_formats import ascii_only, trained

from numgpt import GPT, CharTokenizer, Chat, GPTConfig, Llama, LlamaConfig, Tokenizer
from numgpt.models import LanguageModel
from numgpt.tokenizer import BaseTokenizer

CONTEXT = 224
MOST = 12  # tokens of an answer
TEXT = "The user said to the assistant: who are you? I am what I am, and that is all.\n"


def random_model(family: type[LanguageModel], vocab_size: int, seed: int = 1) -> LanguageModel:
    """One whose logits differ enough for greedy choices to be clear."""
    if family is GPT:
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": CONTEXT}
        model = GPT(GPTConfig(**sizes, vocab_size=vocab_size), seed=seed)
    else:
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"hidden_size": 16, "intermediate_size": 44, "max_position_embeddings": CONTEXT}
        model = Llama(LlamaConfig(**sizes, vocab_size=vocab_size), seed=seed)
    return clear(model)


def ascii_chatml() -> Tokenizer:
    """A token a character, and the markers."""
    tokenizer = ascii_only()
    special = {"<|im_start|>": 96, "<|im_end|>": 97}
    return Tokenizer(tokenizer.vocabulary, [], special, eos_token="<|im_end|>")


def characters() -> CharTokenizer:
    return CharTokenizer([chr(code) for code in (10, *range(32, 127))])


def setup(name: str) -> tuple[LanguageModel, BaseTokenizer]:
    family, tokenizer = {
        "gpt_chatml": (GPT, ascii_chatml),
        "llama_chatml": (Llama, lambda: trained("chatml_trimming")),
        "gpt_plain": (GPT, characters),
        "llama_plain": (Llama, lambda: Tokenizer.train([TEXT * 5], 300)),
    }[name]
    tokenizer = tokenizer()
    return random_model(family, tokenizer.vocab_size), tokenizer


SETUPS = ("gpt_chatml", "llama_chatml", "gpt_plain", "llama_plain")


@dataclass
class Reference:
    """A conversation's tokens and greedy answers, by hand and without any cache."""

    model: LanguageModel
    tokenizer: BaseTokenizer
    system: str | None = None
    turns: list[tuple[str, list[int]]] = field(default_factory=list)
    dropped: int = 0  # of turns

    @property
    def plain(self) -> bool:
        return "<|im_end|>" not in self.tokenizer.special_tokens

    @property
    def trims(self) -> bool:
        """Whether the template cuts white space off what is said."""
        return "trim" in (self.tokenizer.chat_template or "")

    def prompt(self, question: str) -> list[int]:
        pieces: list[str | list[int]] = []
        if self.system is not None:
            pieces = [f"{self.system}\n\n" if self.plain else f"@system\n{self.system}!\n"]
        for asked, made in [*self.turns[self.dropped :], (question, None)]:
            asked = asked.strip() if self.trims else asked
            pieces += [
                f"User: {asked}\nAssistant:" if self.plain else f"@user\n{asked}!\n@assistant\n"
            ]
            if made is not None:
                pieces += [made, "\n" if self.plain else "!\n"]
        joined: list[str | list[int]] = [""]
        for piece in pieces:
            if isinstance(piece, str) and isinstance(joined[-1], str):
                joined[-1] += piece
            else:
                joined.append(piece)
        ids = [] if self.tokenizer.bos_token is None else [self.tokenizer.bos_token_id]
        for piece in joined:
            if isinstance(piece, str):  # markers are short here: @ and !
                text = piece.replace("@", "<|im_start|>").replace("!", "<|im_end|>")
                ids += self.tokenizer.encode(text, allowed_special="all")
            else:
                ids += piece
        return ids

    def ask(self, question: str, most: int = MOST) -> tuple[list[int], list[int]]:
        """The prompt and the answer's tokens; both are part of the conversation now."""
        reserve = min(most, max(1, CONTEXT // 4))
        if len(ids := self.prompt(question)) + reserve > CONTEXT:  # then half of it is made free
            while 2 * len(ids := self.prompt(question)) > CONTEXT and self.dropped < len(
                self.turns
            ):
                self.dropped += 1
        special = self.tokenizer.special_tokens
        ends = sorted(special[end] for end in ("<|im_end|>", "<|endoftext|>") if end in special)
        most = min(most, CONTEXT - len(ids))
        out = self.model.generate(
            ids, max_new_tokens=most, eos_token_id=ends, tokenizer=self.tokenizer
        )
        made = [id for id in out[0, len(ids) :].tolist() if id not in ends]
        self.turns.append((question, made))
        return ids, made

    def shown(self, made: list[int]) -> str:
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        return text.removeprefix(" ") if self.plain else text


def greedy(model: LanguageModel, tokenizer: BaseTokenizer, **options) -> Chat:
    return Chat(model, tokenizer, **{"do_sample": False, "max_new_tokens": MOST} | options)


def said(chat: Chat, question: str, **options) -> str:
    return "".join(chat.ask(question, **options))


def state(chat: Chat) -> tuple:
    return chat.messages, chat.dropped_messages


def count_positions(model: LanguageModel, monkeypatch) -> list[int]:
    """How many positions each call of the model computes, from here on."""
    counts: list[int] = []
    forward = type(model).forward

    def counted(self, ids, *arguments, **options):
        counts.append(ids.shape[1])
        return forward(self, ids, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    return counts


def interrupt_after(model: LanguageModel, monkeypatch, calls: int) -> None:
    """Ctrl-C while the model computes, in one call after so many."""
    forward, left = type(model).forward, [calls]

    def interrupted(self, *arguments, **options):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", interrupted)
