"""The page: its formulas hold with the numbers beside them, it carries them whole, and wrong input
is one line."""

import base64
import json
import re
import struct
import zlib

import numpy as np
import pytest
from models.references import small_model
from models.test_lora import adapted

import numgpt
from numgpt import insight
from numgpt.insight import contents, trace
from numgpt.insight.formulas import FORMULAS
from numgpt.insight.payload import encode
from numgpt.insight.trace import differences
from numgpt.insight.walk import walk
from numgpt.models import Llama
from numgpt.tokenizer import CharTokenizer

IDS = np.array([3, 1, 4, 1, 5, 9, 2])
MODELS = [
    *("default", "untied", "gelu", "relu"),
    *("llama", "llama_grouped", "llama_biases", "llama_qwen2", "llama_qwen3"),
]
LETTERS = CharTokenizer(sorted("abcdefghijklmnopqrstuvwxyz .,:;!?-'\n"))
TEXT = "ROMEO:\nMy lord, the king, my lord, the sweet queen"


@pytest.fixture(params=[*MODELS, "adapter"], scope="module")
def traced(request):
    name = request.param
    model = adapted("default", r=2) if name == "adapter" else small_model(name, np.float64)
    return trace.trace(model, IDS, 6, range(len(model.blocks)))


@pytest.fixture(scope="module")
def shipped():
    return numgpt.load("shakespeare")


def steps(traced):
    return [step for group in walk(traced) for step in group.steps]


def tables(traced, kind, direction=None):
    for step in steps(traced):
        for name in ("forward", "backward"):
            for table in getattr(step, name).tables:
                if direction in (None, name) and table.kind == kind:
                    yield step, name, table


# --- the trace ---


def test_the_loss_is_the_models_own(traced):
    expected = traced.model.loss(IDS, [*IDS[1:], 6])
    assert traced.loss == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(traced.targets, [1, 4, 1, 5, 9, 2, 6])
    assert set(traced.activations) == set(traced.gradients) == set(traced.model.hook_names)


def test_every_gradient_is_a_finite_difference(traced):
    for token in (0, 3, 6):
        for name, found in differences(traced, traced.model.hook_names, token).items():
            assert token in found.place[:2]
            if name.endswith("hook_pattern"):
                assert found.place[2] <= token  # a key that the query sees
            assert found.gradient == traced.gradients[name][found.place]
            # Its error is of second order in the step, which is long where the gradient is small;
            # ReLU's kink may lie in it.
            kinked = getattr(traced.model.config, "activation_function", "") == "relu"
            rel = 0.1 if kinked else 1e-3
            assert found.difference == pytest.approx(found.gradient, rel=rel, abs=1e-10), name


def test_a_check_is_of_a_gradient_that_its_step_makes(traced):
    """Of what a norm of queries or of the rotation reads, not of what it gives."""
    for step in steps(traced):
        if step.name in ("head_norms", "rope"):
            of_check = traced.gradients[step.hook]
            of_check = of_check.swapaxes(0, 1) if step.hook.endswith("_normed") else of_check
            np.testing.assert_array_equal(step.backward.strips[0].array, of_check)


def test_a_trace_keeps_what_is_asked_for():
    model = small_model("llama")
    names = trace.kept_names(model, range(1, 2))
    assert "blocks.1.attn.hook_q" in names
    assert "blocks.0.attn.hook_q" not in names
    assert {"blocks.0.attn.hook_z", "blocks.0.hook_resid_pre", "hook_embed"} <= set(names)


# --- the steps ---


def test_sums_are_their_terms_and_what_the_model_computed(traced):
    count = 0
    for step, _, table in tables(traced, "product"):
        x = None
        if table.x is None:
            heads = table.chosen.shape[1]
            x = np.concatenate([part.rows(heads) for part in table.inputs], axis=-1)
        for place in np.ndindex(table.terms.shape[:-1]):
            if table.x is not None:
                of_x = table.x[place]
            else:
                at = place[:2] if table.inputs[0].by else place[:1]
                of_x = x[at][table.terms_index[place]]
            terms = table.factor * of_x * table.w[place]
            np.testing.assert_allclose(terms, table.terms[place], rtol=1e-9, atol=1e-15)
        total = table.terms.sum(axis=-1) + table.sums[..., 0, :] + table.sums[..., 1, :]
        result = table.sums[..., 2, :]
        if table.rows == "key":  # later keys are not seen: their rows are not shown
            later = table.chosen > np.arange(len(IDS))[:, None, None]
            total, result = np.where(later, 0, total), np.where(later, 0, result)
        np.testing.assert_allclose(total, result, rtol=1e-9, atol=1e-12, err_msg=f"{step.name}")
        size = np.abs(table.terms)
        assert (np.diff(size, axis=-1) <= 1e-15).all(), "the largest come first"
        count += 1
    of_block = 17 if isinstance(traced.model, Llama) else 16  # gate and up
    assert count == of_block * len(traced.model.blocks) + 2


def test_sums_are_of_the_activations(traced):
    """What a table gives as the result is in the activation of that name."""
    block = traced.model.blocks[0]
    results = {
        ("qkv", "q"): ("attn.hook_q", "activations"),
        ("qkv", "v"): ("attn.hook_v", "activations"),
        ("values", "z"): ("attn.hook_z", "activations"),
        ("output", "out"): ("hook_attn_out", "activations"),
        ("mlp_output", "out"): ("hook_mlp_out", "activations"),
        ("qkv", "g"): ("ln1.hook_normalized", "gradients"),
        ("mlp_input", "g"): ("ln2.hook_normalized", "gradients"),
        ("output", "dz"): ("attn.hook_z", "gradients"),
        ("values", "dv"): ("attn.hook_v", "gradients"),
        ("mlp_output", "dpost"): ("mlp.hook_post", "gradients"),
    }
    seen = set()
    for step, _, table in tables(traced, "product"):
        if not step.hook.startswith("blocks.0.") or (step.name, table.title) not in results:
            continue
        hook, kind = results[step.name, table.title]
        whole = getattr(traced, kind)[f"{block.hook_prefix}{hook}"]
        picked = np.take_along_axis(whole, table.chosen, axis=-1)
        np.testing.assert_array_equal(table.sums[..., 2, :], picked)
        assert np.abs(whole).max() == np.abs(picked).max()
        seen.add((step.name, table.title))
    assert seen == set(results)


STRIPS = {
    "qkv": {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v"}
    | {"dq": "attn.hook_q", "dk": "attn.hook_k", "dv": "attn.hook_v"},
    "head_norms": {"q°": "attn.hook_q_normed", "k°": "attn.hook_k_normed"}
    | {"dq": "attn.hook_q", "dk": "attn.hook_k"},
    "rope": {"q′": "attn.hook_rot_q", "k′": "attn.hook_rot_k"}
    | {"dq": "attn.hook_q", "dk": "attn.hook_k"}
    | {"dq°": "attn.hook_q_normed", "dk°": "attn.hook_k_normed"},
    "values": {"z": "attn.hook_z", "dz": "attn.hook_z", "dv": "attn.hook_v"},
    "output": {"out": "hook_attn_out", "dout": "hook_attn_out", "dz": "attn.hook_z"},
    "stream_1": {"x + out": "hook_resid_mid", "dx": "hook_resid_mid"},
    "norm_1": {"dx": "hook_resid_pre"},
    "norm_2": {"dx": "hook_resid_mid"},
    "activation": {"post": "mlp.hook_post", "dpre": "mlp.hook_pre"}
    | {"dgate": "mlp.hook_pre", "dup": "mlp.hook_pre_linear"},
    "mlp_output": {"out": "hook_mlp_out", "dout": "hook_mlp_out"},
    "stream_2": {"x + out": "hook_resid_post", "dx": "hook_resid_post"},
}


def test_strips_are_the_activations_and_their_gradients(traced):
    for group in walk(traced):
        if group.layer is None:
            continue
        for step in group.steps:
            sides = (step.forward, traced.activations), (step.backward, traced.gradients)
            for side, kept in sides:
                for strip in side.strips:
                    if step.name == "scores":
                        turned = "rot_" if isinstance(traced.model, Llama) else ""
                        hook = f"attn.hook_{turned}{strip.label[1]}"
                    elif strip.label == "y":  # of a norm, which no hook sees
                        norm = getattr(traced.model.blocks[group.layer], step.name)
                        stream = "hook_resid_mid" if step.name == "norm_2" else "hook_resid_pre"
                        x = kept[f"blocks.{group.layer}.{stream}"]
                        np.testing.assert_array_equal(strip.array, norm.forward(x)[0])
                        continue
                    else:
                        hook = STRIPS[step.name][strip.label]
                    seen = kept[f"blocks.{group.layer}.{hook}"]
                    seen = seen.swapaxes(0, 1) if hook.endswith("_normed") else seen
                    np.testing.assert_array_equal(strip.array, seen)
                    assert strip.array.ndim == (3 if strip.heads else 2)


FILLED = {
    ("embedding", "forward"): lambda c: sum(c[:-1]),
    ("stream_1", "forward"): lambda c: c[0] + c[1],
    ("stream_2", "forward"): lambda c: c[0] + c[1],
    ("stream_1", "backward"): lambda c: c[0],
    ("stream_2", "backward"): lambda c: c[0],
    ("rope", "forward"): lambda c: c[0] * c[1] + c[2] * c[3],
    ("rope", "backward"): lambda c: c[0] * c[1] + c[2] * c[3],
    ("output", "forward"): lambda c: sum(c[:-1]),
    ("loss", "backward"): lambda c: (c[0] - c[1]) / len(IDS),
}


def test_formulas_hold_with_their_numbers(traced):
    seen = set()
    for step, direction, table in tables(traced, "values"):
        column = dict(zip(table.columns, np.moveaxis(table.values, -2, 0), strict=True))
        columns = list(column.values())
        if (step.name, direction) in FILLED:
            expected = FILLED[step.name, direction](columns)
        elif step.name == "embedding":  # its sums: see the next test
            expected = columns[-1] if len(columns) == 2 else columns[1] + columns[2]
        elif "norm" in step.name and direction == "forward":
            expected = column["weight"] * column["x̂"] + column.get("bias", 0)
            x_hat = (columns[0] - column.get("mean(x)", 0)) * column["rstd"]
            np.testing.assert_allclose(column["x̂"], x_hat, rtol=1e-9, atol=1e-12)
        elif "norm" in step.name:
            inner = column["g"] - column.get("mean(g)", 0) - column["x̂"] * column["mean(g · x̂)"]
            expected = column["rstd"] * inner + column.get("dx_past", 0)
        elif step.name == "activation" and direction == "backward" and "dup" in column:
            expected = column["dpost"] * column["gate"] * column["σ(gate)"]
        elif step.name == "activation" and direction == "backward" and "dgate" in column:
            sigma, gate = column["σ(gate)"], column["gate"]
            expected = column["dpost"] * column["up"] * sigma * (1 + gate * (1 - sigma))
        elif step.name == "activation" and direction == "backward":
            expected = column["dpost"] * column["slope"]
        elif step.name == "activation" and "up" in column:
            expected = column["gate"] * column["σ(gate)"] * column["up"]
        elif step.name == "loss":
            expected = np.exp(column["z"] - column["M"]) / column["Z"]
            np.testing.assert_allclose(column["−log p"], -np.log(expected), rtol=1e-9)
        else:
            assert (step.name, direction) == ("activation", "forward")
            continue
        message = f"{step.name}, {direction}"
        np.testing.assert_allclose(columns[-1], expected, rtol=1e-6, atol=1e-12, err_msg=message)
        seen.add((step.name, direction))
    assert {("loss", "forward"), ("norm_1", "backward"), ("stream_2", "backward")} <= seen


def test_the_gradient_of_the_embedding_is_the_models(traced):
    """Of every token of the text, by all ways: from the embedding, and where it is tied from the
    logits."""
    model = traced.model
    name = model.embeddings[0]
    _, gradients = model.loss_and_grads(IDS, traced.targets)
    if name not in gradients:  # an adapter trains in its place
        return
    (table,) = (
        t for step, _, t in tables(traced, "values", "backward") if step.name == "embedding"
    )
    for row, token in enumerate(IDS):
        expected = gradients[name][token, table.chosen[row]]
        np.testing.assert_allclose(table.values[row, -1], expected, rtol=1e-6, atol=1e-12)


def test_formulas_say_what_this_model_has():
    def step_of(name, wanted):
        of = trace.trace(small_model(name), IDS, 6, range(1))
        return next(step for step in steps(of) if step.name == wanted)

    assert "+ b_q" in step_of("default", "qkv").formula.forward
    assert step_of("llama", "qkv").formula.forward == "q = y W_q,   k = y W_k,   v = y W_v"
    assert "db" not in step_of("llama", "qkv").formula.backward
    assert "db_q = Σ dq, …,   g" in step_of("llama_biases", "qkv").formula.backward
    assert "(dzᵀ y)[v] +" in step_of("default", "embedding").formula.backward
    assert "dzᵀ" not in step_of("untied", "embedding").formula.backward
    assert "+ dx_past" in step_of("default", "norm_1").formula.backward
    assert "stream" not in step_of("default", "final_norm").formula.backward
    assert "dk′_j = scale · Σ_h Σ_i" in step_of("llama_grouped", "scores").formula.backward
    assert "dk_j = scale · Σ_i" in step_of("default", "scores").formula.backward
    assert "that norm's x̂" not in step_of("default", "qkv").formula.of("forward")[3]
    assert "that norm's x̂" in step_of("default", "qkv").formula.of("backward")[3]
    assert "features i and i + D/2" in step_of("llama", "rope").formula.symbols
    assert "scale = 1/√8 = 0.3536" in step_of("default", "scores").formula.symbols
    assert "ε = 1e-05" in step_of("default", "norm_1").formula.symbols


def test_softmax_and_its_backward_with_their_numbers(traced):
    for step, direction, table in tables(traced, "keys"):
        matrix = dict(zip(table.columns, table.matrices, strict=True))
        scalar = {name: numbers[..., None] for name, numbers in table.scalars.items()}
        seen = np.tri(len(IDS), dtype=bool)[:, None]
        if step.name == "softmax" and direction == "forward":
            p = np.where(seen, np.exp(matrix["s"] - scalar["M"]) / scalar["Z"], 0)
            np.testing.assert_allclose(matrix["p"], p, rtol=1e-9, atol=1e-15)
        elif step.name == "softmax":
            ds = matrix["p"] * (matrix["dp"] - scalar["Σ dp p"])
            np.testing.assert_allclose(matrix["ds"], ds, rtol=1e-9, atol=1e-15)


def test_every_step_names_code_that_is_there(traced):
    for step in steps(traced):
        for name in step.formula.of("forward")[2] + step.formula.of("backward")[2]:
            source = contents.source_of(name)
            assert source["file"].startswith("numgpt/layers/")
            assert f"def {name}(" in source["text"]
            assert len(source["derivation"]) > 100


def test_equations_become_html():
    assert contents.equation_html("z_{H−1} < p_ij v_j") == (
        "<span>z<sub>H−1</sub> &lt; p<sub>ij</sub> v<sub>j</sub></span>"
    )
    for formula in FORMULAS.values():
        for equation in (formula.forward, formula.backward, formula.symbols):
            assert "_" not in contents.equation_html(equation)


# --- what carries it ---


def decoded(text):
    """What `encode` wrote, read as the page's script reads it."""
    packed = zlib.decompress(base64.b64decode(text))
    (length,) = struct.unpack("<I", packed[:4])
    described = json.loads(packed[4 : 4 + length])
    kinds, start = {}, 4 + length
    for kind, count in described["kinds"]:
        dtype = np.dtype({"half": "<f2", "float32": "<f4"}.get(kind, kind))
        planes = np.frombuffer(packed, np.uint8, count * dtype.itemsize, start)
        raw = np.ascontiguousarray(planes.reshape(dtype.itemsize, count).T)
        kinds[kind] = raw.view(dtype)[:, 0] if count else np.empty(0, dtype)
        start += count * dtype.itemsize
    assert start == len(packed)

    def array(place):
        size = int(np.prod(place["shape"]))
        numbers = kinds[place["dtype"]][place["at"] : place["at"] + size]
        if place["dtype"] == "half":
            scales = kinds["float32"][place["scale"] :][: size // place["length"]]
            numbers = numbers.astype(np.float64) * np.repeat(scales, place["length"])
        return numbers.reshape(place["shape"])

    def revived(value):
        if isinstance(value, list):
            return [revived(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "dtype" in value and "at" in value:
            return array(value)
        return {name: revived(item) for name, item in value.items()}

    return revived(described["data"])


def test_numbers_of_any_size_keep_eleven_bits():
    rng = np.random.default_rng(0)
    for size in (1e-30, 1e-8, 1.0, 3e4, 1e30):
        x = (size * rng.normal(size=(3, 40))).astype(np.float32)
        x[0] = 0
        found = decoded(encode({"x": x}))["x"]
        # Half the last of float16's 11 bits, and float32's in the scale.
        np.testing.assert_allclose(found, x, rtol=2.0**-11 + 2.0**-23)
    for nothing in (0.0, 1e-42, 1e-45):
        assert not decoded(encode([np.full((2, 3), nothing, np.float32)]))[0].any()


def test_arrays_come_back_with_shape_and_kind():
    rng = np.random.default_rng(0)
    data = {
        "ids": np.array([[0, 255], [256, 70_000]]),
        "small": np.arange(5),
        "exact": rng.normal(size=(2, 3)),
        "short rows": rng.normal(size=(2, 4, 3)).astype(np.float32),
        "nested": [{"none": None, "text": "</script><!-- ö"}, (1, np.float32(0.5))],
    }
    found = decoded(encode(data))
    np.testing.assert_array_equal(found["ids"], data["ids"])
    np.testing.assert_array_equal(found["small"], data["small"])
    np.testing.assert_allclose(found["exact"], data["exact"], rtol=2.0**-24)
    np.testing.assert_allclose(found["short rows"], data["short rows"], rtol=2.0**-10)
    assert found["nested"] == [{"none": None, "text": "</script><!-- ö"}, [1, 0.5]]
    with pytest.raises(ValueError, match="negative"):
        encode(np.array([-1]))


def test_equal_numbers_are_written_once():
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    assert len(encode([x, x.reshape(40, 5, 10)])) < 1.1 * len(encode([x]))


# --- the page ---


def data_of(html):
    return decoded(re.search(r'id="data">([^<]*)</script>', html)[1])


def test_the_shipped_models_page(shipped, tmp_path):
    model, tokenizer = shipped
    ids = tokenizer.encode(f"{TEXT}, and I am the king")[:20]
    assert len(ids) == 20
    page = insight.page(model, tokenizer, tokenizer.decode(ids))
    assert len(page.html.encode()) < 3_000_000
    page.save(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html == page.html
    page.save(tmp_path / "page.html")  # an older page may go
    # Whole in itself: nothing is fetched.
    assert not re.search(
        r"(src|href)=[\"'](?!#)|@import|url\(|https?:", html.partition('id="data"')[0]
    )
    assert "default-src 'none'" in html
    data = data_of(html)
    assert data["loss"] == pytest.approx(model.loss(ids, [*ids[1:], data["targets"][-1]]), rel=1e-5)
    assert data["vocabulary"][ids[0]] == tokenizer.decode(ids[:1])
    logits, cache = model.run_with_cache(ids)
    assert int(logits[0, -1].argmax()) == data["targets"][-1]
    np.testing.assert_allclose(
        data["logits"], logits[0] - logits[0].max(axis=1, keepdims=True), rtol=1e-3, atol=1e-4
    )
    for layer in range(6):
        p = cache[f"blocks.{layer}.attn.hook_pattern"][0].swapaxes(0, 1)
        np.testing.assert_allclose(data["patterns"][str(layer)]["p"], p, rtol=1e-3, atol=1e-9)
    parts = insight.direct_logit_attribution(model, ids, int(data["targets"][4]), position=4)
    assert len(data["attribution"]["parts"]) == sum(part.size for part in parts.values())
    total = data["attribution"]["values"][4].sum()
    assert total == pytest.approx(data["attribution"]["logits"][4], rel=1e-3)
    lens = insight.logit_lens(model, ids)
    np.testing.assert_allclose(data["lens"]["kl"], lens.kl[:, 0], rtol=1e-4, atol=1e-5)
    report = insight.per_token(model, ids)
    np.testing.assert_allclose(data["report"]["loss"][:-1], report.loss, rtol=1e-4, atol=1e-6)
    assert set(data["checks"]) >= {"hook_embed", "blocks.0.attn.hook_pattern"}


def test_where_a_page_opens(shipped):
    model, tokenizer = shipped
    king = tokenizer.encode(" king")[0]
    last = insight.page(model, tokenizer, "My lord, the", target=" king")
    assert last.trace.targets[-1] == last.data["target"] == king
    inner = insight.page(model, tokenizer, "My lord, the", token=1, target=" king")
    assert inner.data["token"] == 1
    assert inner.data["target"] == king
    assert inner.trace.targets[1] == tokenizer.encode("My lord, the")[2]
    assert insight.page(model, tokenizer, "My lord", token=-1).data["token"] == 1


def test_one_token_alone(shipped):
    page = insight.page(*shipped, "My")
    assert len(page.trace.ids) == 1
    exps = np.exp(page.trace.logits[0])
    assert page.trace.loss == pytest.approx(-np.log(exps.max() / exps.sum()), rel=1e-4)


def test_long_texts_are_cut_and_it_is_said(shipped):
    text = "My lord, the king. " * 30
    ids, page = shipped[1].encode(text), insight.page(*shipped, text, layers=(0, 1))
    assert page.notes[0] == f"The text has {len(ids)} tokens: the first 64 are explained."
    assert list(page.trace.ids) == ids[:64]
    assert page.trace.targets[-1] == ids[64]


def test_a_target_of_several_tokens_is_its_first(shipped):
    page = insight.page(*shipped, "My lord", target=" kings", layers=(0, 1))
    assert page.notes[:1] == ["The target ' kings' is 2 tokens, ' king' + 's': the first is taken."]


def test_a_special_token_is_a_target(shipped):
    (text, id), *_ = shipped[1].special_tokens.items()
    page = insight.page(*shipped, "My lord", target=text, layers=(0, 1))
    assert page.data["target"] == page.trace.targets[-1] == id


def test_what_was_chosen_is_said(shipped):
    page = insight.page(*shipped, "My lord, the", token=1, target=" king", layers=(2, None))
    chosen = page.data["vocabulary"][page.trace.targets[-1]].replace(" ", "␣")
    assert f"as the next one “{chosen}”, the likeliest, is assumed" in page.notes[1]
    assert page.data["assumed"]
    assert [note.partition(":")[0] for note in page.notes] == [
        "“␣king” after token 1 is looked at in Attribution",
        "The text ends at token 3",
        "Layers 2 to 5 are kept, of 6",
    ]
    assert insight.page(*shipped, "My lord, the", target=" king", layers=(None, 1)).notes == [
        "Layer 0 is kept, of 6: steps and attention of the others are not in the page."
    ]


def test_layers_limit_what_is_kept(shipped):
    page, whole = (insight.page(*shipped, TEXT, layers=layers) for layers in ((2, 4), None))
    assert page.data["layers"] == [2, 3]
    titles = [group["title"] for group in page.data["groups"]]
    assert titles == ["Before the blocks", "Block 2", "Block 3", "After the blocks"]
    assert len(page.html) < 0.5 * len(whole.html)
    np.testing.assert_array_equal(
        page.data["attribution"]["values"], whole.data["attribution"]["values"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ""}, "the text is '': there is no token to explain"),
        ({"token": 2}, "token=2: the text has tokens 0 to 1"),
        ({"token": "x"}, "token='x': the text has tokens 0 to 1"),
        ({"target": ""}, "target='': expected a text with a token in it"),
        ({"layers": (0, 7)}, "layers 0:7: expected A:B with A below B, of the layers 0:6"),
        ({"layers": (2, 2)}, "layers 2:2: expected A:B with A below B, of the layers 0:6"),
    ],
)
def test_bad_input_is_one_line(shipped, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        insight.page(*shipped, **({"text": "My lord"} | options))


def test_bytes_are_shown_as_bytes(shipped):
    vocabulary = insight.page(*shipped, "é日", layers=(0, 1)).data["vocabulary"]
    shown = "".join(vocabulary[id] for id in shipped[1].encode("é日"))
    assert shown.count("<0x") == len("é日".encode())


def test_finite_differences_hold_where_the_loss_bends(shipped):
    for text in ("The capital of France is", TEXT, "aaaaaaaa"):
        page = insight.page(*shipped, text, layers=(0, 1))
        for name, check in page.data["checks"].items():
            assert check.difference == pytest.approx(check.gradient, rel=0.02), name


def test_nothing_to_check():
    model = small_model("default")
    model.parameters.flat[:] = 0
    of = trace.trace(model, IDS, 6, range(2))
    assert differences(of, model.hook_names, 3) == {}


def test_damaged_weights_are_said(tmp_path):
    model = small_model("default")
    model.parameters["wte"][3] = np.nan
    with pytest.raises(ValueError, match="is not finite: the weights of None are damaged"):
        insight.page(model, LETTERS, "to be")


def test_rounding_alone_is_not_checked(shipped):
    """The first query has one key, which has all its attention whatever the scores are."""
    page = insight.page(*shipped, TEXT, token=0, layers=(0, 1))
    assert "blocks.0.attn.hook_q" not in page.data["checks"]
    assert "blocks.0.attn.hook_v" in page.data["checks"]


def test_a_place_that_can_not_be_written(shipped, tmp_path):
    page = insight.page(*shipped, "My lord", layers=(0, 1))
    theirs = {"mine.html": "<p>mine</p>", "notes.txt": "numgpt explain wrote a page"}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    for place, error, message in (
        (tmp_path / "mine.html", FileExistsError, "is there already, and is no page of numgpt"),
        (tmp_path / "notes.txt", FileExistsError, "is no page of numgpt"),
        (tmp_path / "nowhere/page.html", FileNotFoundError, "there is no directory"),
        (tmp_path, IsADirectoryError, "directory"),
        ("", IsADirectoryError, "directory"),
        ("-", FileNotFoundError, "name a file"),
    ):
        with pytest.raises(error, match=message):
            page.save(place)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == theirs


def test_progress_is_told(shipped):
    told = []
    insight.page(*shipped, "My lord, the", layers=(2, 4), progress=told.append)
    assert told[0] == "the pass, forwards and backwards"
    blocks = [what for what in told if what.startswith("the steps of block")]
    assert blocks == ["the steps of block 2, 1 of 2", "the steps of block 3, 2 of 2"]
    checks = [what for what in told if what.startswith("checks of the gradients")]
    assert checks[-1].endswith(f"{len(checks)} of {len(checks)}")
    assert told[-1] == "writing"


def test_the_products_that_reach_a_norm_say_what_is_in_them(traced):
    """Their W is multiplied by the norm's weight."""
    for step, _, table in tables(traced, "product", "backward"):
        if "weight" in table.factors[1]:
            _, _, _, symbols = step.formula.of("backward")
            assert "in its table W · weight is one factor" in symbols


def test_jupyter_shows_it_in_a_frame(shipped):
    page = insight.page(*shipped, 'My <lord> & "king"')
    shown = page._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert shown.count("<") == 2
    assert repr(page).startswith("<Page: ")


def test_a_text_of_markup_stays_text(shipped):
    page = insight.page(*shipped, "</script><b>&amp;")
    head = page.html.partition("<style>")[0]
    assert "&lt;/script&gt;&lt;b&gt;&amp;amp;" in head
    assert "</script><b>" not in page.html


@pytest.mark.parametrize("name", ["llama_grouped", "llama_qwen2", "untied"])
def test_other_families_have_pages(name):
    model = small_model(name)
    page = insight.page(model, LETTERS, "to be", target="q")
    data = data_of(page.html)
    assert f"{type(model).__name__} ({model.config.model_type}) of" in data["model"]
    assert data["vocabulary"][page.trace.targets[-1]] == "q"
    more = CharTokenizer(sorted("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    with pytest.raises(ValueError, match="its token 51 is outside the model's vocabulary of 37"):
        insight.page(model, more, "ABC", target="z")


@pytest.mark.slow
def test_a_page_of_gpt2s_size(gpt2_tokenizer):
    model = numgpt.GPT(numgpt.GPTConfig())
    ids = gpt2_tokenizer.encode("In the beginning a machine began to count the words. " * 3)[:20]
    page = insight.page(model, gpt2_tokenizer, gpt2_tokenizer.decode(ids))
    assert len(page.trace.ids) == 20
    assert len(page.html.encode()) < 25_000_000
