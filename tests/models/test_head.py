"""The head computes logits only where they predict a label, and they are those of the whole."""

import pytest
import torch
from transformers import PreTrainedModel

from perdure.models.base import load_base
from perdure.models.decoder import decoder_inputs
from perdure.models.head import predicting, run_with_logits_at
from tiny import tiny_model
from train.engine import tiny_base, tokenized
from zoo import ARCHITECTURES, make


LABELS = torch.tensor([[-100, -100, 5, 6, -100], [-100, 7, 8, 9, 2], [-100] * 4 + [2]])
# An xlstm of this size does not run, and is refused as a base.
GENERATIVE = [n for n, (kind, _) in ARCHITECTURES.items() if kind != "encoder" and n != "xlstm"]
# A decoder, two whose logits are scaled or cut off after the head, an n-gram decoder, T5 and BART.
ALWAYS = ("llama", "gemma2", "cohere", "prophetnet", "t5", "bart")


def inputs_of(model: PreTrainedModel, kind: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 5, 6, 0], [5, 7, 8, 9, 2], [8, 8, 4, 7, 2]])
    inputs = {"input_ids": ids, "attention_mask": ids.ne(0).long()}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = decoder_inputs(model, LABELS)
    return inputs


def computed(model) -> list[tuple[int, ...]]:
    """The shapes of what the head will compute."""
    shapes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    return shapes


def test_a_causal_model_predicts_the_label_after_a_position():
    where = predicting(LABELS, "causal")
    expected = [[0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert where.int().tolist() == expected
    assert torch.equal(predicting(LABELS, "seq2seq"), LABELS != -100)
    assert predicting(torch.tensor([3, -100]), "encoder").tolist() == [True, False]


@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.slow) for n in GENERATIVE],
)
def test_they_are_those_of_all_logits_in_every_architecture(name, tmp_path):
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    model, kind = base.model.eval(), base.kind
    inputs = inputs_of(model, kind)
    where = predicting(LABELS, kind)
    shapes = computed(model)
    with torch.no_grad():
        whole = model(**inputs).logits
        ours = run_with_logits_at(model, model, where, **inputs).logits
    torch.testing.assert_close(ours, whole[where], rtol=1e-4, atol=1e-5)
    full, selected = shapes
    assert selected == (1, int(where.sum()), full[-1]) or name == "prophetnet"
    with torch.no_grad():  # no hook is left
        assert torch.equal(model(**inputs).logits, whole)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_gradient_is_that_of_all_logits(kind):
    model = tiny_model(kind).eval()
    inputs, where = inputs_of(model, kind), predicting(LABELS, kind)
    wanted = torch.randn(int(where.sum()), model.config.vocab_size)
    (model(**inputs).logits[where] * wanted).sum().backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    (run_with_logits_at(model, model, where, **inputs).logits * wanted).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", [torch.ones(1, 5), torch.eye(5)[2:3], torch.zeros(1, 5)])
def test_one_row_with_all_one_or_no_positions(where):
    model = tiny_model("causal").eval()
    inputs = {name: tensor[:1] for name, tensor in inputs_of(model, "causal").items()}
    ours = run_with_logits_at(model, model, where.bool(), **inputs).logits
    torch.testing.assert_close(ours, model(**inputs).logits[where.bool()])


def test_a_compiled_model_computes_all():
    model = tiny_model("causal").eval()
    inputs, where = inputs_of(model, "causal"), predicting(LABELS, "causal")
    shapes = computed(model)
    compiled = torch.compile(model, backend="eager")
    ours = run_with_logits_at(compiled, model, where, **inputs).logits
    torch.testing.assert_close(ours, model(**inputs).logits[where])
    assert shapes == [(3, 5, model.config.vocab_size)] * 2


def test_an_adapter_on_the_head_is_in_the_logits():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("causal"), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    inputs, where = inputs_of(model, "causal"), predicting(LABELS, "causal")
    ours = run_with_logits_at(model, model, where, **inputs).logits
    torch.testing.assert_close(ours, model(**inputs).logits[where], rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        plain = model(**inputs).logits[where]
    assert not torch.allclose(ours, plain)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_engine_computes_no_more(kind, tmp_path):
    from train.engine import engine

    base = tiny_base(kind)
    trainer = engine(base, ["lwf", "ewc", "replay"], tmp_path)
    shapes = computed(base.model)
    trainer.learn()
    rows = tokenized(base, "colour", 8)
    most = max(sum(label != -100 for label in row["labels"]) for row in rows) * len(rows)
    assert shapes
    assert all(rows == 1 and positions <= most for rows, positions, _ in shapes)


@pytest.mark.parametrize("name", ["mbart", "plbart", "bart", "t5"])
def test_a_decoder_learns_to_begin_with_the_token_with_which_generation_begins(name, tmp_path):
    """Translation models begin with a language, which is not what their labels end with."""
    model = load_base(str(make(name, tmp_path)), None, 0).model
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = 4
    inputs = decoder_inputs(model, LABELS)
    assert inputs[:, 0].tolist() == [4, 4, 4]
    assert inputs[1, 1:].tolist()[1:] == [7, 8, 9]
