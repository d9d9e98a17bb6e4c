"""All options of a training run: flags, TOML files and checkpoints share these names."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _option(default: Any, help: str, group: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "group": group})


@dataclass
class TrainConfig:
    """The defaults are nanoGPT's recipe for a CPU (Karpathy 2022): a character-level model in about
    a minute."""

    data: str | list[str] | None = _option(
        None, "text: files, directories or globs; none: the Python language reference", "data"
    )
    val_fraction: float = _option(
        0.1, "share of the tokens, at the end, held out for validation", "data"
    )
    tokenizer: str = _option(
        "char", "char, bpe (learnt from the text), or a directory that holds one", "data"
    )
    vocab_size: int = _option(1024, "size of the vocabulary that --tokenizer bpe learns", "data")

    arch: str = _option("gpt2", "family of the model: gpt2 or llama", "model")
    n_layer: int = _option(4, "blocks", "model")
    n_head: int = _option(4, "attention heads a block", "model")
    n_kv_head: int = _option(
        0, "key heads that they share, with --arch llama; 0: one for each", "model"
    )
    n_embd: int = _option(128, "width of the residual stream", "model")
    block_size: int = _option(64, "context length in tokens", "model")
    dropout: float = _option(
        0.0, "share of activations dropped in training; of attention only in a Llama", "model"
    )
    init_from: str | None = _option(
        None, "model to fine-tune: a directory or a name; brings tokenizer and sizes", "model"
    )

    steps: int = _option(2000, "optimizer steps", "schedule")
    batch_size: int = _option(12, "sequences in a batch", "schedule")
    grad_accum: int = _option(1, "batches whose gradients make one step", "schedule")
    lr: float = _option(1e-3, "highest learning rate", "schedule")
    min_lr: float = _option(1e-4, "learning rate at the end of the cosine", "schedule")
    warmup: int = _option(100, "steps of linear warm-up", "schedule")
    weight_decay: float = _option(0.1, "decoupled decay of matrices", "schedule")
    beta2: float = _option(0.99, "AdamW's decay of the second moment", "schedule")
    grad_clip: float = _option(
        1.0, "largest global norm of the gradients; 0: no clipping", "schedule"
    )
    seed: int = _option(1337, "seed of weights, batches and dropout", "schedule")

    log_every: int = _option(100, "steps between reports", "rhythm")
    eval_every: int = _option(250, "steps between validations", "rhythm")
    eval_batches: int = _option(20, "batches of a validation, always the same", "rhythm")
    sample_every: int = _option(500, "steps between samples; 0: none", "rhythm")
    save_every: int = _option(250, "steps between checkpoints", "rhythm")

    def validate(self) -> None:
        """Raises ValueError naming the option that can't be."""
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), field.default
            if (
                field.name == "data"
                and isinstance(value, list)
                and all(isinstance(v, str) for v in value)
            ):
                continue
            whole, number = isinstance(value, int), isinstance(value, (int, float))
            if isinstance(value, bool) or (
                (isinstance(default, int) and not whole)
                or (isinstance(default, float) and not number)
                or (
                    not isinstance(default, (int, float))
                    and not isinstance(value, (str, type(None)))
                )
            ):
                kind = {int: "a whole number", float: "a number"}.get(type(default), "text")
                raise ValueError(f"{field.name}={value!r}: expected {kind}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in (
            *("warmup", "weight_decay", "grad_clip", "seed", "sample_every", "min_lr"),
            "n_kv_head",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected a number above 0")
        if self.min_lr > self.lr:
            raise ValueError(
                f"min_lr={self.min_lr} is above lr={self.lr}: lower it, 0.1 · lr is usual"
            )
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more and below 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: expected a number between 0 and 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch={self.arch!r}: expected {' or '.join(ARCHITECTURES)}")
        if self.n_kv_head and self.arch != "llama":
            raise ValueError(f"n_kv_head={self.n_kv_head} goes with arch=llama only")
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}"
            )
        if self.arch == "llama" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"n_embd={self.n_embd} and n_head={self.n_head} make heads of size"
                f" {self.n_embd // self.n_head}, which arch=llama can't rotate: it must be even"
            )


ARCHITECTURES = ("gpt2", "llama")
_AT_LEAST_ONE = (
    *(
        "vocab_size",
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "steps",
        "batch_size",
        "grad_accum",
    ),
    *("log_every", "eval_every", "eval_batches", "save_every"),
)
OPTIONS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file.  Raises ValueError for what is not TOML, or no option, by
    name."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError:
            raise ValueError("--config needs Python 3.11 or later, or: pip install tomli") from None
    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, or no text at all
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    options = {name.replace("-", "_"): value for name, value in options.items()}
    for name, value in options.items():
        if isinstance(value, dict):
            raise ValueError(
                f"{path}: [{name}] is a section; options stand in the file without any"
            )
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
            raise ValueError(f"{path}: {name!r} is no option of training; {hint}")
    return options
