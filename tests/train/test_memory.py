"""What is kept of a task and how it is drawn."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.train.memory import Memory, choose


pytestmark = pytest.mark.own


def rows(n, answers=4):
    return [{"prompt": f"p{i}", "completion": f"a{i % answers}"} for i in range(n)]


@pytest.mark.parametrize(
    ("n", "ratio", "count"),
    [(1000, 0.02, 20), (250, 0.02, 5), (400, 0.02, 8), (10, 0.02, 1), (3, 1.0, 3), (50, 0, 0)],
)
def test_the_number_of_rows_kept_is_the_ratio_and_at_least_one(n, ratio, count):
    assert len(choose(rows(n), ratio, seed=0)) == count


def test_no_more_answers_than_rows_to_keep_are_kept_in_balance():
    chosen = choose(rows(1000, answers=7), 0.02, seed=0)
    counts = Counter(row["completion"] for row in chosen)
    assert len(counts) == 7
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_rare_answer_is_kept_too():
    many = [*rows(990, answers=1), *({"prompt": f"r{i}", "completion": "rare"} for i in range(10))]
    assert Counter(r["completion"] for r in choose(many, 0.02, seed=0)) == {"a0": 10, "rare": 10}


def test_more_answers_than_rows_to_keep_are_drawn_uniformly():
    chosen = choose(rows(500, answers=500), 0.02, seed=0)
    assert len({row["completion"] for row in chosen}) == 10


@pytest.mark.parametrize("seed", range(5))
def test_more_closed_answers_than_rows_to_keep_have_a_row_each(seed):
    chosen = choose(rows(500, answers=14), 0.02, seed, per_answer=0)
    assert len(chosen) == 10
    assert len({row["completion"] for row in chosen}) == 10


def test_which_answers_have_a_row_does_not_hang_on_how_often_they_come():
    often = [{"prompt": f"p{i}", "completion": "often"} for i in range(400)]
    task = [*often, *({"prompt": f"r{i}", "completion": f"rare{i % 9}"} for i in range(100))]
    counts = Counter(
        row["completion"] for seed in range(600) for row in choose(task, 0.01, seed, per_answer=0)
    )
    assert len(counts) == 10
    assert all(240 < count < 360 for count in counts.values())  # half of 600 each


@pytest.mark.parametrize(
    ("n", "answers", "ratio", "more", "count"),
    [
        (100, 14, 0.02, {}, 14),
        (100, 14, 0.02, {"per_answer": 2}, 28),
        (100, 14, 0.02, {"per_answer": 0}, 2),
        (100, 14, 0.5, {}, 50),
        (100, 20, 0.02, {}, 20),
        (100, 21, 0.02, {}, 2),  # more than a fifth of the rows
        (250, 50, 0.02, {}, 50),
        (1000, 51, 0.02, {}, 20),  # more than 50, balanced or not
        (100, 90, 0.02, {"options": ["declared"]}, 90),
        (100, 100, 1.0, {"options": ["declared"]}, 100),
        (100, 14, 0, {}, 0),
    ],
)
def test_a_row_of_each_closed_answer_is_kept_at_least(n, answers, ratio, more, count):
    chosen = choose(rows(n, answers), ratio, seed=0, **more)
    assert len(chosen) == count
    distinct = len({row["completion"] for row in chosen})
    assert distinct == min(count, answers) or distinct <= count < answers


def test_as_many_rows_are_kept_by_surprise_as_in_balance():
    task = rows(100, answers=14)
    chosen = choose(task, 0.02, 0, [float(i) for i in range(100)])
    assert chosen == task[86:]


def test_a_conversation_counts_by_what_the_assistant_said_last():
    task = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"Let me see {i}."},
                {"role": "user", "content": "Well?"},
                {"role": "assistant", "content": f"a{i % 5}"},
            ]
        }
        for i in range(50)
    ]
    chosen = choose(task, 0.02, seed=0)
    assert {row["messages"][-1]["content"] for row in chosen} == {f"a{i}" for i in range(5)}


def test_plain_text_has_no_answers():
    assert len(choose([{"text": "the same"}] * 100, 0.02, seed=0)) == 2


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 5))
def test_what_is_kept_is_deterministic_distinct_and_of_the_task(n, ratio, seed):
    task = rows(n)
    chosen = choose(task, ratio, seed)
    assert chosen == choose(task, ratio, seed)
    assert len({row["prompt"] for row in chosen}) == len(chosen)
    assert all(row in task for row in chosen)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 7), min_size=1), st.integers(1, 40))
def test_a_step_is_the_next_draws_or_each_row_once(sizes, count):
    remembered, rows = memory(sizes), sum(sizes.values())
    for number in range(4):
        step = remembered.step(number, count)
        if count <= rows:
            assert step == remembered.draw(number * count, count)
        else:
            assert sorted(row["id"] for row in step) == sorted(
                row["id"] for features in remembered.tasks.values() for row in features
            )
            assert step == memory(sizes).step(number, count)


def memory(sizes, seed=0):
    return Memory({t: [{"id": f"{t}{i}"} for i in range(n)] for t, n in sizes.items()}, seed)


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 7), min_size=1), st.integers(1, 9))
def test_draws_are_balanced_over_tasks_at_any_time(sizes, cycles):
    drawn = memory(sizes).draw(0, cycles * len(sizes))
    assert set(Counter(row["id"][0] for row in drawn).values()) == {cycles}


@given(st.integers(1, 9), st.integers(1, 4))
def test_a_task_is_exhausted_before_a_row_comes_again(n, times):
    drawn = Counter(row["id"] for row in memory({"a": n, "b": 3}).draw(0, 2 * n * times))
    assert {drawn[f"a{i}"] for i in range(n)} == {times}


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 3))
def test_a_draw_depends_on_its_number_only(start, count, seed):
    sizes = {"a": 5, "b": 7, "c": 2}
    whole = memory(sizes, seed).draw(0, start + count)
    assert memory(sizes, seed).draw(start, count) == whole[start:]


def test_the_draws_of_older_lineages_stay_what_they_were():
    drawn = " ".join(row["id"] for row in memory({"a": 3, "b": 2}).draw(0, 14))
    assert drawn == "b1 a2 b0 a0 b0 a1 b1 a1 a0 b1 b0 a2 a2 b0"


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=1), st.data())
def test_a_sample_is_of_distinct_rows_and_of_each_task_its_share(sizes, data):
    rows = sum(sizes.values())
    count = data.draw(st.integers(0, rows))
    drawn = [row["id"] for row in memory(sizes).sample(count, 1)]
    assert len(set(drawn)) == len(drawn) == count
    for task, size in sizes.items():
        assert abs(sum(i[0] == task for i in drawn) - count * size / rows) < 1


def test_a_sample_depends_on_its_seed_only():
    first, again, other = (memory({"a": 50, "b": 50}).sample(20, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_another_seed_draws_in_another_order_and_every_cycle_is_shuffled_anew():
    sizes = {"a": 20}
    first = memory(sizes).draw(0, 40)
    assert first != memory(sizes, seed=1).draw(0, 40)
    assert first[:20] != first[20:]


def test_a_memory_without_rows_is_false():
    assert not Memory({}, 0)
    assert not Memory({"a": []}, 0)
    assert len(memory({"a": 3, "b": 2})) == 5
