"""What `learn` would choke on is refused by its key, before anything is written or loaded."""

import pytest
import yaml

from command import perdure, refused
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.prepare.settings import check_settings
from tiny import save_tiny


pytestmark = pytest.mark.own


NUMBERS = [  # a key, and what it refuses besides text, lists and numbers that are not finite
    ("training.learning_rate", "0 -1 true null"),
    ("training.num_train_epochs", "0 -1 true"),
    ("training.max_steps", "0 -2 1.5 true"),
    ("training.per_device_train_batch_size", "0 -1 1.5 true null"),
    ("training.gradient_accumulation_steps", "0 -1 1.5"),
    ("training.warmup_steps", "-1"),
    ("training.weight_decay", "-0.1"),
    ("training.adam_beta1", "-0.1 1 1.5"),
    ("training.adam_beta2", "-0.1 1 1.5"),
    ("training.adam_epsilon", "-1e-8"),
    ("training.max_grad_norm", "-1"),
    ("training.logging_steps", "0 -1"),
    ("training.torch_empty_cache_steps", "0 -1 0.5"),
    ("training.neftune_noise_alpha", "-1"),
    ("adapter.r", "0 -1 10000000 1.5 true null"),
    ("adapter.lora_alpha", "0 -1 true null"),
    ("adapter.lora_dropout", "-0.1 1 1.5 null"),
    ("memory.ratio", "5 -0.1 null"),
    ("general.ratio", "0 -1 null"),
    ("scoring.batch_size", "0 -1 1.5 null"),
    ("max_length", "-1 1.5 null"),
    ("max_completion_length", "0 -1 1.5 null"),
    ("checkpoint_every", "-1 1.5 null"),
    ("seed", "-1 4294967296 1.5 true null"),
    ("threads", "0 -1 1.5"),
    ("rows.train", "0 -1 1.5 true null"),
    ("rows.test", "0 -1 1.5 true null"),
    ("method.replay.ratio", "-1 null true"),
    ("method.recurrent_kif.beta_inner", "-0.1 1"),
    ("method.recurrent_kif.outer_learning_rate", "-1"),
    ("method.recurrent_kif.outer_batch_size", "0 -1"),
    ("method.recurrent_kif.outer_ratio", "0 -1 null"),
    ("method.recurrent_kif.fusion", "{both: 1, inner: [1, 0], outer: [0, 1], neither: [0, 0]}"),
]
VALUES = [
    (key, value)
    for key, values in NUMBERS
    for value in ([values] if values[0] == "{" else values.split())
    + [".nan", ".inf", "1e400", "abc", "[]"]
]


@pytest.mark.parametrize(("key", "value"), VALUES, ids=lambda text: text)
def test_a_value_of_no_use_is_refused_by_its_key(key, value):
    with pytest.raises(PerdureError) as error:
        check_settings(load_config({}, [f"{key}={value}"]))
    assert key.rpartition(".")[2] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "error_line"),
    [
        ("training.optim=adamm", "optim: no 'adamm'; did you mean '"),
        ("training.optim=galore_adamw", "optim: galore_adamw: its optimizers step inside backward"),
        ("training.optim=schedule_free_adamw", "install"),
        ("training.optim_args=nonsense", "training:"),
        ("training.lr_scheduler_type=cosin", "did you mean 'cosine'?"),
        ("training.lr_scheduler_type=reduce_lr_on_plateau", "requires an eval strategy"),
        ("training.lr_scheduler_kwargs={nonsense: 1}", "nonsense"),
        ("training.lr_scheduler_type=cosine_with_min_lr", "min_lr"),
        ("training.report_to=wandbb", "unknown tracker 'wandbb'"),
        ("training.use_liger_kernel=true", "not installed"),
        ("training.log_level=abc", "abc"),
        ("training={torch_compile: true, torch_compile_backend: abc}", "ABC"),
        ("training={torch_compile: true, torch_compile_mode: abc}", "torch_compile_mode"),
        ("training={1: 2}", "unknown key 1"),
        ("training.fp16=true", "use bf16"),
        ("adapter.inference_mode=true", "is set by Perdure"),
        ("adapter.task_type=CAUSAL_LM", "it follows from the base"),
        ("adapter={1: 2}", "no setting 1"),
        ("adapter.rank_pattern={q_proj: .nan}", "rank_pattern.q_proj must be a finite number"),
        ("quantization={load_in_4bit: true, llm_int8_threshold: .inf}", "finite"),
        ("method={replay: 3}", "replay takes {keyword: value}, got 3"),
        ("method={1: 3}", "unknown method 1"),
        ("method={recurrent_kif: {fusion: {soft: .nan}}}", "fusion.soft must be a finite"),
        ("method=", "expected a name"),
        ("base=''", "base: the value is empty"),
        ("tasks=''", "tasks: the value is empty"),
        ("tasks=[]", "the list is empty"),
        ("tasks=generate", "did you mean 'generated'?"),
        ("tasks=[{name: a}]", "a task needs its train rows"),
        ("tasks=[{train: a.jsonl, metrics: f1}]", "did you mean 'metric'?"),
        ("tasks=[{train: a.jsonl, options: yes}]", "options takes a list"),
        ("data=nowhere", "data: nowhere: no such folder"),
        ("rows={trian: 3}", "did you mean 'train'?"),
        ("scoring.mode=option", "did you mean 'options'?"),
        ("memory.choose=balance", "did you mean 'balanced'?"),
    ],
)
def test_a_value_that_no_library_can_use_is_refused(setting, error_line):
    with pytest.raises(PerdureError) as error:
        check_settings(load_config({}, [setting]))
    assert error_line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        "training={learning_rate: 1, num_train_epochs: 2, weight_decay: 0, max_grad_norm: 0}",
        "training={max_steps: -1, warmup_steps: 0.1, lr_scheduler_type: cosine}",
        "training={optim: adafactor, bf16: true, use_cpu: true, neftune_noise_alpha: null}",
        "training={optim: sgd, optim_args: 'momentum=0.9', dataloader_drop_last: false}",
        "training={report_to: [], run_name: x, logging_steps: 0.5}",
        "adapter={r: 1, lora_alpha: 0.5, lora_dropout: 0, target_modules: all-linear}",
        "adapter={peft_type: IA3}",
        "memory={ratio: 1}",
        "general={ratio: 0.1}",
        "seed=4294967295",
        "threads=null",
        "checkpoint_every=0",
        "rows={train: 1, dev: 1, test: 1}",
    ],
)
def test_values_that_mean_something_are_taken(setting):
    check_settings(load_config({}, [setting]))


KEYS = [
    ("learning_rate", "write training.learning_rate"),
    ("lr", "write training.learning_rate"),
    ("learningRate", "write training.learning_rate"),
    ("learning_rat", "did you mean training.learning_rate?"),
    ("epochs", "write training.num_train_epochs"),
    ("num_epochs", "write training.num_train_epochs"),
    ("batch_size", "write training.per_device_train_batch_size or scoring.batch_size"),
    ("gradient_accumulation_steps", "write training.gradient_accumulation_steps"),
    ("optim", "write training.optim"),
    ("optimizer", "write training.optim"),
    ("bf16", "write training.bf16"),
    ("warmup_ratio", "write training.warmup_steps"),
    ("r", "write adapter.r"),
    ("lora_r", "write adapter.r"),
    ("rank", "write adapter.r"),
    ("lora_alpha", "write adapter.lora_alpha"),
    ("target_modules", "write adapter.target_modules"),
    ("use_dora", "write adapter.use_dora"),
    ("load_in_4bit", "write quantization.load_in_4bit"),
    ("bnb_4bit_quant_type", "write quantization.bnb_4bit_quant_type"),
    ("ratio", "write memory.ratio or general.ratio"),
    ("choose", "write memory.choose"),
    ("file", "write general.file"),
    ("inner_steps", "write method: {recurrent_kif: {inner_steps: ...}}"),
    ("strength", "write method: {NAME: {strength: ...}} for agem, ewc"),
    ("metric", "write tasks: [{metric: ...}]"),
    ("model", "did you mean 'base'?"),
    ("max_seq_length", "did you mean 'max_length'?"),
    ("output_dir", "did you mean 'lineage'?"),
    ("save_steps", "did you mean 'checkpoint_every'?"),
    ("grid", "write grid in the YAML of `perdure compare`"),
    ("sed", "did you mean 'seed'?"),
    ("trainer.learning_rate", "'trainer.learning_rate'; write training.learning_rate"),
    ("lora.r", "'lora.r'; write adapter.r"),
    ("training.r", "write adapter.r"),
    ("training.batch_size", "did you mean 'per_device_train_batch_size'?"),
    ("training.lr", "did you mean 'learning_rate'?"),
    ("training.max_length", "write max_length"),
    ("adapter.learning_rate", "write training.learning_rate"),
    ("adapter.rank", "did you mean 'r'?"),
    ("adapter.alpha", "did you mean 'lora_alpha'?"),
    ("adapter.load_in_4bit", "write quantization.load_in_4bit"),
    ("memory.file", "write general.file"),
    ("scoring.batch", "did you mean 'batch_size'?"),
    ("general.choose", "write memory.choose"),
    ("method.replay.inner_steps", "write method: {recurrent_kif: {inner_steps: ...}}"),
    ("method.inner_steps", "write method: {recurrent_kif: {inner_steps: ...}}"),
    ("quantization.r", "write adapter.r"),
]


@pytest.mark.parametrize(("key", "error_line"), KEYS, ids=[key for key, _ in KEYS])
def test_an_unknown_key_is_told_where_it_belongs(key, error_line):
    for overrides in ([f"{key}=1"], {key: 1}):  # on the command line, and from Python
        with pytest.raises(PerdureError) as error:
            check_settings(load_config({}, overrides))
        assert error_line in str(error.value)


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_tiny("causal", tmp_path / "base")


def test_a_file_an_option_and_a_tasks_own_training_say_it_too(base, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "red", "completion": "blue"}\n')
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"base": "base", "learning_rate": 1e-3}))
    place = ("unknown key 'learning_rate'; write training.learning_rate",)
    refused(tmp_path, "run", "run.yaml", names=place)
    refused(tmp_path, "init", "new", "--config", "run.yaml", names=place)
    refused(
        tmp_path,
        *("init", "new", "--learning-rate", "1e-3"),
        names=("init: no option --learning-rate", "write training.learning_rate"),
    )
    refused(
        tmp_path,
        *("learn", "new", "a", "a.jsonl", "learning_rate=1e-3"),
        names=("learning_rate: not a key of a task; write training.learning_rate",),
    )
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"grid": {"learning_rate": [1e-3]}}))
    refused(tmp_path, "compare", "grid.yaml", names=("grid: 'learning_rate'", place[0][-28:]))
    refused(tmp_path, "init", "new", "--bse", "base", names=("did you mean --base?",))
    refused(tmp_path, "log", "new", "--lr", "1", names=("log: no option --lr; valid: --json",))


def test_init_says_which_settings_it_does_not_use(base):
    given = ("lineage=elsewhere", "revision=main", "tasks=generated")
    result = perdure("init", "new", "--base", "base", *given)
    assert result.status == 0
    for line in (
        "warning: lineage: elsewhere is not used; init makes new",
        "warning: revision: main is not used; base is no name on the hub",
        "note: init learns none of tasks:",
    ):
        assert line in result.err
    result = perdure("init", "other", "--base", "base", "lineage=other")
    assert "not used" not in result.err
    assert "note" not in result.err


def test_a_task_that_no_batch_would_be_made_of(base, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "red", "completion": "blue"}\n')
    drop = ("learn", "new", "a", "a.jsonl", "training.dataloader_drop_last=true")
    assert perdure("init", "new", "--base", "base").status == 0
    refused(tmp_path, *drop, names=("drops all of its 1 rows",))
    refused(tmp_path, "learn", "new", "(general)", "a.jsonl", names=("task '(general)'", "rename"))


@pytest.mark.parametrize(
    ("setting", "error_line"),
    [
        ("general.file=nowhere.jsonl", "no file nowhere.jsonl"),
        ("general.file=broken.jsonl", "broken.jsonl, row 1"),
        ("adapter.target_modules=[nowhere]", "adapter: "),
        ("adapter.target_modules=[]", "adapter: "),
        ("adapter.layers_to_transform=[99]", "adapter: "),
        ("adapter.init_lora_weights=abc", "adapter: "),
        ("adapter.bias=abc", "adapter: "),
        ("max_completion_length=129", "more than the 128 positions"),
        ("max_length=129", "more than the 128 positions"),
    ],
)
def test_what_needs_the_base_or_a_file_is_refused_before_a_lineage_is_made(
    setting, error_line, base, tmp_path
):
    (tmp_path / "broken.jsonl").write_text("{\n")
    refused(
        tmp_path, "init", "new", "--base", "base", "method=replay", setting, names=(error_line,)
    )


def test_a_ratio_of_general_rows_needs_their_file():
    with pytest.raises(PerdureError, match=r"ratio is 5\.0, but there is no general\.file"):
        check_settings(load_config({}, ["general={ratio: 5}"]))
