"""Two tasks that cannot both be had by going on: what each method keeps of the first.

The tasks ask the same questions, marked by their first word alone, and want other answers. Nothing
in the second holds the first: all of its rows push the answers of the first down, at weights that
the marked questions share. So plain fine-tuning loses the first task wholly, and what a method does
against it shows in nats.

    kept = 1 - (L_method - L_before) / (L_sequential - L_before)

with L the first task's loss on its test rows: before the second task, and after it.
"""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from marks import at_least
from perdure import methods
from perdure.data.tokens import features
from perdure.models.base import Base
from perdure.seeds import forked
from perdure.train import lifecycle
from perdure.train.arguments import training_arguments
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.trainer import ContinualTrainer
from tiny import WORDS, tiny_model, tiny_tokenizer


pytestmark = pytest.mark.own
SUBJECTS, MARKS = WORDS[:4], ("left", "up", "down")
ANSWERS = {"left": WORDS[10:13], "up": WORDS[4:7], "down": WORDS[7:10]}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
TRAINING = {"per_device_train_batch_size": 8, "num_train_epochs": 8}


def rows(mark: str, n: int = 48, seed: int = 0) -> list[dict]:
    """The answer is a function of the first subject, another one for each mark."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 4, (n, 2), generator=generator).tolist()
    return [
        {
            "prompt": f"{mark} the {SUBJECTS[a]} {SUBJECTS[b]} = answer : ",
            "completion": ANSWERS[mark][a % 3],
        }
        for a, b in drawn
    ]


def tokenized(base: Base, examples: list[dict]) -> list[dict]:
    return features(examples, base.tokenizer, base.kind, 64, 8, base.labels, "rows")[0]


def learn(base: Base, mark: str, stage: int, spec, states, memory) -> ContinualTrainer:
    learned_methods = methods.make(spec)

    def context(m) -> TaskContext:
        return TaskContext(mark, stage, 3 + stage, Memory(memory, 5), states.get(m.name, {}))

    base.model = lifecycle.begin_task(learned_methods, base.model, context)
    with tempfile.TemporaryDirectory() as work:
        rate = 5e-3 if base.whole else 1e-2
        args = training_arguments({**TRAINING, "learning_rate": rate}, Path(work), 7 + stage, 0)
        engine = ContinualTrainer(base, learned_methods, tokenized(base, rows(mark)), args)
        engine.learn()
        lifecycle.end_task(learned_methods, base.model)
    return engine


@functools.cache
def pretrained() -> dict[str, torch.Tensor]:
    """A model that has learned to answer such questions, with answers of its own."""
    base = Base("tiny", "causal", tiny_model("causal"), tiny_tokenizer("causal"))
    learn(base, "left", 1, "sequential", {}, {})
    return base.model.state_dict()


def losses(spec, lora: bool) -> tuple[float, float, float]:
    """The first task's loss before and after the second, and the second's."""
    model = tiny_model("causal")
    model.load_state_dict(pretrained())
    settings = LoraConfig(r=8, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    with forked(0):
        model = get_peft_model(model, settings) if lora else model
    base, states, memory, measured = (
        Base("t", "causal", model, tiny_tokenizer("causal")),
        {},
        {},
        [],
    )
    for stage, mark in enumerate(("up", "down"), 1):
        engine = learn(base, mark, stage, spec, states, memory)
        states = {m.name: m.state_dict() for m in engine.methods}
        memory = {"up": tokenized(base, rows("up", 8, 1))}
        for task in ("up", "down")[:stage]:
            batch = engine.collate(tokenized(base, rows(task, 32, 9)))
            base.model.eval()
            with torch.no_grad():
                measured.append(engine.task_loss(base.model, batch)[0].item())
    return measured[0], measured[1], measured[2]


@functools.cache
def sequential(lora: bool) -> tuple[float, float, float]:
    return losses("sequential", lora)


@pytest.mark.parametrize("lora", [True, False])
def test_plain_fine_tuning_loses_the_first_task(lora):
    before, after, second = sequential(lora)
    assert before < 0.5
    assert after > before + 1.5  # nats
    assert second < 0.5


# One of each kind: they rehearse, penalise, distil, freeze, average, or learn what is drawn.
ALWAYS = ("recurrent_kif", "replay", "ewc", "lwf", "hft", "wise_ft", "dmt")


@pytest.mark.parametrize(
    "name", at_least(ALWAYS, [name for name in methods.names() if name != "sequential"])
)
def test_a_method_keeps_a_share_of_the_first_task_and_learns_the_second(name):
    """What it must reach stands in `Method.keeps`; a failure says what it does reach."""
    method = methods.find(name)
    lora, keeps = method.needs == "lora", method.keeps
    before, after, _ = sequential(lora)
    _, ours, second = losses({name: keeps.keywords}, lora)
    share = 1 - (ours - before) / (after - before)
    reached = f"{name} reaches share={share:.3f}, second_loss={second:.3f}"
    assert share >= keeps.share, reached
    assert second <= keeps.second_loss, reached
