"""The page in a real browser: every view, by mouse and by keyboard, and its numbers against
NumPy's."""

import re

import numpy as np
import pytest
from models.references import small_model

import numgpt
from numgpt import insight
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import process_logits
from numgpt.layers import softmax_forward
from numgpt.tokenizer import CharTokenizer

pytestmark = pytest.mark.browser
TEXT = "ROMEO:\nMy lord, the king, my lord, the sweet queen"
VIEWS = ["follow", "attention", "lens", "attribution", "loss", "sampling"]
HALF = 2.0**-11  # of a number that was written as float16


@pytest.fixture(scope="module")
def page():
    return insight.page(*numgpt.load("shakespeare"), TEXT, target=" king")


@pytest.fixture
def open_page(browser, page, tmp_path):
    """Opens the page, or another; at the end there must have been no error, and no request."""
    complaints, requests, opened, file = [], [], [], tmp_path / "page.html"

    def opening(width=1280, height=900, shown=page, **options):
        shown.save(file)
        tab = browser.new_page(viewport={"width": width, "height": height}, **options)
        tab.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        opened.append(tab)
        tab.goto(file.as_uri())
        tab.wait_for_selector("html[data-ready=true]")
        return tab

    yield opening
    for tab in opened:
        tab.close()
    assert complaints == []
    assert set(requests) == {file.as_uri()}


def number_of(text):
    return float(text.replace("−", "-").replace("∞", "inf"))


def assert_shown(text, expected, digits):
    """The text is the number, to its digits and to what float16 keeps of it."""
    shown = number_of(text)
    if expected == 0 or shown == 0:
        assert abs(shown - expected) < 1e-12, (text, expected)
        return
    last = 10.0 ** (np.floor(np.log10(abs(expected))) - digits + 1)
    limit = 0.5 * last + (HALF if digits == 3 else 1e-6) * abs(expected)
    assert abs(shown - expected) <= 1.001 * limit, (text, expected)


def choose(tab, direction, token, layer, head):
    tab.click("#tab-follow")
    tab.click(f"#tokens button >> nth={token}")
    tab.click(f"input[value={direction}]")
    tab.select_option("#layer", str(layer))
    tab.select_option("#head", str(head))


# --- every view ---


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_opens_and_fits(open_page, width, scheme):
    tab = open_page(width, color_scheme=scheme)
    for view in VIEWS:
        tab.click(f"#tab-{view}")
        directions = ["forward", "backward"] if view in ("follow", "attention") else [None]
        for direction in directions:
            if direction:
                tab.click(f"input[value={direction}]")
            assert tab.locator("main h2").count() >= 1
            assert len(tab.inner_text("main")) > 200
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.click("#tokens button >> nth=2")
        assert "Token 2 (of 0 to" in tab.inner_text("#chosen")


def test_the_words_are_explained(open_page):
    """… where they come first, and one colour of a token means one thing."""
    tab = open_page()
    words = tab.inner_text("#words")
    for word in ("tokens", "stream", "block", "head", "logit", "loss", "backward"):
        assert word in words.lower()
    assert tab.locator("#words b").count() >= 7
    steps = tab.locator(".step .words")
    assert steps.count() == tab.locator(".step[data-step]").count()
    assert "its own token and those before it" in tab.inner_text("[data-step=scores]")
    assert "zero is in the middle of the bar" in tab.inner_text(".legend")
    tab.click("input[value=backward]")
    assert "zero is in the middle of the bar" in tab.inner_text(".legend")
    # The losses of the chosen token and of the one after it are told apart.
    own = tab.get_attribute("#tokens button >> nth=3", "aria-label").split("loss ")[1]
    tab.click("#tokens button >> nth=3")
    assert f"Its loss was {own}. After it comes" in tab.inner_text("#chosen")
    tab.click("#tokens button >> nth=0")
    assert "Its loss was" not in tab.inner_text("#chosen")
    tab.click("#tab-attribution")
    assert "final LayerNorm" in tab.inner_text("main")


def test_the_blocks_stay_named_beside_the_lens(open_page):
    tab = open_page(400)
    tab.click("#tab-lens")
    tab.evaluate("document.querySelector('.lens').parentElement.scrollLeft = 10000")
    head = tab.locator(".lens th[scope=row] >> nth=0")
    assert head.bounding_box()["x"] >= 0
    assert head.inner_text() == "block 5"


def test_attribution_speaks_of_the_models_own_norm(open_page):
    tokenizer = CharTokenizer([chr(ord("a") + n) for n in range(26)])
    tab = open_page(shown=insight.page(small_model("llama_grouped"), tokenizer, "abcab"))
    tab.click("#tab-attribution")
    text = tab.inner_text("main")
    assert "final RMSNorm" in text
    assert "LayerNorm" not in text
    assert "mean(" not in text


def test_everything_that_opens_opens(open_page):
    tab = open_page()
    for direction in ("forward", "backward"):
        tab.click(f"input[value={direction}]")
        tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        tab.wait_for_selector("main pre >> nth=10", state="attached")
        tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        text = tab.inner_text("main")
        assert "def layernorm_" in text
        assert "Layer normalisation (Ba, Kiros & Hinton 2016" in text
        for button in tab.query_selector_all(".choices button"):
            button.click()
    for layer in range(6):
        tab.select_option("#layer", str(layer))
        assert f"Block {layer}" in tab.inner_text("main")


def test_code_that_was_opened_stays_open(open_page):
    tab = open_page()
    tab.click("[data-step=norm_1] summary")
    tab.wait_for_selector("[data-step=norm_1] pre")
    assert "def layernorm_forward" in tab.inner_text("[data-step=norm_1]")
    tab.select_option("#layer", "3")
    assert "def layernorm_forward" in tab.inner_text("[data-step=norm_1]")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_step_leads_to_its_lesson(open_page, direction):
    tab = open_page()
    tab.click(f"input[value={direction}]")
    step = tab.locator("article[data-step=scores]").first
    link = step.locator(".lesson a")
    assert link.inner_text() == "lesson 5"
    assert link.get_attribute("href") == "lessons/05_attention.ipynb"


def test_every_layer_and_head_has_a_thumbnail(open_page, page):
    tab = open_page()
    tab.click("#tab-attention")
    assert tab.locator(".thumbnails button").count() == 36
    tab.click("[aria-label='Layer 3, head 4']")
    assert "Layer 3, head 4" in tab.inner_text("main h3")
    canvas = tab.locator(".map canvas")
    box = canvas.bounding_box()
    time = len(page.trace.ids)
    query, key = 9, 5
    x, y = (key + 0.5) / time * box["width"], (query + 0.5) / time * box["height"]
    canvas.hover(position={"x": x, "y": y})
    tip = tab.inner_text("#tip")
    p = page.trace.activations["blocks.3.attn.hook_pattern"][4, query, key]
    assert tip.startswith(f"query {query} ")
    assert_shown(tip.rpartition(" = ")[2], p, 3)
    # Without a mouse:
    canvas.click(position={"x": x, "y": y})
    tab.keyboard.press("ArrowLeft")
    readout = tab.inner_text(".readout-line .readout")
    p = page.trace.activations["blocks.3.attn.hook_pattern"][4, query, key - 1]
    assert_shown(readout.rpartition(" = ")[2], p, 3)
    tab.click("input[value=backward]")
    tab.locator(".map canvas").click(position={"x": x, "y": y})
    dp = page.trace.gradients["blocks.3.attn.hook_pattern"][4, query, key]
    assert_shown(tab.inner_text(".readout-line .readout").rpartition(" = ")[2], dp, 3)


def test_the_keyboard_alone(open_page):
    tab = open_page()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Tab")
    assert "vocabulary" in tab.inner_text("#words")
    tab.keyboard.press("Enter")  # the introduction can be folded away
    assert "vocabulary" not in tab.inner_text("#words")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    tab.keyboard.press("Home")
    assert "Token 0 (" in tab.inner_text("#chosen")
    tab.keyboard.press("ArrowRight")
    assert "Token 1 (" in tab.inner_text("#chosen")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "tab-follow"
    for view in [*VIEWS[1:], VIEWS[0]]:
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.id") == f"tab-{view}"
        assert tab.get_attribute(f"#tab-{view}", "aria-selected") == "true"
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")  # the radio button of the direction
    assert "∂loss/∂" in tab.inner_text("main")
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    assert "Token 2 (" in tab.inner_text("#chosen")
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    assert "Block 1" in tab.inner_text("main")
    # A vector is read with the arrows.
    tab.locator("canvas.heat").first.focus()
    tab.keyboard.press("ArrowRight")
    assert re.search(r"\[\d+\] = ", tab.inner_text(".readout >> nth=0"))
    tab.click("#tab-lens")
    tab.locator(".lens button[tabindex='0']").focus()
    tab.keyboard.press("ArrowDown")
    assert "After block 4" in tab.inner_text("main")
    tab.click("#tab-attention")
    tab.locator("[data-key='2/3']").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.dataset.key") == "2/3"
    assert "Layer 2, head 3" in tab.inner_text("main")


def test_pictures_have_texts(open_page):
    tab = open_page()
    for view in VIEWS:
        tab.click(f"#tab-{view}")
        bare = tab.evaluate(
            """[...document.querySelectorAll("main canvas")].filter(
                 (c) => !(c.closest("button") || c).getAttribute("aria-label")).length"""
        )
        assert bare == 0
        nameless = tab.evaluate(
            """[...document.querySelectorAll("button, select, input")].filter(
                 (c) => !(c.textContent.trim() || c.getAttribute("aria-label") || c.closest("label")
                          || (c.id && document.querySelector(`label[for="${c.id}"]`)))).length"""
        )
        assert nameless == 0


def test_it_prints(open_page):
    tab = open_page(color_scheme="dark")
    tab.emulate_media(media="print")
    style = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(style) == "rgb(255, 255, 255)"
    assert not tab.locator("#controls").is_visible()
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2


# --- the numbers ---


def rows_of(tab, step, table):
    """Of a step's table, the cells of its rows."""
    selector = f"[data-step={step}] table >> nth={table}"
    return tab.locator(selector).evaluate(
        "(t) => [...t.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


ELEMENTWISE = {
    "forward": {
        "stream_1": "hook_resid_mid",
        "stream_2": "hook_resid_post",
        "activation": "mlp.hook_post",
    },
    "backward": {
        "stream_1": "hook_resid_mid",
        "norm_1": "hook_resid_pre",
        "norm_2": "hook_resid_mid",
        "activation": "mlp.hook_pre",
    },
}


def kept(page, direction):
    return page.trace.activations if direction == "forward" else page.trace.gradients


def chosen(tab, page, direction, seed):
    """Four times, a token, layer and head that the page then shows."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        place = tuple(int(rng.integers(n)) for n in (len(page.trace.ids), 6, 6))
        choose(tab, direction, *place)
        yield place


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_elementwise_numbers_are_numpys(open_page, page, direction):
    tab, arrays = open_page(), kept(page, direction)
    for token, layer, _ in chosen(tab, page, direction, seed=0):
        for step, hook in ELEMENTWISE[direction].items():
            for feature, *_, result in rows_of(tab, step, 0):
                expected = arrays[f"blocks.{layer}.{hook}"][token, int(feature)]
                assert_shown(result, expected, 4)


SUMS = {
    "forward": {"qkv": ["attn.hook_q", "attn.hook_k", "attn.hook_v"], "values": ["attn.hook_z"]},
    "backward": {"scores": ["attn.hook_q", "attn.hook_k"], "output": ["attn.hook_z"]},
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_terms_add_up_to_numpys_numbers(open_page, page, direction):
    tab, arrays = open_page(), kept(page, direction)
    for token, layer, head in chosen(tab, page, direction, seed=1):
        for step, hooks in SUMS[direction].items():
            for place, hook in enumerate(hooks):
                *terms, result = rows_of(tab, step, place)
                feature = int(re.search(r"feature (\d+)", result[0])[1])
                expected = arrays[f"blocks.{layer}.{hook}"][token, head, feature]
                assert_shown(result[-1], expected, 3)
                total = sum(number_of(row[-1]) for row in terms)
                size = sum(abs(number_of(row[-1])) for row in terms)
                assert abs(total - expected) <= 0.006 * size  # three digits each
                for _, x, w, term in terms[:8]:
                    if x and step != "scores":  # where the factor is 1
                        product = number_of(x) * number_of(w)
                        assert number_of(term) == pytest.approx(product, rel=0.02)


def test_weights_are_the_models(open_page, page):
    tab = open_page()
    model = page.trace.model
    choose(tab, "forward", 7, 2, 3)
    matrix = model.blocks[2].attention.qkv.matrix()
    *terms, result = rows_of(tab, "qkv", 0)
    column = 3 * model.config.head_size + int(re.search(r"feature (\d+)", result[0])[1])
    y, _ = model.blocks[2].norm_1.forward(page.trace.activations["blocks.2.hook_resid_pre"])
    checked = 0
    for name, x, w, _ in terms:
        if match := re.fullmatch(r"y\[(\d+)\]", name):
            assert_shown(w, matrix[int(match[1]), column], 3)
            assert_shown(x, y[7, int(match[1])], 3)
            checked += 1
    assert checked == 8


def test_strips_hold_whole_vectors(open_page, page):
    tab = open_page()
    found = tab.evaluate(
        """() => numgpt.data.groups.flatMap((group) => group.steps.flatMap((step) =>
             ["forward", "backward"].flatMap((direction) => step[direction].strips.map((strip) =>
               [step.hook, step.name, direction, strip.label, [...strip.array.row(5)]]))))"""
    )
    hooks = {("qkv", "q"): "attn.hook_q", ("qkv", "dk"): "attn.hook_k"}
    hooks |= {("values", "dz"): "attn.hook_z", ("output", "dz"): "attn.hook_z"}
    hooks[("output", "out")] = "hook_attn_out"
    checked = 0
    for hook, step, direction, label, numbers in found:
        if (step, label) not in hooks:
            continue
        prefix = re.match(r"blocks\.\d+\.", hook)[0]
        expected = kept(page, direction)[prefix + hooks[step, label]][5].ravel()
        np.testing.assert_allclose(
            numbers, expected, rtol=2.0**-10, atol=1e-9 * np.abs(expected).max()
        )
        checked += 1
    assert checked == 6 * 5


def test_the_finite_difference_is_shown_beside_the_gradient(open_page, page):
    tab = open_page()
    tab.click("input[value=backward]")
    checks = page.data["checks"]
    shown = tab.locator(".check")
    assert shown.count() >= 12
    text = tab.inner_text("[data-step=mlp_output] .check")
    check = checks["blocks.0.mlp.hook_post"]
    assert f"Checked at token {check.place[0]}, feature {check.place[1]}: where post moves" in text
    found = re.search(r"slope of (\S+); by the backward pass it is (\S+) \(", text)
    difference, gradient = found.groups()
    assert_shown(difference, check.difference, 4)
    assert_shown(gradient, check.gradient, 4)
    assert check.difference == pytest.approx(check.gradient, rel=0.01)
    tab.click("#tokens button >> nth=1")  # it is made at one token
    assert shown.count() == 0


def test_lens_loss_and_attribution_are_numpys(open_page, page):
    tab = open_page()
    model, ids = page.trace.model, page.trace.ids
    vocabulary = page.data["vocabulary"]

    def visible(id):
        return vocabulary[id].replace(" ", "␣").replace("\n", "↵")

    tab.click("#tab-lens")
    lens = insight.logit_lens(model, ids)
    cells = tab.locator(".lens tbody tr").evaluate_all(
        """(rows) => rows.map((row) =>
             [...row.querySelectorAll('button')].map((cell) => cell.textContent))"""
    )
    expected = lens.log_probs[:, 0].argmax(axis=-1)[::-1]
    assert cells == [[visible(id) for id in row] for row in expected]
    tab.click("#tab-loss")
    report = insight.per_token(model, ids)
    table = tab.locator("main table tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    for t, row in enumerate(table[:-1]):
        assert row[1] == visible(ids[t + 1])
        assert_shown(row[2], report.loss[t], 4)
        assert int(row[4]) == report.rank[t] + 1
        assert_shown(row[5], report.entropy[t], 4)
    tab.click("#tab-attribution")
    target = page.data["target"]
    assert visible(target) in tab.inner_text("main h2")
    parts = insight.direct_logit_attribution(model, ids, target)
    names = tab.locator(".bars .piece").all_inner_texts()
    numbers = tab.locator(".bars .number").all_inner_texts()
    heads = {f"layer {i}, head {j}": parts["heads"][i, j] for i, j in np.ndindex(6, 6)}
    heads |= {f"layer {i}, feed-forward": parts["mlps"][i] for i in range(6)}
    seen = [name for name in names if name in heads]
    assert len(seen) > 6
    for name, text in zip(names, numbers, strict=True):
        if name in heads:
            assert_shown(text, heads[name], 3)


# --- sampling ---


@pytest.mark.parametrize("seed", range(6))
def test_the_sliders_do_what_generation_does(open_page, page, seed):
    """The script's processors against those of generate, on the logits that the page carries."""
    tab = open_page()
    rng = np.random.default_rng(seed)
    token = int(rng.integers(len(page.trace.ids)))
    temperature = float(rng.choice([0.05, 0.7, 1.0, 1.5, 2.0]))
    top_k, top_p = int(rng.choice([0, 1, 5, 50, 200])), float(rng.choice([0.05, 0.5, 0.9, 1.0]))
    settings = {"temperature": temperature, "topK": top_k, "topP": top_p}
    logits, found = tab.evaluate(
        """([token, settings]) => {
             const logits = [...numgpt.data.logits.row(token)];
             return [logits, [...numgpt.softmax(numgpt.processed(logits, settings))]];
           }""",
        [token, settings],
    )
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p, do_sample=True)
    processed = process_logits(np.array([logits]), page.trace.ids[None], options)
    np.testing.assert_allclose(found, softmax_forward(processed)[0][0], rtol=1e-9, atol=1e-15)


def test_ties_at_the_last_of_the_top_k_stay(open_page):
    tab = open_page()
    kept = "(z, s) => [...numgpt.processed(z, s)].map(Number.isFinite)"
    logits = [1.0, 3.0, 2.0, 2.0, 0.0]
    assert tab.evaluate(f"() => ({kept})({logits}, {{temperature: 1, topK: 2, topP: 1}})") == [
        *(False, True, True, True, False)
    ]


def test_the_sliders_change_what_is_shown(open_page, page):
    tab = open_page()
    tab.click("#tab-sampling")
    assert f"{page.trace.logits.shape[1]} of" in tab.inner_text("main")
    tab.focus("#top-k")
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    assert "5 of 1024 tokens can be drawn" in tab.inner_text("main")
    tab.focus("#temperature")
    before = tab.locator(".bars .number").all_inner_texts()
    for _ in range(10):
        tab.keyboard.press("ArrowLeft")
    after = tab.locator(".bars .number").all_inner_texts()
    assert tab.inner_text("output[for=temperature]") == "0.50"
    z = page.trace.logits[-1].astype(np.float64)
    best = np.argsort(-z)[:5]
    p = softmax_forward(z[best] / 0.5)[0]
    assert after[0] == f"{100 * p[0]:.1f}%"
    assert after != before


def test_a_text_of_markup_is_shown_as_text(open_page):
    text = "</script><img src=x onerror=alert(1)><b>"
    tab = open_page(shown=insight.page(*numgpt.load("shakespeare"), text))
    for view in VIEWS:
        tab.click(f"#tab-{view}")
        assert tab.locator("main img, main b:not(.check b), header img").count() == 0
    assert tab.title().startswith("shakespeare: </script><img")
