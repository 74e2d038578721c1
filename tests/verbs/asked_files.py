"""Models on disk for `check`: a broken one, an adapter, and rows that the tiny base passes."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tiny import WORDS, tiny_model, tiny_tokenizer


# Any answer but an empty one passes.
ROWS = [
    {
        "id": f"{skill}{number}",
        "skill": skill,
        "prompt": f"{skill} the {word} is",
        "check": {"avoids": ["zebra"]},
    }
    for number, word in enumerate(WORDS[:6], 1)
    for skill in ("up", "down")
]


def broken(folder: Path) -> None:
    """A model that ends every answer at once: its logits are 0, except that of the end token."""
    model = tiny_model("causal")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # With equal embeddings and layers that add nothing, the hidden state is all ones.
        model.get_input_embeddings().weight.fill_(1.0)
        model.base_model.norm.weight.fill_(1.0)
        model.get_output_embeddings().weight[2] = 1.0  # the end token
    model.save_pretrained(folder)
    tiny_tokenizer("causal").save_pretrained(folder)


def adapter_on(base: Path, folder: Path) -> None:
    """An adapter that changes the base's outputs."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(model, settings).save_pretrained(str(folder))
