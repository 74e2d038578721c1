"""What cannot work together is told in one line, before anything is written or trained."""

import pytest

from command import refused
from tiny import save_tiny


pytestmark = pytest.mark.own


REFUSED = [
    (["method=osf"], "osf: works on whole weights; set adapter=null"),
    (["method=osf", "quantization={load_in_4bit: true}"], "set adapter=null"),
    (["method=olora", "adapter=null"], "olora: works on LoRA's factors; set adapter={}"),
    (["method=slao", "adapter={peft_type: IA3}"], "slao: works on LoRA's factors"),
    (["method=olora", "adapter={use_rslora: true}"], "adapter.use_rslora=True does not allow"),
    (["method=[olora, inflora]"], "olora and inflora each change which weights the model has"),
    (["method=[olora, ewc]"], "ewc needs the same ones in every task; leave ewc out"),
    (
        ["method=[replay, olora]"],
        "olora makes the weights that the other methods use; name it first",
    ),
    (["method=replay", "memory.ratio=0"], "replay: remembers rows, and memory.ratio is 0"),
    (["method={lwf: {teacher: base}}", "adapter=null"], "or teacher previous"),
    (["method=agem", "training.deepspeed=zero2.json"], "it steps inside backward"),
    (["method=migu", "adapter={use_dora: true}"], "set adapter.use_dora=false"),
]


@pytest.mark.parametrize(
    ("arguments", "error_line"), REFUSED, ids=[error_line for _, error_line in REFUSED]
)
def test_it_is_refused_before_anything_is_written(arguments, error_line, tmp_path, monkeypatch):
    save_tiny("causal", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "init", "new", "--base", "base", *arguments, names=(error_line,))
