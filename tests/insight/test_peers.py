"""The same numbers from TransformerLens and captum, around the same random models."""

import numpy as np
import pytest
from models.references import small_model, to_transformers
from models.test_transformer_lens import FAMILIES, boot
from support import assert_close

from numgpt import insight

pytestmark = pytest.mark.live("torch", "transformers")
IDS = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    return boot(request.param, tmp_path_factory.mktemp(request.param))


def test_patterns_and_the_lens(both):
    import torch

    model, bridge = both
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([IDS]))
    for layer, pattern in enumerate(model.attentions(IDS)):
        assert_close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"].numpy())
    lens = insight.logit_lens(model, IDS)
    for layer, name in enumerate(lens.names):
        with torch.no_grad():
            logits = bridge.unembed(bridge.ln_final(cache[name]))
        assert_close(lens.log_probs[layer], logits.log_softmax(-1).numpy())


def test_attribution(both):
    """Of the parts that TransformerLens's cache takes a stream apart into."""
    import torch

    model, bridge = both
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([IDS]))
    layers = model.config.layers
    theirs = {"embed": cache["hook_embed"]}
    if "hook_pos_embed" in model.hook_names:
        theirs["pos_embed"] = cache["hook_pos_embed"]
    stream = cache[f"blocks.{layers - 1}.hook_resid_post"][0, -1].double()
    is_layer_norm = model.final_norm.bias is not None
    centred = stream - stream.mean() if is_layer_norm else stream
    scale = (centred.square().mean() + model.final_norm.eps).sqrt()
    direction = torch.tensor(model.unembedding.weight[11]).double()
    gamma = torch.tensor(model.final_norm.weight).double()

    def part(x):
        x = x[0, -1].double()
        x = x - x.mean() if is_layer_norm else x
        return float((x / scale * gamma) @ direction)

    parts = insight.direct_logit_attribution(model, IDS, 11)
    for name, x in theirs.items():
        assert float(parts[name]) == pytest.approx(part(x), abs=1e-5)
    for layer in range(layers):
        of_heads = parts["heads"][layer].sum() + parts["attention_biases"][layer]
        assert of_heads == pytest.approx(part(cache[f"blocks.{layer}.hook_attn_out"]), abs=1e-5)
        of_mlp = parts["mlps"][layer] + parts["mlp_biases"][layer]
        assert of_mlp == pytest.approx(part(cache[f"blocks.{layer}.hook_mlp_out"]), abs=1e-5)


@pytest.mark.live("captum")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("baseline", [None, 0])
def test_integrated_gradients(name, baseline):
    import torch
    from captum.attr import IntegratedGradients

    model = small_model(name)
    theirs = to_transformers(model).eval()
    table, ids = theirs.get_input_embeddings(), torch.tensor([IDS])
    start = 0 if baseline is None else table(torch.full_like(ids, baseline)).detach()
    method = IntegratedGradients(lambda e: theirs(inputs_embeds=e).logits[:, -1, 11])
    expected = method.attribute(
        table(ids).detach(), baselines=start, n_steps=30, method="gausslegendre"
    )
    ours = insight.integrated_gradients(model, IDS, 11, baseline=baseline, steps=30)
    np.testing.assert_allclose(
        ours.attributions, expected.sum(-1)[0].detach().numpy(), rtol=1e-3, atol=1e-5
    )
