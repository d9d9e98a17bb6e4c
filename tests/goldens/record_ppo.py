"""Records ppo.npz: what trl 1.12, the last version with PPO, computes in its own training loop.

    pip install trl==1.12.0 torch transformers datasets && python tests/goldens/record_ppo.py

A policy, a reference, a value model and a reward model of random weights; completions of uneven
lengths that are given to trl in place of sampled ones; two epochs, so that ratios are not 1. What
its loop has at each backward is taken from its frame, with the derivative of its loss by the
log-probabilities and the values.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZE, LENGTH, NEW, COUNT = 40, 4, 6, 4
LENGTHS = (6, 3, 5, 2)  # of completions, the end of the text among them
END, PAD = 1, 0


def main() -> None:
    import torch
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.manual_seed(0)
    text = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{n}": n for n in range(SIZE)}, "w2")),
        pad_token="w0",
        eos_token="w1",
        padding_side="left",
    )
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": SIZE}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(
        **sizes, **quiet, eos_token_id=END, pad_token_id=PAD, initializer_range=0.5, num_labels=1
    )
    policy, reference = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    judge, critic = (transformers.GPT2ForSequenceClassification(config) for _ in range(2))
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, SIZE, (COUNT, LENGTH))
    completions = rng.integers(2, SIZE, (COUNT, NEW))
    for row, length in zip(completions, LENGTHS, strict=True):
        row[length - 1 :] = [END] + [PAD] * (NEW - length)

    def given(model, queries, *_):
        order = [prompts.tolist().index(query) for query in queries.tolist()]
        whole = torch.cat([queries, torch.tensor(completions[order])], 1)
        with torch.no_grad():
            logits = ppo_trainer.forward(model, whole, PAD).logits[:, LENGTH - 1 : -1]
        return whole, logits / (0.7 + 1e-7)

    ppo_trainer.batch_generation = given
    recorded: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as directory:
        options = PPOConfig(
            output_dir=directory, per_device_train_batch_size=COUNT, num_ppo_epochs=2,
            gradient_accumulation_steps=1, num_mini_batches=1, total_episodes=COUNT,
            response_length=NEW, stop_token="eos", temperature=0.7, learning_rate=0.02,
            kl_coef=0.2, gamma=0.9, lam=0.8, vf_coef=0.1, cliprange=0.2, cliprange_value=0.1,
            missing_eos_penalty=None, num_sample_generations=0, report_to=[], use_cpu=True,
            bf16=False, gradient_checkpointing=False, save_strategy="no",
        )  # fmt: skip
        trainer = PPOTrainer(
            args=options,
            processing_class=text,
            model=policy,
            ref_model=reference,
            reward_model=judge,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": prompts.tolist()}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts.tolist()}),
        )
        backward, epochs = trainer.accelerator.backward, iter(range(2))

        def watched(loss):
            there, epoch = sys._getframe(1).f_locals, next(epochs)
            order = there["micro_batch_inds"]
            by = torch.autograd.grad(
                loss, [there["new_logprobs"], there["vpred"]], retain_graph=True
            )
            kept = {name: there[name] for name in OF_ROLLOUT} if epoch == 0 else {}
            kept |= {name: there[name] for name in OF_EPOCH}
            kept |= {"order": torch.tensor(order), "dlogps": by[0], "dvalues": by[1]}
            for name, value in kept.items():
                recorded[f"{epoch}/{name}"] = value.detach().numpy()
            backward(loss)

        trainer.accelerator.backward = watched
        trainer.train()
    np.savez_compressed(HERE / "ppo.npz", **recorded)


OF_ROLLOUT = ("logprobs", "ref_logprobs", "values", "scores", "rewards", "advantages", "returns")
OF_ROLLOUT += ("padding_mask", "padding_mask_p1")
OF_EPOCH = ("new_logprobs", "vpred", "pg_loss", "vf_loss", "loss")

if __name__ == "__main__":
    main()
