"""Activations, their gradients and the effect of replacing them, against TransformerLens."""

import numpy as np
import pytest
from models.references import batch, small_model, to_transformers
from models.test_hooks import keeper
from support import assert_close

pytestmark = pytest.mark.live("torch", "transformers", "transformer_lens")
FAMILIES = ["default", "untied", "llama_grouped", "llama_qwen2", "llama_qwen3"]


def boot(name, directory):
    """A random model, and TransformerLens's bridge around the same one from a directory."""
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    model = small_model(name)
    to_transformers(model).save_pretrained(directory)
    vocabulary = {str(id): id for id in range(model.config.vocab_size)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")),
        **dict.fromkeys(("eos_token", "bos_token", "pad_token"), "1"),
    ).save_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    bridge = TransformerBridge.boot_transformers(
        str(directory), hf_model=theirs, tokenizer=tokenizer
    )
    return model, bridge


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    return boot(request.param, tmp_path_factory.mktemp(request.param))


def test_activations_and_their_gradients(both):
    import torch

    model, bridge = both
    ids, targets = batch(model.config, (2, 7))
    logits, activations = model.run_with_cache(ids)
    gradients = {}
    hooks = {name: keeper(gradients, name) for name in model.hook_names}
    model.loss_and_grads(ids, targets, backward_hooks=hooks)
    theirs = {}

    def their_keeper(name):
        def keep(tensor, hook):
            # Of some the bridge shows a view that leads nowhere: so it goes on with this one. (Its
            # hook_resid_mid is the norm's input alone, but the same tensor as the stream.)
            tensor = tensor if name.endswith("hook_resid_mid") else tensor.clone()
            tensor.retain_grad()
            theirs[name] = tensor
            return tensor

        return keep

    bridge.reset_hooks()
    their_logits = bridge.run_with_hooks(
        torch.tensor(ids), fwd_hooks=[(name, their_keeper(name)) for name in model.hook_names]
    )
    assert_close(logits, their_logits.detach().numpy())
    torch.nn.functional.cross_entropy(
        their_logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=-100
    ).backward()
    for name in model.hook_names:
        assert_close(activations[name], theirs[name].detach().numpy(), name)
        assert_close(gradients[name], theirs[name].grad.numpy(), name)


def test_replacements(both):
    import torch

    model, bridge = both
    ids, _ = batch(model.config, (2, 7))
    # The bridge's hook_resid_mid is the norm's input alone: what goes past it is not replaced.
    for name in [name for name in model.hook_names if not name.endswith("hook_resid_mid")]:
        bridge.reset_hooks()
        with torch.no_grad():
            expected = bridge.run_with_hooks(
                torch.tensor(ids), fwd_hooks=[(name, lambda tensor, hook: 0.5 * tensor)]
            )
        logits = model.run_with_hooks(ids, {name: lambda x: np.float32(0.5) * x})
        assert_close(logits, expected.numpy(), name)
