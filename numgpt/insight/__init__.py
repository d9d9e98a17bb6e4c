"""WHAT HAPPENS INSIDE. Lens, attribution, patching, saliency, and the page that shows a pass whole:
plain functions on a model's activations, which its own code computes and its hooks show."""

from numgpt.lazy import lazy_names

_MODULES = {
    "LogitLens": "lens",
    "logit_lens": "lens",
    "direct_logit_attribution": "attribution",
    "head_outputs": "attribution",
    "HeadScores": "heads",
    "attention_head_scores": "heads",
    "repeated_tokens": "heads",
    "ablation": "patching",
    "ablation_hooks": "patching",
    "activation_patching": "patching",
    "attribution_patching": "patching",
    "IntegratedGradients": "gradients",
    "input_x_gradient": "gradients",
    "integrated_gradients": "gradients",
    "saliency": "gradients",
    "Page": "document",
    "page": "document",
    "TokenReport": "tokens",
    "loss_gradients": "tokens",
    "per_token": "tokens",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
