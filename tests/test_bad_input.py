"""Calls that cannot be, each with what is said of it: a line that names the value and the mend."""

import math
import re

import numpy as np
import pytest
from models.references import LLAMA3_SCALING, LLAMA_SMALL, small_model
from support import clear_model

from numgpt import (
    GPT,
    AdamW,
    CharTokenizer,
    Chat,
    GPTConfig,
    Llama,
    LlamaConfig,
    LoRAConfig,
    Tokenizer,
    insight,
    load,
    set_num_threads,
)
from numgpt.generation import generate
from numgpt.training import TrainConfig, TuneConfig

MODEL = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=99))
CLEAR = clear_model()  # a vocabulary of 61, a context of 32
LETTERS = CharTokenizer(["a"])
IDS = [3, 1, 4, 1, 5, 9, 2]


BPE = Tokenizer.train("the cat sat on the mat\n" * 9, 262)


def tokenizer(message, vocabulary=BPE.vocabulary, merges=BPE.merges, **options):
    return lambda: Tokenizer(vocabulary, merges, **options), message


def reading(message, ids):
    return lambda: small_model("default")(ids), message


def aiming(message, targets):
    return lambda: small_model("default").loss([1, 2], targets), message


def gpt2(message, **fields):
    return lambda: GPT(GPTConfig(**{"n_embd": 64, "n_head": 4, "n_layer": 1} | fields)), message


def llama(message, **fields):
    return lambda: Llama(LlamaConfig(**LLAMA_SMALL | fields)), message


def generating(message, ids=(1, 2), **options):
    return lambda: generate(CLEAR, ids, **options), message


def searching(message, **options):
    return generating(message, **{"num_beams": 3, "max_new_tokens": 3} | options)


def looking(message, look, *arguments, **options):
    return lambda: look(small_model("default"), *arguments, **options), message


def adapting(message, **options):
    return lambda: small_model("default").add_adapter(LoRAConfig(**options)), message


def training(message, **options):
    return lambda: TrainConfig(**options).validate(), message


def tuning(message, **options):
    return lambda: TuneConfig(**{"model": "m", "data": "d"} | options).validate(), message


CALLS = [
    # What is of another type.
    (lambda: GPT({"n_layer": 1}), "GPT is made of a GPTConfig"),
    (lambda: load(5), "the model is 5: name a directory"),
    (lambda: load(None), "the model is None: name a directory"),
    *[
        (lambda d=dtype: load("shakespeare", dtype=d), "expected float32 or bfloat16 or int8")
        for dtype in ("float16", "int4", 8, None)
    ],
    (lambda: set_num_threads("two"), "threads='two': expected a whole number from 1 to 4096"),
    (lambda: set_num_threads(1.5), "threads=1.5: expected"),
    (lambda: AdamW(MODEL, lr="fast"), "lr='fast': expected 0 or more"),
    (lambda: AdamW(MODEL, lr=math.nan), "lr=nan: expected 0 or more"),
    (lambda: AdamW(MODEL, lr=-1), "lr=-1: expected 0 or more"),
    (lambda: AdamW(MODEL, weight_decay=-0.1), "weight_decay=-0.1: expected 0 or more"),
    (lambda: AdamW(MODEL, eps=0), "eps=0: expected a number above 0"),
    (lambda: AdamW(MODEL, betas=0.9), "betas=0.9: expected two numbers"),
    (lambda: AdamW(MODEL, betas=(0.9, 1)), "betas=(0.9, 1): expected two"),
    (lambda: Chat(None, None), "made of a model and its tokenizer"),
    (lambda: load("shakespeare")[1].decode(None), "one sequence of ids … not None: "),
    (lambda: CLEAR.add_adapter({"r": 8}), "takes a LoRAConfig"),
    # Tokenizers.
    (lambda: BPE.encode("abc\ud83d"), "character 3 … U+D83D"),
    (lambda: BPE.encode(["abc"]), "list"),
    (lambda: BPE.decode([999]), "999"),
    (lambda: BPE.decode([0.5]), "one sequence of ids below 262, not [0.5]"),
    (lambda: BPE.decode([[1, 2]]), "not [[1, 2]]: decode several row by row"),
    (lambda: BPE.decode([[1, 2], [3]]), "not [[1, 2], [3]]: decode several row by row"),
    (lambda: BPE.decode([1 << 70]), f"one sequence of ids below 262, not [{1 << 70}]"),
    (lambda: LETTERS.encode("ax"), "'x' (U+0078)"),
    (lambda: LETTERS.decode([-1]), "-1"),
    (lambda: CharTokenizer(["a", "a"]), "twice"),
    (lambda: Tokenizer.train("abc\udc00", 300), "surrogate"),
    (lambda: Tokenizer.train("ab", 256), "vocab_size=256 is too small"),
    (
        lambda: Tokenizer.train("ab", 300, pattern="gpt5"),
        "'gpt5' is not known: choose from gpt2, ll",
    ),
    (lambda: Tokenizer.train("ab", 300, min_frequency=0), "min_frequency"),
    tokenizer("lacks the byte", {t: i for t, i in BPE.vocabulary.items() if t != b"q"}),
    tokenizer("one id to two", BPE.vocabulary | {b"zzz": 5}),
    tokenizer("merge 0", merges=[(b"q", b"zzz"), *BPE.merges]),
    tokenizer("normalizer='NFKC'", normalizer="NFKC"),
    tokenizer("bos_token='<s>'", bos_token="<s>"),
    tokenizer("eos_token='</s>'", special_tokens={"<|end|>": 300}, eos_token="</s>"),
    tokenizer("no bos_token", special_tokens={"<|end|>": 300}, add_bos_token=True),
    # What a model is, and what it reads.
    gpt2("n_layer", n_layer=0),
    gpt2("n_head", n_head=3),
    gpt2("vocab_size", vocab_size=1.5),
    gpt2("n_inner", n_inner=-1),
    gpt2("activation_function", activation_function="swish"),
    gpt2("attn_pdrop", attn_pdrop=1.0),
    gpt2("layer_norm_epsilon", layer_norm_epsilon=0.0),
    llama("num_hidden_layers", num_hidden_layers=0),
    llama("num_key_value_heads", num_key_value_heads=3),
    llama("rotated", head_dim=5),
    llama("hidden_size", hidden_size=18),
    llama("rms_norm_eps", rms_norm_eps=0.0),
    llama("rope_theta", rope_theta=-1.0),
    llama("attention_dropout", attention_dropout=1.5),
    llama("tie_word_embeddings", tie_word_embeddings="yes"),
    llama("eos_token_id", eos_token_id=[1, -2]),
    llama("rope_scaling", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    llama("rope_scaling", rope_scaling={"rope_type": "llama3", "factor": 4.0}),
    llama("rope_scaling", rope_scaling=LLAMA3_SCALING | {"low_freq_factor": 5.0}),
    reading("empty", []),
    reading("empty", [[]]),
    reading("37, outside the vocabulary of 37", [1, 37]),
    reading("-1, outside", [-1]),
    reading("integers", [0.5]),
    reading("different lengths", [[1, 2], [3]]),
    reading("shape", [[[1]]]),
    reading("n_positions=24", range(25)),
    reading("encode the text first", "hello"),
    aiming("equal", [1]),
    aiming("99", [1, 99]),
    aiming("-1", [1, -1]),
    aiming("integers", [1.0, 2.0]),
    # What looks into a model.
    (lambda: insight.ablation(MODEL, [1, 2, 3], 5), "targets have shape"),
    looking(
        "dlogits returned None: expected an array", GPT.run_with_gradients, IDS, lambda z: None
    ),
    looking(
        "objective returned 0.5: expected loss, dlogp", GPT.value_and_grads, IDS, IDS, lambda z: 0.5
    ),
    looking(
        "takes 0 positional arguments but 1 was given",
        GPT.run_with_hooks,
        IDS,
        {"hook_embed": lambda: None},
    ),
    looking("ids are 'To be': encode the text first, tokenizer.enc", insight.logit_lens, "To be"),
    *[
        (lambda c=continuations: MODEL.score([1, 2], c), "expected lists of token ids")
        for continuations in (5, [], [1, 2], [[]], "a", [[[1]]])
    ],
    (lambda: MODEL.score([], [[1]]), "empty"),
    (lambda: MODEL.score([[1], [2]], [[1]]), "expected the ids of one text"),
    (lambda: MODEL.score([1], [[999]]), "999"),
    looking("token=99: expected a token id below 37", insight.saliency, IDS, 99),
    looking("token='a': expected a token id", insight.saliency, IDS, "a"),
    looking("against=-1: expected a token id", insight.saliency, IDS, 1, against=-1),
    looking("position=7: the text has 7 tokens", insight.saliency, IDS, 1, position=7),
    looking("the ids of 2 texts: pass one", insight.saliency, [IDS, IDS], 1),
    looking("empty", insight.saliency, [], 1),
    looking("99", insight.saliency, [1] * 99, 1),
    looking("steps=0: expected a whole", insight.integrated_gradients, IDS, 1, steps=0),
    looking("baseline=99: expected", insight.integrated_gradients, IDS, 1, baseline=99),
    (
        lambda: insight.integrated_gradients(MODEL, IDS, 3, baseline="x"),
        "baseline='x': expected a token id below 99",
    ),
    looking("layer=2: the model has layers 0 to 1", insight.head_outputs, IDS, 2),
    looking("no head (0, 2): each of the 2", insight.ablation_hooks, heads=[(0, 2)]),
    looking("no layer 2: the model has 2", insight.ablation_hooks, mlps=[2]),
    looking("clean prompt has 2 tokens", insight.activation_patching, [1, 2], [1], 3),
    looking("nothing is to be restored", insight.activation_patching, [1], [1], 3),
    looking("kind='x': expected", insight.activation_patching, [1], [2], 3, kind="x"),
    looking("the text has one token", insight.per_token, [1]),
    looking("top=0: expected 1 to 37", insight.per_token, IDS, top=0),
    looking("number=0: the tokens that are predicted", insight.loss_gradients, IDS, 0),
    looking("make them equal", insight.logit_lens, IDS, targets=[1]),
    looking("length=99: expected 1 to 12", insight.repeated_tokens, 99),
    # Prompts.
    generating("empty", ids=[]),
    generating("ids are empty: give at least one token", ids=[[], [1]]),
    generating("61, outside the vocabulary of 61", ids=[61]),
    generating("33 tokens are more than the model's n_positions=32: shorten", ids=range(33)),
    generating("pad on the left", ids=[[1, 2]], attention_mask=[[1, 0]]),
    generating("attention_mask has shape (1, 1), ids (1, 2)", ids=[[1, 2]], attention_mask=[[1]]),
    # Options of generate, their values and kinds.
    generating("temperature=0: expected a number above 0; for the most likely", temperature=0),
    generating("temperature=-1.0: expected", temperature=-1.0),
    generating("temperature='hot': expected", temperature="hot"),
    generating("top_p=0.0: expected a number above 0, up to 1", top_p=0.0),
    generating("top_p=1.5: expected", top_p=1.5),
    generating("min_p=-0.1: expected 0 or more, up to 1", min_p=-0.1),
    generating("top_k=-1: expected a whole number from 0 up", top_k=-1),
    generating("top_k=2.5: expected", top_k=2.5),
    generating("seed=-1: expected a whole number from 0 up", seed=-1),
    generating("repetition_penalty=0: expected a number above 0", repetition_penalty=0),
    generating("num_return_sequences=0: expected", num_return_sequences=0),
    generating("max_new_tokens=0: expected a whole number from 1 to", max_new_tokens=0),
    generating("max_length=3 counts the prompt, which has 3", ids=[1, 2, 3], max_length=3),
    generating(
        "min_new_tokens=9 is more than max_new_tokens=3", min_new_tokens=9, max_new_tokens=3
    ),
    generating("no_repeat_ngram_size=-1: expected a whole number", no_repeat_ngram_size=-1),
    generating("bad_words_ids=[[]]: expected non-empty lists of token ids", bad_words_ids=[[]]),
    generating("bad_words_ids=[[99]]: expected token ids below 61", bad_words_ids=[[99]]),
    generating("bad_words_ids=5: expected", bad_words_ids=5),
    generating("bad_words_ids=[5]: expected", bad_words_ids=[5]),
    generating("bad_words_ids=[['a']]: expected", bad_words_ids=[["a"]]),
    generating("could come next is forbidden", bad_words_ids=[[id] for id in range(61)]),
    generating("eos_token_id=61: expected token ids below 61", eos_token_id=61),
    generating("eos_token_id='a': expected", eos_token_id="a"),
    generating("eos_token_id=[1.5]: expected", eos_token_id=[1.5]),
    generating("pad_token_id='x': expected", pad_token_id="x"),
    generating("stop_strings=['']: expected", stop_strings=[""], tokenizer=LETTERS),
    generating("stop_strings=5: expected", stop_strings=5),
    generating("stop_strings=['a', 5]: expected", stop_strings=["a", 5]),
    generating("are compared with text: pass tokenizer", stop_strings="x"),
    generating("output_scores=True goes with return_dict_in_generate=True", output_scores=True),
    generating("logits_processor=[5]: expected a list of functions", logits_processor=[5]),
    generating("returned None: expected an array", logits_processor=[lambda ids, z: None]),
    generating("returned (1, 60): expected", logits_processor=[lambda ids, z: z[:, 1:]]),
    generating("or a logits_processor is wrong", logits_processor=[lambda ids, z: z * np.nan]),
    generating("come next is forbidden", logits_processor=[lambda ids, z: z - np.inf]),
    # … and of beams.
    searching("do_sample=True cannot be combined with num_beams=3", do_sample=True),
    searching("slide=True cannot be combined", slide=True),
    searching("num_return_sequences=4 is more than num_beams=3", num_return_sequences=4),
    searching("num_beams=0: expected a whole number from 1 to 1,000", num_beams=0),
    searching("length_penalty='x': expected a number", length_penalty="x"),
    searching("early_stopping='always': expected True, False or", early_stopping="always"),
    searching(
        "output_scores=True cannot be combined with num_beams=3",
        output_scores=True,
        return_dict_in_generate=True,
    ),
    searching("come next is forbidden", bad_words_ids=[[n] for n in range(61)]),
    searching(
        "num_return_sequences=3: only 1 continuations are possible",
        bad_words_ids=[[n] for n in range(60)],
        num_return_sequences=3,
    ),
    (lambda: CLEAR.stream([1, 2], num_beams=2), "num_beams is for generate"),
    # Adapters.
    adapting("r=0: expected a whole number from 1", r=0),
    adapting("r=17 is larger than h.0.attn.c_attn, 16 x 48: lower it", r=17),
    adapting("'q_proj' is none of the model's projections: c_attn", target_modules=["q_proj"]),
    adapting("'lm_head' is none of the model's", target_modules=["c_attn", "lm_head"]),
    adapting("expression 'h.9.*' matches no whole name", target_modules="h.9.*"),
    adapting("no regular expression", target_modules="("),
    adapting("expected a list of names", target_modules=[]),
    adapting("lora_dropout=1.0: expected 0 or more and below 1", lora_dropout=1.0),
    adapting("lora_alpha=0: expected a number above 0", lora_alpha=0),
    # Runs.
    training("steps=0: expected a whole number from 1 up", steps=0),
    training("steps=True: expected", steps=True),
    training("n_layer=-1: expected", n_layer=-1),
    training("n_layer=2.0: expected", n_layer=2.0),
    training("lr=0.0: expected a number above 0", lr=0.0),
    training("lr=nan: expected", lr=math.nan),
    training("lr='fast': expected", lr="fast"),
    training("min_lr=1.0 is above lr=0.001: lower it, 0.1 · lr is usual", min_lr=1.0),
    training("dropout=1.0: expected 0 or more and below 1", dropout=1.0),
    training("val_fraction=0.0: expected a number above 0 and below 1; 0.1", val_fraction=0.0),
    training("beta2=1.0: expected", beta2=1.0),
    training("seed=-1: expected", seed=-1),
    training("grad_clip=-1.0: expected 0 or more", grad_clip=-1.0),
    training("data=3: expected text, or a list of texts", data=3),
    training("arch='mamba': expected gpt2 or", arch="mamba"),
    training("dtype='int8': expected float32 or bfloat16", dtype="int8"),
    training("n_embd=17 is not a multiple of n_head=4", n_embd=17),
    training("n_kv_head=2: GPT-2's heads share no keys", n_kv_head=2),
    training("n_head=4 is not a multiple of n_kv_head=3", arch="llama", n_kv_head=3),
    training("heads of size 3 can't be rotated", arch="llama", n_embd=6, n_head=2),
    training("keep='all': expected best or last", keep="all"),
    tuning("model='': name one", model=""),
    tuning("val_data cannot be combined with val_fraction", val_data="x", val_fraction=0.5),
    tuning("dtype='int8' is not trained, and lora_r=0 trains all", dtype="int8", lora_r=0),
    tuning("epochs=0: expected a number above 0 and below 1,000,000", epochs=0),
    tuning("lora_r=-1: expected a whole number from 0 up", lora_r=-1),
    tuning("lora_targets=', ': expected the names of projections", lora_targets=", "),
    tuning("chat_format='x': expected chatml or llama3", chat_format="x"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert re.search(".*".join(re.escape(part) for part in message.split(" … ")), str(error.value))
    assert "\n" not in str(error.value)
    assert not CLEAR.adapters


def test_a_learning_rate_that_was_set_wrong_changes_nothing():
    model = GPT(MODEL.config)
    optimizer = AdamW(model)
    model.loss_and_grads([1, 2, 3], [2, 3, 4])
    before = model.parameters["wte"].copy()
    optimizer.lr = math.nan
    with pytest.raises(ValueError, match="lr=nan"):
        optimizer.step()
    assert optimizer.steps == 0
    assert (model.parameters["wte"] == before).all()
