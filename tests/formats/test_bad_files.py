"""Files of models that are not as they should be, each with what is said of it: one line that
names the file and what is wrong in it, at once and without the memory that its numbers claim."""

import json
import pickle

import numpy as np
import pytest
from formats.gguf_writer import gguf_file, metadata_of, model_gguf, tensors_of
from formats.source_writers import (
    llmc_checkpoint,
    llmc_header,
    llmc_tokenizer,
    nanogpt_checkpoint,
    openai_arrays,
    save_torch,
    state_of,
    write_openai,
    write_pickled_directory,
)
from formats.tensorflow_writer import write_bundle
from models.references import LLAMA3_SCALING, small_model
from models.test_lora import adapted
from support import refused

import numgpt
from numgpt import CharTokenizer, Tokenizer
from numgpt.formats import load_model, open_model, read_safetensors, write_safetensors

MODEL = small_model("default")
LLAMA = small_model("llama_grouped")
TOKENIZER = Tokenizer.train("hen ten", 258)
HUGE = 10**9
TABLE, LAST = "transformer.wte.weight", "transformer.ln_f.bias"
PLACES, INNER = "transformer.wpe.weight", "transformer.h.1.mlp.c_fc.weight"


# Rows: what writes the files into a directory, what reads them, and what it says.


def case(write, message, read=load_model, name=""):
    """What is read is the directory into which `write` has written, or a file of this name."""

    def place(directory):
        write(directory)
        return directory / name

    return place, read, message


def holding(name, data):
    data = data.encode() if isinstance(data, str) else data
    return lambda directory: (directory / name).write_bytes(data)


def after(*steps):
    """Each does something in the directory."""
    return lambda directory: [step(directory) for step in steps]


def files(message, read=load_model, /, name="", **contents):
    """These files and nothing else; `name` is what is read, else their directory."""
    return case(after(*(holding(*file) for file in contents.items())), message, read, name)


def pickled(directory):
    return write_pickled_directory(directory, MODEL)


def fields(name, changes):
    """A JSON file with its fields changed."""

    def write(directory):
        values = json.loads((directory / name).read_text()) | changes
        (directory / name).write_text(json.dumps(values))

    return write


def arrays(change, name="model.safetensors"):
    """A safetensors file with its arrays changed."""

    def write(directory):
        tensors, _ = read_safetensors(directory / name)
        values = {name: np.array(tensor.raw) for name, tensor in tensors.items()}
        change(values)
        write_safetensors(directory / name, values)

    return write


def gpt2(changes, message):
    return case(after(pickled, fields("config.json", changes)), message)


def llama(changes, message):
    def write(directory):
        LLAMA.save_pretrained(directory)
        path = directory / "config.json"
        if "rope_parameters" in changes:
            path.write_text(path.read_text().replace('"rope_theta"', '"other"'))

    return case(after(write, fields("config.json", changes)), message)


def saved(change, message, read=load_model, dtype="float32"):
    """model.safetensors as numgpt has written it, then changed."""
    return case(after(lambda d: MODEL.save_pretrained(d, dtype), change), message, read)


def tensors(change, message):
    return saved(arrays(change), message)


def removed(name):
    return lambda directory: (directory / name).unlink()


def letters(count):
    return CharTokenizer([chr(200 + number) for number in range(count)]).save_pretrained


def nothing(directory):
    pass


def spoilt(value):
    """With one element that is no number, in the file's own bits."""
    name = TABLE if value < 0 else "transformer.h.1.ln_1.bias"

    def change(directory):
        path = directory / "model.safetensors"
        tensor = read_safetensors(path)[0][name]
        data = bytearray(path.read_bytes())
        bits = np.array(value, tensor.raw.dtype).tobytes()
        data[tensor.offset : tensor.offset + len(bits)] = bits
        path.write_bytes(data)

    return change


def in_bits(dtype):
    return lambda directory: load_model(directory, dtype=dtype)


def kept(change, message, dtype="int8"):
    """In fewer bits, as numgpt has written it, then changed."""

    def write(directory):
        MODEL.save_pretrained(directory / "whole")
        load_model(directory / "whole", dtype=dtype).save_pretrained(directory)

    return case(after(write, change), message, in_bits(dtype))


def kept_tensors(change, message, dtype="int8"):
    return kept(arrays(change), message, dtype)


def settings(**changes):
    return fields("config.json", {"quantization_config": {"quant_method": "numgpt"} | changes})


def state(change, message):
    """pytorch_model.bin."""

    def write(directory):
        values = state_of(MODEL)
        change(values)
        save_torch(pickled(directory), values)

    return case(write, message)


def with_array(name, array):
    return lambda arrays: arrays.update({name: array})


def state_that_is(value):
    message = "pytorch_model.bin holds no state_dict, but a"
    return case(lambda d: save_torch(pickled(d), value), message)


def index(text, message):
    there = holding("pytorch_model.bin.index.json", text)
    return case(after(pickled, removed("pytorch_model.bin"), there), message)


def openai(directory):
    write_openai(directory, MODEL, TOKENIZER)


def hparams(changes, message):
    return case(after(openai, fields("hparams.json", changes)), message)


def bundle(change, message):
    def write(directory):
        values = openai_arrays(MODEL)
        change(values)
        write_bundle(directory / "model.ckpt", [values])

    return case(after(openai, write), message)


def nanogpt(change, message):
    """Changed is the whole checkpoint."""

    def write(directory):
        checkpoint = nanogpt_checkpoint(MODEL)
        change(checkpoint)
        save_torch(directory / "ckpt.pt", checkpoint)

    return case(write, message, name="ckpt.pt")


def model_args(changes, message):
    """… or its model_args."""
    return nanogpt(lambda checkpoint: checkpoint["model_args"].update(changes), message)


def weights(change, message):
    """… or its state_dict."""
    return nanogpt(lambda checkpoint: change(checkpoint["model"]), message)


def meta(value, message="meta.pkl: .*(itos|ids|character)"):
    def write(directory):
        save_torch(directory / "ckpt.pt", nanogpt_checkpoint(MODEL))
        (directory / "meta.pkl").write_bytes(pickle.dumps(value))

    return case(write, message, numgpt.load)


def header(changes, message):
    return checkpoint(llmc_header(20240326, *(SIZES | changes).values()) + LLMC[1024:], message)


def checkpoint(data, message="ends within its header|the sizes in its header make"):
    return files(message, name="model.bin", **{"model.bin": data})


def tokens(data, message):
    contents = {"model.bin": LLMC, "gpt2_tokenizer.bin": data}
    return files(message, lambda directory: open_model(directory).read_tokenizer(), **contents)


def adapter_of(name, change, message):
    model = adapted(name, np.float32)
    return case(after(model.save_adapter, change), message, small_model("default").load_adapter)


def adapter(changes, message):
    return adapter_of("default", fields("adapter_config.json", changes), message)


def factors(change, message):
    return adapter_of("default", arrays(change, "adapter_model.safetensors"), message)


YARN = {"rope_type": "yarn", "factor": 4.0}
UNTYPED = {name: value for name, value in LLAMA3_SCALING.items() if name != "rope_type"}
SIZES = {"version": 3, "positions": 24, "vocabulary": 37, "layers": 2, "heads": 2, "width": 16}
SIZES |= {"padded": 37}
SHARDS = '{"weight_map": {"wte.weight": "a.safetensors"}}'
LLMC = llmc_checkpoint(MODEL)
GOOD = llmc_tokenizer(TOKENIZER)
magic, version, count, end = np.frombuffer(GOOD[:16], "<u4").tolist()
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
BIAS = ("output_norm.bias", "F64", (16,), b"\x7e" * 8 * 16)  # 1e301
OTHERS = [tensor for tensor in tensors_of(MODEL) if tensor[0] != BIAS[0]]
BEYOND = gguf_file(metadata_of(MODEL), [BIAS, *OTHERS])
GGUF = model_gguf(MODEL)


FILES = [
    # What is no model.
    files(r"no model in .*: expected a directory with"),
    files(r"no model in .*: expected a directory with", open_model),
    files("no tokenizer in", numgpt.formats.load_tokenizer),
    files("is no model that numgpt can read", name="a.txt", **{"a.txt": b"text"}),
    files("is no model that numgpt can read", name="empty.gguf", **{"empty.gguf": b""}),
    files("is no model that numgpt can read", name="a.bin", **{"a.bin": bytes(99)}),
    files("there is no file or directory", name="absent"),
    # config.json of GPT-2.
    gpt2({"model_type": "mamba"}, "mamba"),
    gpt2({"model_type": None}, "model_type"),
    gpt2({"activation_function": "silu"}, "silu"),
    gpt2({"add_cross_attention": True}, "add_cross_attention"),
    gpt2({"n_layer": "two"}, "n_layer"),
    gpt2({"n_head": 5}, "n_head=5"),
    gpt2({"model_type": ["gpt2"]}, "model_type"),
    gpt2({"embd_pdrop": None}, "embd_pdrop"),
    gpt2({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"),
    gpt2({"scale_attn_weights": "no"}, "scale_attn_weights"),
    gpt2({"eos_token_id": "abc"}, "eos_token_id"),
    gpt2({"n_layer": 10**9}, "n_layer"),
    gpt2({"n_layer": HUGE}, "n_layer=1000000000, the weights have 28 tensors"),
    gpt2({"n_layer": 10**30}, "n_layer=10{30}"),
    gpt2({"n_embd": HUGE}, r"wte\.weight' has shape \[37, 16\].*asks for \[37, 1000000000\]"),
    gpt2({"vocab_size": 10**30}, r"wte\.weight' has shape"),
    gpt2({"n_positions": HUGE}, r"wpe\.weight' has shape"),
    gpt2({"n_inner": HUGE}, r"mlp\.c_fc\.weight' has shape"),
    gpt2({"n_layer": 1}, r"h\.1\.ln_1\.weight' has no place"),
    gpt2({"n_layer": 3}, r"lack 'transformer\.h\.2\.ln_1\.weight'"),
    gpt2({"n_head": HUGE}, "n_head=1000000000"),
    gpt2({"tie_word_embeddings": False}, r"lack 'lm_head\.weight'$"),
    gpt2({"activation_function": "a\nb"}, r"activation_function='a\\nb'"),
    gpt2({"model_type": "x\ny"}, r"model_type='x\\ny' is not supported"),
    *[
        gpt2({"quantization_config": settings}, f"the weights are quantised .{named}.*GGUF")
        for settings, named in [
            ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
            ({"quant_method": "fp8"}, "'fp8'"),
            ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "{.*'load_in_4bit': True"),
            ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ]
    ],
    # … and of Llama.
    llama({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    llama({"pretraining_tp": 2}, "pretraining_tp=2"),
    llama({"sliding_window": 4096}, "sliding_window=4096"),
    llama({"use_sliding_window": True, "sliding_window": 4096}, "sliding_window"),
    llama(
        {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*sliding_attention"
    ),
    llama({"layer_types": 2}, "layer_types=2 is not supported"),
    llama({"layer_types": [["full_attention"]]}, "layer_types=.* is not supported"),
    llama({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    llama({"rope_scaling": YARN}, "rope_scaling=.*yarn"),
    llama({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
    llama({"rope_parameters": YARN | {"rope_theta": 1e4}}, "rope_scaling=.*yarn"),
    llama(
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rot"
    ),
    llama({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta=None"),
    llama(
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        "rope_scaling=.*full_attention",
    ),
    llama({"rope_parameters": [1]}, "rope_parameters"),
    llama({"rope_scaling": [1]}, r"rope_scaling=\[1\]"),
    llama({"rope_scaling": UNTYPED}, "rope_scaling"),
    llama({"rope_scaling": LLAMA3_SCALING | {"factor": 0}}, "rope_scaling: factor=0"),
    llama({"rope_scaling": LLAMA3_SCALING | {"factor": "8"}}, "rope_scaling: factor='8'"),
    llama(
        {"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": 4.0}}, "low_freq_factor is not below"
    ),
    llama({"rope_theta": -1.0}, "rope_theta=-1.0"),
    llama({"num_key_value_heads": 3}, "num_key_value_heads=3"),
    llama({"num_key_value_heads": 0}, "num_key_value_heads=0"),
    llama({"num_attention_heads": "4"}, "num_attention_heads='4'"),
    llama({"head_dim": 3}, "heads of size 3 can't be rotated"),
    llama({"head_dim": 8}, r"q_proj\.weight' has shape \[16, 16\]"),
    llama({"head_dim": 10**30}, r"q_proj\.weight' has shape"),
    llama(
        {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, the weights have 20 tensors"
    ),
    llama({"hidden_size": 10**9}, r"embed_tokens\.weight' has shape"),
    llama({"vocab_size": 36}, r"embed_tokens\.weight' has shape \[37, 16\]"),
    llama({"intermediate_size": 45}, r"gate_proj\.weight' has shape"),
    llama({"num_hidden_layers": 1}, r"model\.layers\.1\.[\w.]+' has no place"),
    llama({"num_hidden_layers": 3}, r"lack 'model\.layers\.2\.input_layernorm\.weight' and 8 more"),
    llama({"attention_bias": True}, r"lack 'model\.layers\.0\.self_attn\.q_proj\.bias'"),
    llama({"mlp_bias": 1}, "mlp_bias=1: expected true or false"),
    llama({"tie_word_embeddings": False}, r"lack 'lm_head\.weight'$"),
    llama({"rms_norm_eps": 0}, "rms_norm_eps=0"),
    llama({"eos_token_id": [1, "2"]}, "eos_token_id"),
    llama({"model_type": "mistral"}, "model_type='mistral' is not supported"),
    # pytorch_model.bin.
    state(lambda s: s.pop(LAST), r"lack 'transformer\.ln_f\.bias'"),
    state(
        lambda s: [s.pop(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")],
        r"lack 'transformer\.ln_f\.weight' and 1 more",
    ),
    state(with_array("extra", np.zeros(2, "f4")), "'extra' has no place"),
    state(with_array("a\nb", np.zeros(2, "f4")), r"'a\\nb' has no"),
    state(with_array("wpe.weight", np.zeros((24, 16), "f4")), "there twice"),
    state(
        with_array(PLACES, np.zeros((16, 24), "f4")),
        r"wpe\.weight' has shape \[16, 24\], config\.json asks for \[24, 16\]",
    ),
    state(with_array(LAST, np.zeros(16, "u1")), r"ln_f\.bias' is stored as U8"),
    state(with_array(LAST, np.full(16, np.nan, "f4")), r"ln_f\.bias' holds NaN or infinity"),
    state(with_array(LAST, np.full(16, np.inf, "f2")), r"ln_f\.bias' holds NaN or infinity"),
    state(with_array("version", 3), r"'version' is no tensor.*a state_dict"),
    state(with_array(5, np.zeros(2, "f4")), "'5' is no tensor"),
    *[state_that_is(value) for value in (3, [1, 2], "text", None, np.zeros(3, np.float32))],
    *[index(text, r"bin\.index\.json") for text in ("[]", "{}", '{"weight_map": {}}')],
    index('{"weight_map": 3}', r"pytorch_model\.bin\.index\.json"),
    *[
        index(json.dumps({"weight_map": {"wte.weight": shard}}), "names the shard")
        for shard in ("a\nb", "../a", "x" * 300, "a\0b", "", ".", 3, None)
    ],
    # model.safetensors.
    tensors(lambda a: a.pop(LAST), r"lack 'transformer\.ln_f\.bias'"),
    tensors(with_array("extra", np.zeros(2, "f4")), "'extra' has no place"),
    tensors(lambda a: a.update({"wte.weight": a["transformer.wte.weight"]}), "twice"),
    tensors(with_array(PLACES, np.zeros((3, 16), "f4")), r"wpe\.weight' has shape \[3, 16\]"),
    tensors(with_array(LAST, np.zeros(16, "i4")), "is stored as I32"),
    *[
        saved(spoilt(value), f"{name}' holds NaN or infinity", read, dtype)
        for value, name in ((np.nan, r"h\.1\.ln_1\.bias"), (-np.inf, r"wte\.weight"))
        for dtype in ("float32", "float16")
        for read in (load_model, in_bits("bfloat16"), in_bits("int8"))
    ],
    saved(removed("model.safetensors"), r"model\.safetensors"),
    saved(removed("config.json"), r"no model in|config\.json"),
    saved(
        after(removed("model.safetensors"), holding("model.safetensors.index.json", SHARDS)),
        r"shard 'a\.safetensors'",
    ),
    saved(holding("config.json", "{"), r"config\.json is not valid JSON"),
    saved(holding("config.json", "[" * 200_000), "not valid JSON"),
    saved(holding("generation_config.json", '{"eos_token_id": "</s>"}'), "eos_token_id='</s>'"),
    saved(letters(38), "38 tokens", numgpt.load),
    saved(nothing, "no tokenizer in", numgpt.load),
    saved(nothing, "holds a GPT, not a Llama", numgpt.Llama.from_pretrained),
    *[
        saved(holding(name, POINTER), f"{name} is a Git LFS pointer.*git lfs pull", numgpt.load)
        for name in ("model.safetensors", "config.json", "tokenizer.json")
    ],
    *[
        files(f"{name} is a Git LFS pointer.*git lfs pull", numgpt.load, **{name: POINTER})
        for name in ("m.gguf", "ckpt.pt")
    ],
    # … in fewer bits, as numgpt keeps it.
    kept(settings(kind="int4"), "json: quantization_config: kind='int4': expected bfloat16 or"),
    kept(settings(), "config.json: quantization_config: kind=None"),
    kept(settings(kind="bfloat16"), "kind='bfloat16': no matrix is stored so"),
    kept(settings(kind="int8"), "kind='int8': no matrix is stored so", "bfloat16"),
    kept_tensors(lambda a: a.pop(f"{TABLE}.scales"), "wte.weight' needs '.*scales', F32"),
    kept_tensors(
        with_array(f"{TABLE}.shift", np.zeros(36, "f4")),
        r"wte.weight' needs 'transformer.wte.weight.shift', F32 of shape \[37\]",
    ),
    kept_tensors(
        with_array(TABLE, np.zeros((37, 12), "i1")),
        r"^[^:]*safetensors: .* \[37, 12\], config.json asks for \[37, 16\] or \[1, 1, 16, 64, 4\]",
    ),
    kept_tensors(lambda a: a[f"{TABLE}.scales"].fill(np.nan), "wte.weight' holds NaN"),
    kept_tensors(lambda a: a[TABLE].fill(0x7FC0), "wte.weight' holds NaN", "bfloat16"),
    kept_tensors(lambda a: a.pop(TABLE), "wte.weight.scales' has no place"),
    # Several models.
    files(
        "several models.*: name one of a.gguf, b.gguf, ckpt.pt, model.bin",
        **{"a.gguf": GGUF, "b.gguf": GGUF, "model.bin": LLMC, "ckpt.pt": b"PK", "other.bin": "x"},
    ),
    # GGUF beyond float32.
    files(r"'output_norm\.bias' holds NaN or infinity", name="a.gguf", **{"a.gguf": BEYOND}),
    # OpenAI's release.
    hparams({"n_layer": HUGE}, r"hparams\.json says n_layer=1000000000"),
    hparams({"n_layer": 1}, r"'model/h1/[\w/]+' has no place"),
    hparams({"n_layer": 3}, r"lack 'model/h2/ln_1/g' and 11 more"),
    hparams({"n_layer": "2"}, r"hparams\.json: n_layer='2'"),
    hparams({"n_head": None}, r"hparams\.json: n_head=None"),
    hparams({"n_embd": 1 << 40}, r"has shape .*, hparams\.json asks for"),
    hparams({"n_head": 5}, r"hparams\.json: n_embd=16 is not a multiple of n_head=5"),
    hparams({"n_vocab": 38}, r"'model/wte' has shape \[37, 16\]"),
    bundle(lambda a: a.pop("model/h1/mlp/c_fc/b"), "lack 'model/h1/mlp/c_fc/b'"),
    bundle(lambda a: a.pop("model/ln_f/g"), "lack 'model/ln_f/g'"),
    bundle(with_array("model/h1/x/w", np.ones(3, "f4")), "h1/x/w' has no place"),
    bundle(with_array("model/extra", np.ones(3, "f4")), "extra' has no place"),
    bundle(
        with_array("model/h0/mlp/c_fc/w", np.ones((16, 64), "f4")),
        r"c_fc/w' has shape \[16, 64\], hparams\.json asks for \[1, 16, 64\]",
    ),
    bundle(with_array("model/wpe", np.ones((24, 16), "i4")), "stored as I32"),
    bundle(with_array("model/ln_f/b", np.full(16, np.nan, "f4")), "ln_f/b' holds NaN"),
    # nanoGPT.
    model_args({"n_layer": HUGE}, "ckpt.pt says n_layer=1000000000"),
    model_args({"n_layer": 0}, "model_args: n_layer=0"),
    model_args({"n_head": "2"}, "model_args: n_head='2'"),
    model_args({"vocab_size": None}, "model_args: vocab_size=None"),
    model_args({"n_embd": np.ones(1, np.float32)}, "model_args: n_embd="),
    nanogpt(lambda c: c["model_args"].pop("block_size"), "model_args lacks 'block_size'"),
    model_args({"n_embd": 1 << 60}, r"wte\.weight' has shape"),
    nanogpt(lambda c: c.pop("model_args"), "no checkpoint of nanoGPT"),
    nanogpt(lambda c: c.pop("model"), "no checkpoint of nanoGPT"),
    nanogpt(lambda c: c.update(model=3), "holds no state_dict, but a int"),
    weights(
        with_array("transformer.h.0.moe", np.ones(2, "f4")),
        r"'transformer\.h\.0\.moe' has no place in this model",
    ),
    weights(lambda w: w.pop(INNER), r"lack 'transformer\.h\.1\.mlp\.c_fc\.weight'"),
    weights(lambda w: w.pop(LAST), r"lack 'transformer\.ln_f\.bias'"),
    weights(
        with_array(INNER, np.ones((16, 64), "f4")),
        r"c_fc\.weight' has shape \[16, 64\], ckpt\.pt asks for \[64, 16\]",
    ),
    *[
        meta(value)
        for value in (
            3,
            {"stoi": {}},
            {"itos": ["a", "b"]},
            {"itos": {0: "a", 2: "b"}},
            {"itos": {"0": "a", "1": "b"}},
            {"itos": {0: "a", 1: "bc"}},
            {"itos": {0: "a", 1: "a"}},
            {"itos": {0: "a", 1: 5}},
            {"itos": {}},
        )
    ],
    # llm.c.
    header({"layers": (1 << 31) - 1}, "the sizes in its header make"),
    header({"layers": -1}, "the header says n_layer=-1"),
    header({"width": 0}, "the header says n_embd=0"),
    header({"width": 1 << 30}, "the sizes in its header make"),
    header({"heads": 3}, "the header says n_embd=16 is not a multiple of n_head=3"),
    header({"padded": 36}, "vocabulary of 37 is padded to 36"),
    header({"padded": (1 << 31) - 1}, "the sizes in its header make"),
    header({"version": 1}, "version 1 of llm.c's format is not supported"),
    header({"version": 5}, "the sizes in its header make"),
    header(dict.fromkeys(SIZES, (1 << 31) - 2) | {"version": 3}, "the sizes in its header make"),
    *[checkpoint(LLMC[:size]) for size in (4, 100, 1023, 1024, 5000, -1)],
    checkpoint(LLMC + b"\0"),
    checkpoint(LLMC[:-4] + b"\0\0\x80\x7f", r"'transformer\.ln_f\.bias' holds NaN or infinity"),
    tokens(GOOD[:100], "ends within its header"),
    tokens(GOOD[:-1], f"ends within token {count - 1} of {count}"),
    tokens(GOOD[:1024], "ends within token 0"),
    tokens(b"x" + GOOD[1:], "is no tokenizer of llm.c"),
    tokens(
        llmc_header(magic, 3, count, end) + GOOD[1024:], "is no tokenizer of llm.c, version 1 or 2"
    ),
    tokens(llmc_header(magic, 2, 0, end), "is no tokenizer"),
    tokens(llmc_header(magic, 2, -1, end), "is no tokenizer"),
    tokens(llmc_header(magic, 2, (1 << 31) - 1, end) + GOOD[1024:], f"token {count} of 2147483647"),
    tokens(llmc_header(magic, 2, 1, 5) + GOOD[1024:], "token 5"),
    tokens(llmc_header(magic, version, count, count) + GOOD[1024:], f"token {count}"),
    tokens(llmc_header(magic, version, count, -1) + GOOD[1024:], "token -1"),
    tokens(llmc_header(magic, version, count, end) + GOOD[1024:1026] + GOOD[1024:], "twice"),
    tokens(GOOD.replace(b"\1B", b"\1A"), "twice"),
    tokens(GOOD.replace(b"\1B", b"\0"), "empty"),
    # Adapters.
    files(r"expected adapter_config\.json", small_model("default").load_adapter),
    adapter_of(
        "llama_grouped", nothing, "for no projection of the model: the adapter is for another"
    ),
    adapter({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only LORA"),
    adapter({"use_dora": True}, "DoRA is not supported"),
    adapter({"bias": "all"}, "bias='all' is not supported"),
    adapter({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not"),
    adapter({"rank_pattern": {"c_attn": 4}}, r"has shape \[3, 16\], the model and r=4 ask"),
    adapter({"rank_pattern": {"c_attn": "x"}}, "rank_pattern, 'c_attn': r='x'"),
    adapter({"rank_pattern": {"(": 4}}, r"rank_pattern, '\('"),
    adapter({"alpha_pattern": [4]}, r"alpha_pattern=\[4\]: expected names with numbers"),
    adapter({"alpha_pattern": {"c_attn": -1}}, "alpha_pattern, 'c_attn': lora_alpha=-1"),
    adapter({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported: the base"),
    adapter({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    adapter({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    adapter({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
    adapter({"kasa_config": {"beta": 1}}, "kasa_config=.* is not supported"),
    adapter({"exclude_modules": "("}, r"exclude_modules='\('"),
    adapter({"layers_to_transform": [0], "layers_pattern": "("}, r"layers_pattern='\('"),
    adapter({"target_modules": "("}, "is no regular expression"),
    adapter({"layers_to_transform": [5]}, "are none of the model's projections: nothing of it"),
    adapter({"exclude_modules": ".*"}, "are none of the model's projections: nothing of it"),
    adapter({"exclude_modules": 5}, "exclude_modules=5: expected str, or a list"),
    adapter({"layers_to_transform": ["a"]}, r"layers_to_transform=\['a'\]: expected int"),
    adapter({"r": "8"}, "r='8'"),
    adapter({"r": 4}, r"has shape \[3, 16\], the model and r=4 ask for \[4, 16\]"),
    adapter({"lora_alpha": None}, "lora_alpha=None"),
    factors(lambda t: t.popitem(), "lacks one of A and B"),
    factors(lambda t: t.clear(), "holds no tensors"),
    factors(
        lambda t: t.update({"base_model.model.wte.lora_A.weight": np.ones((3, 4))}), "no project"
    ),
    factors(lambda t: t.update({"x.lora_magnitude_vector": np.ones(3)}), r"no A or B.*\(DoRA\)"),
    factors(lambda t: t.update({k: v * np.nan for k, v in list(t.items())[:1]}), "NaN or infinity"),
    factors(lambda t: t.update({k: v.T for k, v in list(t.items())[:1]}), "is for another base"),
]


NAMES = [f"{number}: {message[:60]}" for number, (_, _, message) in enumerate(FILES)]


@pytest.mark.parametrize(("write", "read", "message"), FILES, ids=NAMES)
def test_a_bad_file_is_named(tmp_path, write, read, message):
    place = write(tmp_path)
    refused(lambda: read(place), message, place, peak=5_000_000)
