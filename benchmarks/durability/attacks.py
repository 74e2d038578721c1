"""What a stranger may plant in a lineage, a base or a comparison (`hostile.py` runs it).

An attack is a function that changes a `Place`, under the verb that is then run on it.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.cli import main
from perdure.models.pins import KEPT


SECRET = "-----BEGIN THE KEY OF SOMEBODY-----"
EVIL = "news\x1b[2J\u202e\x9b2J\x07"
CODE = "open({ran!r}, 'w').close()\n"


class Place:
    """A folder with a lineage of two stages, its base and rows, and a folder outside of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lineage, self.base = folder / "lineage", folder / "base"
        self.outside, self.ran = folder / "outside", folder / "ran"

    def stage(self, number: int = 2) -> Path:
        [folder] = self.lineage.glob(f"stages/{number:04d}-*")
        return folder

    def code(self) -> str:
        """Return Python code that leaves a mark."""
        return CODE.format(ran=str(self.ran))

    def link(self, place: Path | str, target: Path | str) -> None:
        """Put a symbolic link at a place, instead of what is there."""
        place = self.lineage / place
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def rewrite(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Change the ledger's lines, and chain them again."""
        file, previous, lines = self.lineage / "ledger.jsonl", "", []
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        change(entries)
        for entry in entries:
            entry["previous"] = previous
            lines.append(json.dumps(entry, sort_keys=True, ensure_ascii=False))
            previous = hashlib.sha256(lines[-1].encode()).hexdigest()
        file.write_text("".join(line + "\n" for line in lines))
        # As in a lineage of an earlier release.
        (self.lineage / "newest.json").unlink(missing_ok=True)

    def edit(self, file: Path, **changes: Any) -> None:
        """Change keys of a JSON file."""
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def record(self) -> None:
        """Write the hashes of the newest stage's files, and of the base's, into the ledger."""

        def change(entries: list[dict[str, Any]]) -> None:
            entries[-1]["files"] = {
                path.relative_to(self.stage()).as_posix(): sha256(path)
                for path in sorted(self.stage().rglob("*"))
                if path.is_file()
            }

        self.rewrite(change)


@dataclass(frozen=True)
class Attack:
    """An attack: its name, what is planted, and the verb that is run, in the place's folder."""

    name: str
    plant: Callable[[Place], None]
    command: tuple[str, ...]


LEARN = ("learn", "lineage", "third", "third.jsonl")
PUSH = ("push", "lineage", "me/mine")
ATTACKS: list[Attack] = []


def attack(*command: str) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Add a function that plants something, with the verb that is then run, to `ATTACKS`."""

    def add(plant: Callable[[Place], None]) -> Callable[[Place], None]:
        ATTACKS.append(Attack(plant.__name__, plant, command))
        return plant

    return add


# --- symbolic links in place of a lineage's own files and folders


@attack(*LEARN)
def work_is_a_link(place):
    place.link(".work", place.outside / "photos")


@attack(*LEARN)
def a_checkpoint_is_a_link(place):
    place.link(".work/0003-third-0123456789abcdef", place.outside)


@attack(*LEARN)
def a_new_timings_file_is_a_link(place):
    place.link(".timings.json.new", place.outside / "notes.txt")


@attack("set", "lineage", "training.learning_rate=1e-3")
def a_new_settings_file_is_a_link(place):
    place.link(".lineage.yaml.new", place.outside / "notes.txt")


@attack("revert", "lineage")
def the_ledger_is_a_link(place):
    shutil.copy(place.lineage / "ledger.jsonl", place.outside / "ledger.jsonl")
    place.link("ledger.jsonl", place.outside / "ledger.jsonl")


@attack("revert", "lineage")
def the_copy_of_the_newest_line_is_a_link(place):
    (place.lineage / "newest.json").rename(place.outside / "newest.json")
    place.link("newest.json", place.outside / "newest.json")


@attack("revert", "lineage")
def the_lock_is_a_link(place):
    place.link("lock", place.outside / "made")


@attack("revert", "lineage")
def the_lock_is_a_pipe(place):
    (place.lineage / "lock").unlink()
    os.mkfifo(place.lineage / "lock")


@attack("log", "lineage")
def the_ledger_is_a_pipe(place):
    (place.lineage / "ledger.jsonl").unlink()
    os.mkfifo(place.lineage / "ledger.jsonl")


@attack(*LEARN)
def stages_is_a_link(place):
    shutil.copytree(place.lineage / "stages", place.outside / "stages")
    place.link("stages", place.outside / "stages")


@attack(*LEARN)
def the_next_stage_is_a_link(place):
    place.link("stages/0003-third", place.outside)


@attack("try", "lineage", "word")
def a_stage_is_a_link(place):
    shutil.copytree(place.stage(), place.outside / "stage")
    place.link(place.stage(), place.outside / "stage")


@attack("log", "lineage")
def a_stages_scores_are_a_link(place):
    shutil.copy(place.stage() / "scores.json", place.outside / "scores.json")
    place.link(place.stage() / "scores.json", place.outside / "scores.json")


@attack("init", "new", "base=base")
def a_new_lineage_has_a_link_for_its_stages(place):
    place.link(place.folder / "new/stages", place.outside)


@attack("init", "new", "base=base")
def a_new_lineage_has_a_link_for_its_ledger(place):
    place.link(place.folder / "new/ledger.jsonl", place.outside / "notes.txt")


@attack("export", "lineage", "merged")
def an_unfinished_export_is_a_link(place):
    place.link(place.folder / ".merged.new", place.outside)


@attack("report", "lineage", "--out", "page.html")
def an_unfinished_report_is_a_link(place):
    place.link(place.folder / ".page.html.new", place.outside / "notes.txt")


@attack(*LEARN)
def logs_is_a_link(place):
    _track(place)
    place.link("logs", place.outside)


@attack(*LEARN)
def the_logs_of_a_run_are_a_link(place):
    _track(place)
    place.link("logs/lineage", place.outside)


@attack("compare", "compare.yaml")
def the_cells_of_a_comparison_are_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells", place.outside)


@attack("compare", "compare.yaml")
def the_log_of_a_cell_is_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells/a.log", place.outside / "notes.txt")


@attack("compare", "compare.yaml")
def a_cell_of_a_comparison_is_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells/a", place.outside)


def _track(place: Place) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["set", "lineage", "training.report_to=tensorboard"])


def _compare(place: Place) -> None:
    (place.folder / "compare.yaml").write_text(
        "base: base\nlineage: compared\nthreads: 1\nguard: null\nmax_completion_length: 2\n"
        "tasks: [{name: first, train: first.jsonl, test: first-test.jsonl}]\n"
        "adapter: {r: 2}\ngrid: {method: {plain: sequential}, seed: [0]}\n"
    )


# --- names in the ledger that lead out of the lineage


@attack(*LEARN)
def a_dropped_folder_lies_outside(place):
    (place.outside / "model.safetensors").write_text(SECRET)
    place.rewrite(lambda entries: entries[-1].update(dropped=["../outside"]))


@attack("revert", "lineage")
def a_dropped_folder_is_absolute(place):
    (place.outside / "model.safetensors").write_text(SECRET)
    place.rewrite(lambda entries: entries[-1].update(dropped=[str(place.outside)]))


@attack(*PUSH)
def a_stages_folder_lies_outside(place):
    place.rewrite(lambda entries: entries[-1].update(folder="../outside"))


@attack("verify", "lineage")
def a_stages_file_lies_outside(place):
    place.rewrite(lambda entries: entries[-1]["files"].update({"../../../outside/id_rsa": "0"}))


# --- uploads


@attack(*PUSH)
def a_stage_has_a_linked_folder(place):
    place.link(place.stage() / "keys", place.outside)


@attack(*PUSH)
def a_stage_has_a_linked_file(place):
    place.link(place.stage() / "tokenizer.json", place.outside / "id_rsa")


@attack(*PUSH)
def a_file_that_is_not_in_the_ledger_lies_in_a_stage(place):
    (place.stage() / "tokenizer.json").write_text(SECRET)


@attack(*PUSH)
def a_stage_has_files_that_are_not_of_a_model(place):
    for name in ("memory.jsonl", "rows.txt", "memory.jsonl.safetensors", "a/config.json"):
        (place.stage() / name).parent.mkdir(exist_ok=True)
        (place.stage() / name).write_text(SECRET)
    place.record()


@attack(*PUSH)
def weights_were_changed_after_they_were_recorded(place):
    with (place.stage() / "adapter_model.safetensors").open("ab") as file:
        file.write(SECRET.encode())


# --- code in a base


@attack("init", "new", "base=base")
def a_base_has_pickled_weights(place):
    (place.base / "model.safetensors").unlink()
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))


@attack("rebase", "lineage", "base")
def a_base_is_replaced_by_one_with_pickled_weights(place):
    (place.base / "model.safetensors").rename(place.folder / "weights")
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))


@attack("init", "new", "base=base")
def a_tokenizer_brings_code(place):
    _bring_code(place, "tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]})
    place.edit(place.base / "tokenizer_config.json", tokenizer_class="Evil")


@attack("init", "new", "base=base")
def a_config_brings_code(place):
    _bring_code(place, "config.json", {"AutoConfig": "evil.Evil"})
    place.edit(place.base / "config.json", model_type="evil")


@attack("init", "new", "base=base")
def a_model_brings_code(place):
    _bring_code(place, "config.json", {"AutoModelForCausalLM": "evil.Evil"})


@attack("init", "new", "base=base")
def a_base_brings_its_own_generate(place):
    (place.base / "custom_generate").mkdir()
    (place.base / "custom_generate" / "generate.py").write_text(place.code())


@attack("init", "new", "base=base")
def a_config_takes_attention_from_the_hub(place):
    place.edit(place.base / "config.json", attn_implementation="somebody/attention")


@attack("try", "lineage", "word")
def a_learned_lineage_has_a_tokenizer_with_code(place):
    a_tokenizer_brings_code(place)

    def change(entries: list[dict[str, Any]]) -> None:
        files = {p.name: sha256(p) for p in place.base.iterdir() if p.suffix in KEPT}
        entries[0]["base"]["files"] = files

    place.rewrite(change)


@attack("try", "lineage", "word")
def an_adapter_has_pickled_weights(place):
    (place.stage() / "adapter_model.safetensors").unlink()
    (place.stage() / "adapter_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))
    place.record()


@attack("init", "new", "base=base", "--adapter", "adapter")
def an_adapters_tokenizer_brings_code(place):
    place.stage().rename(place.folder / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place.base / name, place.folder / "adapter" / name)
    place.base.rename(place.folder / "kept")
    (place.folder / "adapter").rename(place.base)
    a_tokenizer_brings_code(place)
    place.base.rename(place.folder / "adapter")
    (place.folder / "kept").rename(place.base)


@attack("evaluate", "lineage")
def a_ledgers_metric_is_code_in_the_lineage(place):
    (place.lineage / "evil.py").write_text(place.code() + "def f(a, b): return 1.0\n")
    _score_by(place, "lineage.evil:f")


@attack("report", "lineage", "--out", "page.html")
def a_ledgers_metric_is_code_that_a_report_imports(place):
    (place.folder / "evil_metric.py").write_text(place.code() + "def f(a, b): return 1.0\n")
    _score_by(place, "evil_metric:f")


def _score_by(place: Place, metric: str) -> None:
    place.rewrite(lambda entries: entries[-1]["task"].update(metric=metric, metric_source="0"))


def _bring_code(place: Place, file: str, auto_map: dict[str, Any]) -> None:
    (place.base / "evil.py").write_text(place.code() + "class Evil: pass\n")
    place.edit(place.base / file, auto_map=auto_map)


class _Evil:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


# --- what a terminal or a page would obey


@attack("log", "lineage")
def a_task_has_a_name_that_a_terminal_obeys(place):
    place.rewrite(lambda entries: entries[-1]["task"].update(name=EVIL, id=EVIL))


@attack("log", "lineage")
def a_base_has_a_name_that_a_terminal_obeys(place):
    place.rewrite(lambda entries: entries[0]["base"].update(name=EVIL))


@attack("log", "lineage", "--json")
def a_reason_in_json_would_be_obeyed(place):
    _plant_a_refusal(place)


@attack("report", "lineage", "--out", "page.html")
def a_reason_in_a_page_would_be_obeyed(place):
    _plant_a_refusal(place)


@attack("show", "lineage")
def a_verdict_would_be_obeyed(place):
    place.edit(place.stage() / "verdict.json", suggestion=EVIL)
    place.record()


@attack("verify", "lineage")
def a_file_has_a_name_that_a_terminal_obeys(place):
    (place.stage() / EVIL.replace("/", "")).write_text("")


@attack("report", ".", "--out", "page.html")
def a_lineage_has_a_name_that_a_page_would_obey(place):
    shutil.copytree(place.lineage, place.folder / EVIL)


@attack("try", f"lineage{EVIL}", "word")
def a_folder_has_a_name_that_a_terminal_obeys(place):
    pass


def _plant_a_refusal(place: Place) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        newest = entries[-1]
        line = {key: newest[key] for key in ("stage", "task", "method", "mode", "scores")}
        line |= {"verb": "refused", "parent": newest["stage"], "files": {}, "key": "0" * 32}
        entries.append({**line, "folder": "refused/0003-third-00000000", "reasons": [EVIL]})

    place.rewrite(change)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- `repair`, which reads a lineage that the other verbs refuse


def linked_outside(place: Place, folder: str, name: str, linked: Path) -> None:
    """Let stage 1 have one file: a link that lies outside, to a file whose hash is known."""
    linked.parent.mkdir(parents=True, exist_ok=True)
    linked.symlink_to(place.outside / "notes.txt")

    def change(entries):
        entries[1] |= {"folder": folder, "files": {name: sha256(place.outside / "notes.txt")}}

    place.rewrite(change)


@attack("repair", "lineage")
def repair_is_led_out_by_a_folder(place):
    linked_outside(place, "../outside", "link", place.outside / "link")


@attack("repair", "lineage")
def repair_is_led_out_by_an_absolute_folder(place):
    linked_outside(place, str(place.outside), "link", place.outside / "link")


@attack("repair", "lineage")
def repair_is_led_out_by_a_stage_that_is_a_link(place):
    stage = place.stage(1).relative_to(place.lineage)
    linked_outside(place, stage.as_posix(), "photos/link", place.outside / "photos/link")
    place.link(stage, place.outside)


@attack("repair", "lineage")
def repair_is_led_out_by_a_folder_in_a_stage(place):
    stage = place.stage(1).relative_to(place.lineage)
    linked_outside(place, stage.as_posix(), "a/photos/link", place.outside / "photos/link")
    place.link(stage / "a", place.outside)


@attack("repair", "lineage")
def repair_is_given_files_of_another_type(place):
    place.rewrite(lambda entries: entries[1].update(files=["a"]))


@attack("repair", "lineage")
def repair_is_given_a_folder_of_another_type(place):
    place.rewrite(lambda entries: entries[1].update(folder=7))


@attack("repair", "lineage")
def repair_finds_a_folder_in_place_of_a_temporary_file(place):
    (place.lineage / ".timings.json.new").mkdir()
