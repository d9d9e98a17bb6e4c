"""Loading a model and its tokenizer, whatever the files: what is there tells what it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from numgpt.files import finish_replacing
from numgpt.formats import huggingface, llamacpp, llmc, nanogpt, openai, peft
from numgpt.formats.gguf import is_gguf
from numgpt.formats.names import resolve
from numgpt.formats.pytorch import is_pytorch
from numgpt.formats.source import Source, read_parameters, score_head
from numgpt.formats.tensorflow import find_bundle
from numgpt.messages import quoted, shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionFileError
from numgpt.reading import LFS_POINTER, check_no_pointer, naming
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer import load_tokenizer as load_tokenizer_files
from numgpt.tokenizer.base import tokenizer_files

KNOWN = (
    "a directory with config.json and weights (Hugging Face) or hparams.json and model.ckpt"
    " (OpenAI), a .gguf file, nanoGPT's ckpt.pt, or a .bin file of llm.c"
)


def load(
    name_or_path: str | os.PathLike,
    mmap: bool = True,
    adapter: str | os.PathLike | None = None,
    dtype: str = "float32",
) -> tuple[LanguageModel, BaseTokenizer]:
    """A model and its tokenizer: from a directory or file of any known format, by the name of a
    shipped or downloaded model, or by a hub id. With `adapter`, the directory of one in PEFT's
    layout, that is active on it; a directory that holds an adapter alone can be loaded by itself,
    where it says which model it is for and that can be found.

    Weights that are stored as float32 stay in their file, mapped, and must not be cut short while
    the model is in use: the system would end the process (SIGBUS). mmap=False reads them into
    memory. With dtype="bfloat16" or "int8" the model's matrices take a half or a quarter of the
    memory, and are not trained: only an adapter beside them is.

    Raises FileNotFoundError or ValueError, in one line that names what is wrong and what to do.
    """
    if adapter is not None and not isinstance(adapter, (str, os.PathLike)):
        raise TypeError(f"adapter={shown(adapter)}: expected the directory of an adapter")
    path = resolve(name_or_path)
    if peft.is_adapter(path) and not huggingface.is_model(path):
        if adapter is not None:
            raise ValueError(f"{path} is an adapter already: name the model that {adapter} is for")
        base = peft.base_of(path)
        try:
            return load(base, mmap, path, dtype)
        except FileNotFoundError as error:
            absent = "{0} is an adapter of {1}, which is not there ({2}): name the model, and"
            where = path, shown(base), error, quoted(path)
            raise OptionFileError(absent + " {adapter:name} {3}", *where) from None
    source = open_model(path)
    tokenizer = source.read_tokenizer()  # first: it is quickly found missing
    if adapter is not None and tokenizer_files(adapter):
        # What was tuned may have a chat format of its own.
        tokenizer = load_tokenizer_files(Path(adapter))
    check_belongs(tokenizer, source.config.vocab_size, source.path if adapter is None else adapter)
    model = read_model(source, mmap=mmap, dtype=dtype)
    model.name_or_path = peft.hub_name(os.fspath(name_or_path))
    if adapter is not None:
        peft.load_adapter(model, adapter)
    return model, tokenizer


def is_reward_model(directory: str | os.PathLike) -> bool:
    """Whether a directory holds a model with a score head, or an adapter with one."""
    path = Path(directory)
    if peft.is_adapter(path) and not huggingface.is_model(path):
        return peft.has_score_head(path)
    return score_head(open_model(path)) is not None


def check_belongs(tokenizer: BaseTokenizer, vocab_size: int, path: str | os.PathLike) -> None:
    """Raises ValueError where a tokenizer has more tokens than a model's table; only warns where
    these are special or added ones, as [PAD] is where nobody has made room for it."""
    if tokenizer.vocab_size <= vocab_size:
        return
    sizes = (
        f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's table {vocab_size}"
    )
    named = tokenizer.special_tokens | tokenizer.added_tokens
    surplus = [token for token, id in named.items() if id >= vocab_size]
    if len({named[token] for token in surplus}) < tokenizer.vocab_size - vocab_size:
        raise ValueError(f"{sizes}: they don't belong together")
    which = ", ".join(map(shown, surplus[:4]))
    warnings.warn(f"{sizes}: {which} can't be read by the model", stacklevel=3)


def load_tokenizer(name_or_path: str | os.PathLike) -> BaseTokenizer:
    """A tokenizer by itself, from where `load` finds one."""
    path = resolve(name_or_path)
    try:
        return load_tokenizer_files(path)
    except FileNotFoundError:
        if not path.is_file() and not find_single(path):
            raise
    return open_model(path).read_tokenizer()


def load_model(
    name_or_path: str | os.PathLike,
    expected: type[LanguageModel] = LanguageModel,
    mmap: bool = True,
    dtype: str = "float32",
) -> LanguageModel:
    """A model by itself, from where `load` finds one."""
    source = open_model(resolve(name_or_path))
    if not issubclass(source.family.model, expected):
        raise ValueError(
            f"{source.path} holds a {source.family.model.__name__}, not a {expected.__name__}"
        )
    model = read_model(source, mmap=mmap, dtype=dtype)
    model.name_or_path = peft.hub_name(os.fspath(name_or_path))
    return model


def read_model(
    source: Source,
    report: Callable[[str], None] = lambda name: None,
    mmap: bool = True,
    dtype: str = "float32",
) -> LanguageModel:
    """The model of a source; `report` is called with each tensor's name as its turn comes."""
    parameters = read_parameters(source, report, mmap, dtype)
    model = source.family.model(source.config, parameters=parameters)
    model.generation_config = dict(source.generation)
    if (head := score_head(source)) is not None:
        model.add_score_head(head.finite())
    return model


def open_model(path: Path) -> Source:
    """Finds out what is there, without reading any weights.

    Raises FileNotFoundError or ValueError where it is no model that can be read.
    """
    finish_replacing(path.parent if path.is_file() else path)
    if path.is_file():
        with naming(path):
            return _open_file(path)
    if huggingface.is_model(path):
        return huggingface.open_directory(path)
    prefix = find_bundle(path)
    if prefix is not None and (path / openai.HPARAMS_FILE).is_file():
        return openai.open_bundle(path, prefix)
    if (file := find_single(path)) is not None:
        return _open_file(file)
    if (path / huggingface.CONFIG_FILE).is_file():
        return huggingface.open_directory(path)  # which says what is missing
    raise FileNotFoundError(f"no model in {path}: expected {KNOWN}")


def find_single(directory: Path) -> Path | None:
    """The file in a directory that is a model by itself.  Raises ValueError where there are
    several."""
    patterns = ("*.gguf", nanogpt.CHECKPOINT_FILE, "*.bin")
    files = [p for pattern in patterns for p in sorted(directory.glob(pattern)) if p.is_file()]
    files = [path for path in files if path.suffix != ".bin" or llmc.is_llmc(path)]
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"{directory} holds several models: name one of {names}")
    return files[0] if files else None


def _open_file(path: Path) -> Source:
    directory = path.parent
    with open(path, "rb") as file:
        check_no_pointer(path, file.read(len(LFS_POINTER)))
    if is_gguf(path):
        return llamacpp.open_file(path)
    if llmc.is_llmc(path):
        return llmc.open_checkpoint(path)
    beside_config = (directory / huggingface.CONFIG_FILE).is_file()
    if beside_config and (path.suffix == ".safetensors" or is_pytorch(path)):
        return huggingface.open_directory(directory, path)
    if path.suffix == ".index" and (directory / openai.HPARAMS_FILE).is_file():
        return openai.open_bundle(directory, path)
    if is_pytorch(path):
        return nanogpt.open_checkpoint(path)
    if huggingface.is_model(directory):
        raise ValueError(f"{path} is no model by itself: name its directory, {quoted(directory)}")
    raise ValueError(f"{path} is no model that numgpt can read: expected {KNOWN}")
