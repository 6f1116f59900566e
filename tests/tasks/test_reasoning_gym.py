"""Questions that reasoning-gym makes, and the verifier that pays for right answers alone."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder import tasks
from ponder.errors import InputError, MissingExtra, Unsupported
from ponder.tasks import gym_child
from ponder.tasks.reasoning_gym import Family, families, spread
from ponder.types import Question, Sample, from_json, to_json, user
from ponder.verifiers import gym_child as scorers
from ponder.verifiers.child import Child
from ponder.verifiers.gym_forms import CHECKS, FORMS, final, same
from ponder.verifiers.naming import verifier_named
from ponder.verifiers.per_question import verifier_of
from ponder.verifiers.reasoning_gym import LONGEST, reasoning_gym

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs ponder[reasoning-gym]"
)
VERIFIER = reasoning_gym()


def score(question, answer, verifier=VERIFIER):
    return asyncio.run(verifier(question, Sample(0, answer, answer=answer)))


def made(text):
    return tasks.load(f"reasoning-gym:{text}").questions


def asked(family, reference, **metadata):
    """A question as the task makes it, without asking reasoning-gym for it."""
    entry = {"family": family, "settings": {"size": 1, "seed": 0}, "metadata": repr(metadata)}
    return Question((user("?"),), reference, metadata={"reasoning_gym": entry})


@pytest.fixture(scope="module")
def pool():
    """Questions of many families, by the name of the family: making them takes the time of a process."""
    pytest.importorskip("reasoning_gym")
    names = [f"{name}?size=1&seed=3" for name in (*FORMS, *CHECKS) if name != "coin_flip"]
    names += [f"{name}?size=1" for name in ("game_of_life_halting", "gsm_symbolic", "decimal_arithmetic", "chain_sum")]
    names += [f"{name}?size=1" for name in ("number_sorting", "figlet_font", "leg_counting")]
    names += [f"{name}?size=1" for name in ("spiral_matrix", "binary_matrix", "string_insertion")]
    names += [
        "spell_backward?size=1&min_word_len=9",
        "syllogism?size=40",
        "coin_flip?size=60&min_trials=3&max_trials=4",
    ]
    found = {}
    for question in made("+".join(names)):
        found.setdefault(question.metadata["kind"], []).append(question)
    return found


@pytest.fixture(scope="module")
def of_each_family(pool):
    """A question of each family."""
    return {name: questions[0] for name, questions in pool.items()}


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("leg_counting", [("leg_counting", {})]),
        ("gcd?size=7&seed=-3", [("gcd", {"size": 7, "seed": -3})]),
        ("gcd+lcm?max_numbers=3+gcd", [("gcd", {}), ("lcm", {"max_numbers": 3}), ("gcd", {})]),
        ("a?operators=['+','-']&b=(1, 2)+c", [("a", {"operators": ["+", "-"], "b": (1, 2)}), ("c", {})]),
        (
            "a?b=true&c=False&d=word&e=1.5&f={'g': None}",
            [("a", {"b": True, "c": False, "d": "word", "e": 1.5, "f": {"g": None}})],
        ),
    ],
)
def test_families_and_their_settings(text, read):
    assert families(f"reasoning-gym:{text}") == [
        Family(name, {"size": 100, **own, "seed": spread(own.get("seed", 0))}) for name, own in read
    ]


@given(st.integers(), st.integers(min_value=1, max_value=1000))
def test_neighbouring_seeds_are_far_apart(seed, step):
    assert 0 <= spread(seed) < 2**31
    assert abs(spread(seed) - spread(seed + step)) > 1000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no family of reasoning-gym. Write it as reasoning-gym:leg_counting?size=100&seed=1"),
        ("leg counting", "'leg counting' is no family"),
        ("gcd+", "'gcd+' is no family"),
        ("gcd?size", "'size' is no setting of gcd"),
        ("gcd?size=", "'size=' is no setting of gcd"),
        ("gcd?2=3", "'2=3' is no setting of gcd"),
        ("gcd?size=0", "the size of gcd must be at least 1, not 0"),
        ("gcd?size=1.5", "the size of gcd must be at least 1, not 1.5"),
        ("gcd?size=true", "the size of gcd must be at least 1, not True"),
        ("gcd?seed=None", "the seed of gcd must be an integer, not None"),
        ("gcd?max_value={1}", "a setting of gcd is neither text, number, list nor dict"),
    ],
)
def test_what_cannot_be_read(text, problem):
    with pytest.raises(InputError, match=re.escape(problem)) as told:
        made(text)
    assert "\n" not in str(told.value)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    command = r"Run: pip install 'ponder\[reasoning-gym\]'"
    with pytest.raises(MissingExtra, match=rf"reasoning-gym:gcd needs the package reasoning-gym. {command}"):
        made("gcd")
    question = asked("jugs", '["fill A"]')
    assert score(question, '["fill A"]').value == 1  # equal to the reference: nobody has to be asked
    with pytest.raises(MissingExtra, match=command):
        score(question, '["fill B"]')


def test_a_task_of_reasoning_gym_has_no_format():
    with pytest.raises(InputError, match="has no format to choose"):
        tasks.load("reasoning-gym:gcd", format="plain")


# ---------------------------------------------------------------- questions


@needs_package
@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("leg_countin", {}, "no family 'leg_countin'. Choose one such as leg_counting"),
        ("xyzzy", {}, "no family 'xyzzy'. Choose one such as leg_counting, chain_sum"),
        ("gcd", {"max": 3}, "gcd has no setting 'max'. It has min_numbers, max_numbers"),
        ("gcd", {"max_value": "a"}, "gcd cannot be made: TypeError"),
        ("gcd", {"max_numbers": 1}, "gcd cannot be made: AssertionError"),
        ("composite", {}, "composite cannot be used: it has no questions of its own; join families with +"),
        ("propositional_logic", {}, "propositional_logic cannot be used: its scorer takes a premise said again"),
    ],
)
def test_what_reasoning_gym_cannot_make(name, settings, problem):
    reply = gym_child.reply([("lcm", {"size": 1, "seed": 1}), (name, {"size": 1, "seed": 1, **settings})])
    assert problem in "{problem}. {mend}".format(**reply)
    assert "\n" not in reply["problem"]


@needs_package
def test_a_mistake_of_the_family_is_an_error_in_one_line():
    with pytest.raises(InputError, match=r"^gcd has no setting 'max'\. It has min_numbers, .*size\.$"):
        made("gcd?max=3")


@needs_package
def test_settings_hold_and_families_take_turns():
    text = (
        "reasoning-gym:leg_counting?size=3&seed=1&min_animals=2&max_animals=2+chain_sum?size=5&min_terms=2&max_terms=2"
    )
    task = tasks.load(text)
    legs, sums = "leg_counting", "chain_sum"
    assert [question.metadata["kind"] for question in task.questions] == [legs, sums] * 3 + [sums] * 2
    assert [question.metadata["id"] for question in task.questions[:3]] == [f"{legs}/0", f"{sums}/1", f"{legs}/2"]
    for question in task.questions:
        if question.metadata["kind"] == legs:
            assert len(re.findall(r"\d+ \w+", question.text)) == 2
        else:
            assert eval(re.search(r"[-+\d ]+(?= =)", question.text)[0]) == int(question.reference)
    assert (task.name, task.verifier) == ("reasoning-gym/leg_counting+chain_sum", "reasoning_gym")
    assert {question.task for question in task.questions} == {task.name}
    some = tasks.load(text, verifier="math_answer", limit=2)
    assert some == tasks.Task(task.name, task.questions[:2], "math_answer", task.sha256)
    assert from_json(Question, to_json(task.questions[0])) == task.questions[0]


@needs_package
def test_the_same_text_makes_the_same_questions_in_every_process(monkeypatch):
    # Families whose entries depend on the hash seed of the process that makes them, and one that notes today's date.
    sets = ("isomorphic_strings", "ransom_note", "polynomial_multiplication", "word_ladder")
    names = [*(f"{family}?size=3{seed}" for seed in ("", "&seed=1") for family in sets), "time_intervals?size=8"]
    loaded = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        loaded.append(tasks.load(f"reasoning-gym:{'+'.join(names)}"))
    assert loaded[0] == loaded[1]
    assert len(loaded[0].questions) == 2 * 3 * len(sets) + 8  # so none of seed 0 is one of seed 1
    assert "202" not in "".join(
        str(question.metadata) for question in loaded[0].questions if question.metadata["kind"] == "time_intervals"
    )


@needs_package
def test_a_question_made_twice_is_taken_once(pool):
    texts = [question.text for question in pool["coin_flip"]]
    assert len(texts) == len(set(texts)) < 60
    ids = [question.metadata["id"] for questions in pool.values() for question in questions]
    assert len(set(ids)) == len(ids)


@needs_package
def test_the_floor_of_a_constant_answer(pool):
    questions = pool["syllogism"]
    floor = tasks.describe(tasks.Task("syllogism", tuple(questions), "reasoning_gym", ""))["floor"]
    assert floor["answer"] in ("Yes", "No")
    judged = [score(question, floor["answer"]).value for question in questions]
    assert sum(judged) / len(judged) == floor["share"] >= 0.5


@needs_package
def test_what_the_family_could_not_solve_is_left_out(monkeypatch):
    entry = {"question": "?", "answer": "3*Integral(x**3*cos(3*x), x) + C", "metadata": {}}
    library = pytest.importorskip("reasoning_gym")
    family = library.factory.DATASETS["intermediate_integration"][0]
    monkeypatch.setattr(family, "__getitem__", lambda self, index: entry if index else {**entry, "answer": "x + C"})
    reply = gym_child.reply([("intermediate_integration", {"size": 3, "seed": 1})])
    assert reply == {"entries": [[["?", "x + C", "{}"]]]}


def test_metadata_becomes_what_a_literal_can_spell():
    np = pytest.importorskip("numpy")

    class Name(str):
        pass

    value = {"a": (np.float64(0.5), [np.int64(3), np.bool_(True)]), Name("b"): np.str_("x"), 3: {None, 1}}
    plain = gym_child.plain(value)
    assert ast.literal_eval(repr(plain)) == plain == {"a": (0.5, [3, True]), "b": "x", 3: {None, 1}}
    with pytest.raises(TypeError, match="object cannot be written down"):
        gym_child.plain([object()])


# ---------------------------------------------------------------- the verifier


@pytest.mark.parametrize("answer", ["", " \n", "<answer></answer>", "The answer is", "x" * (LONGEST + 1), "12 " * 5000])
def test_nothing_and_giants_are_wrong(answer):
    for question in (asked("gcd", "12"), asked("polynomial_equations", ""), asked("jugs", '["fill A"]')):
        assert score(question, answer).value == 0


@given(st.text(max_size=200))
def test_no_text_is_paid_but_the_answer(text):
    for question in (asked("game_of_life_halting", "False"), asked("chain_sum", "12"), asked("a_later_family", "12")):
        scored = score(question, text)
        assert scored.verifier == "reasoning_gym"
        assert scored.value == float(same(final(text), question.reference))


def test_questions_from_elsewhere_and_settings_that_cannot_be():
    with pytest.raises(InputError, match=r"knows its own questions alone. Load them as reasoning-gym:FAMILY"):
        score(Question((user("?"),), "12"), "12")
    with pytest.raises(InputError, match=r"reasoning_gym\(seconds=0\) leaves no time"):
        verifier_named("reasoning_gym(seconds=0)")
    with pytest.raises(Unsupported, match=r"a_later_family has no reference and no scorer to trust"):
        score(asked("a_later_family", None), "12")
    damaged = asked("countdown", "1 + 2")
    damaged.metadata["reasoning_gym"]["metadata"] = "print()"
    with pytest.raises(InputError, match="damaged"):
        score(damaged, "3")


@pytest.mark.parametrize(
    ("family", "entry", "right", "wrong"),
    [
        (
            "countdown",
            {"numbers": [39, 14, 93, 51], "target": 169},
            ["39 - 14 + 93 + 51", "(93+51) - (14-39)", "51-(-39)-(14-93)"],
            [
                "169",
                "39-14+93+51+0",
                "39+93+51",
                "39-14+93+51.0",
                "39 - 14 + 93 + 51 = 169",
                "1/0",
                "(" * 3000,
                "-" * 3000,
            ],
        ),
        (
            "puzzle24",
            {"numbers": [5, 6, 1, 6]},
            ["5*6*1 - 6", "6 * 5 - 6 * 1", "6/1*5-6"],
            ["6*4*1*1", "24", "5*6 - 6", "5*6-6/1.1", "5**6*1-6", "6*(5-1)+6*0", "__import__('os')", "True"],
        ),
        (
            "coin_flip",
            {"rational": {"numerator": 255, "denominator": 256}},
            ["255/256", "0.99609375", "0.99609"],
            ["1", "0.9968", "0.99", "1/256"],
        ),
        (
            "coin_flip",
            {"rational": {"numerator": 15, "denominator": 64}},
            ["15/64", "0.2344", "0.234375", "30/128", ".2344"],
            ["0", "0.2", "0.2350", "15", "1/0", "nan", "-0.234375", "1e999999999", "2e-999", "15/64 or 1/2"],
        ),
    ],
)
def test_families_whose_answers_are_worked_out_here(family, entry, right, wrong):
    question = asked(family, None, **entry)
    assert [answer for answer in right if not score(question, answer).value] == []
    assert [answer for answer in wrong if score(question, answer).value] == []


@needs_package
def test_every_reference_is_right_however_it_is_presented(of_each_family):
    known = {name: question for name, question in of_each_family.items() if question.reference is not None}
    assert set(FORMS) - set(known) == {"boxnet", "graph_color", "rubiks_cube", "rush_hour"}
    for name, question in known.items():
        for shape in ("{}", "The answer is {}", "Thus:\n<answer>\n{}\n</answer>", "```\n{}\n```"):
            assert score(question, shape.format(question.reference)).value == 1, (name, shape)


@needs_package
def test_the_reference_among_other_things_is_wrong(of_each_family):
    for name, question in of_each_family.items():
        shapes = ["{} or 17", "{} junk", "junk {}", "{0}\n{0}", "-{}"] if question.reference else ["junk", "[]", "A"]
        for shape in shapes:
            if (name, shape) == ("sokoban", "{0}\n{0}") or (shape == "-{}" and question.reference.startswith("0")):
                continue  # more moves than needed; -0 is 0
            assert score(question, shape.format(question.reference)).value == 0, (name, shape)


def metadata_of(question):
    return ast.literal_eval(question.metadata["reasoning_gym"]["metadata"])


@needs_package
def test_answers_other_than_the_reference_are_right_where_several_are(of_each_family):
    known = {name: metadata_of(of_each_family[name]) for name in ("graph_color", "rubiks_cube")}
    coloured = json.dumps({str(key): value for key, value in known["graph_color"]["possible_answer"].items()})
    reordered = ",".join(reversed(of_each_family["cryptarithm"].reference.split(",")))
    turned = json.dumps([group[::-1] for group in json.loads(of_each_family["group_anagrams"].reference)][::-1])
    other_answers = {
        "graph_color": coloured,
        "rubiks_cube": known["rubiks_cube"]["example_correct_answer"],
        "cryptarithm": reordered,
        "prime_factorization": "3 × 2 × 2",
        "group_anagrams": turned,
        "palindrome_generation": "baab",
        "simple_integration": of_each_family["simple_integration"].reference.replace("C", "7"),
        "complex_arithmetic": of_each_family["complex_arithmetic"].reference.replace(".0", "").replace(" ", ""),
        "power_function": f"{float(of_each_family['power_function'].reference):.2e}",
    }
    small = {
        "prime_factorization": asked("prime_factorization", "2 × 2 × 3"),
        "palindrome_generation": asked("palindrome_generation", "abba", letters=["b", "a", "a", "b"]),
    }
    for name, answer in other_answers.items():
        question = small.get(name, of_each_family[name])
        scored = score(question, answer)
        assert (scored.value, scored.why) == (1, "its scorer says 1"), (name, answer)
        assert question.reference is None or not same(answer, question.reference)


@needs_package
def test_holes_that_the_scorers_have_are_closed(of_each_family):
    """Each answer is wrong, and each is paid in full or in part, or breaks the scorer, if that alone is asked."""
    library = pytest.importorskip("reasoning_gym")
    questions = of_each_family
    sorted_numbers = ast.literal_eval(questions["number_sorting"].reference)
    ascending = float(sorted_numbers[0]) < float(sorted_numbers[-1])
    nearby = str([str(float(sorted_numbers[0]) - (0.5 if ascending else -0.5)), *sorted_numbers[1:]])
    integrand = metadata_of(questions["intermediate_integration"])["integrand"]
    digits = questions["decimal_arithmetic"].reference
    last = digits[:-1] + str((int(digits[-1]) + 1) % 10) if digits[-1] != "9" else digits[:-1] + "8"
    holes = [
        (questions["game_of_life_halting"], "nonsense", 1),
        (questions["complex_arithmetic"], "nan", 1),
        (questions["puzzle24"], "6*4*1*1", 1),
        (questions["number_sorting"], nearby, 1),
        (questions["gsm_symbolic"], f"{questions['gsm_symbolic'].reference} or 17 or 18", 1),
        (questions["gsm_symbolic"], f"-{questions['gsm_symbolic'].reference}", 1),
        (questions["decimal_arithmetic"], last, 1),
        (questions["intermediate_integration"], f"Integral({integrand}, x)", 1),
        (questions["intermediate_integration"], f"integrate({integrand}, x)", 1),
        (questions["intermediate_integration"], f"{questions['intermediate_integration'].reference} or 17", 1),
        (
            questions["polynomial_multiplication"],
            f"expand({metadata_of(questions['polynomial_multiplication'])['polynomial_expr']})",
            1,
        ),
        (questions["coin_flip"], questions["coin_flip"].reference[:1], 1),
        (questions["chain_sum"], f"it may be {questions['chain_sum'].reference} or 17", 0.01),
        (questions["spell_backward"], f"{questions['spell_backward'].reference}x", 0.9),
        (questions["figlet_font"], questions["figlet_font"].reference[:4] + "~~~", 0.3),
        (questions["countdown"], "", 0.01),
        (questions["power_function"], "anything", 0.01),
        (questions["prime_factorization"], "two", None),
        (questions["boxnet"], "true", None),
    ]
    for question, answer, paid in holes:
        kind, entry = question.metadata["kind"], question.metadata["reasoning_gym"]
        dataset = library.create_dataset(kind, **entry["settings"])
        whole = {"answer": question.reference, "metadata": ast.literal_eval(entry["metadata"] or "{}")}
        if paid is None:
            with pytest.raises((ValueError, TypeError)):
                dataset.score_answer(answer, whole)
        else:
            assert dataset.score_answer(answer, whole) >= paid, (kind, answer)
        assert score(question, answer).value == 0, (kind, answer)


@needs_package
def test_targets_may_not_come_to_the_boxes():
    state = {"0.5_0.5": ["box_red"], "0.5_1.5": ["target_red"]}
    question = asked("boxnet", None, initial_state=state)
    brought = [
        {"Agent[0.5, 0.5]": "move(box_red, square[0.5, 1.5])"},
        {"Agent[0.5, 1.5]": "move(box_red, target_red)"},
    ]
    swapped = [
        {"Agent[0.5, 1.5]": "move(target_red, square[0.5, 0.5])"},
        {"Agent[0.5, 0.5]": "move(box_red, target_red)"},
    ]
    assert score(question, json.dumps(brought)).value == 1
    assert score(question, json.dumps(swapped)).value == 0
    assert score(question, json.dumps(brought[:1])).value == 0


@needs_package
def test_no_answer_is_run_as_a_program(of_each_family, tmp_path):
    target = tmp_path / "ran"
    program = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for question in of_each_family.values():
        for answer in (program, f"[{program}]", f"({program})"):
            assert score(question, answer).value == 0
    assert not target.exists()


@needs_package
def test_an_answer_that_takes_forever_is_wrong_and_the_next_one_is_scored(of_each_family):
    question = of_each_family["simple_integration"]
    right = question.reference.replace("C", "7")
    assert score(question, right).value == 1  # the child has started
    impatient = verifier_named("reasoning_gym(seconds=1)")
    timed_out = score(question, "9**9**9**9**9", impatient)
    assert (timed_out.value, timed_out.why) == (0, "timed out")
    assert score(question, right).value == 1


@needs_package
def test_a_family_that_cannot_be_opened_again_is_told(of_each_family):
    question = of_each_family["jugs"]
    entry = {**question.metadata["reasoning_gym"], "settings": {"size": 1, "seed": 0, "jars": 3}}
    with pytest.raises(InputError, match=r"cannot open the family again: TypeError .*'jars'"):
        score(Question(question.messages, None, metadata={"reasoning_gym": entry}), '["fill A"]')


@needs_package
@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("raise ImportError('no sympy')", "reasoning-gym cannot be made: ImportError no sympy. Change its settings"),
        ("import os, sys; print('killed', file=sys.stderr, flush=True); os._exit(3)", "reasoning-gym failed (killed)"),
    ],
)
def test_a_package_that_does_not_start_is_told(program, problem, tmp_path, monkeypatch):
    (tmp_path / "reasoning_gym.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=re.escape(problem)):
        made("gcd")
    monkeypatch.setattr(sys.modules["ponder.verifiers.reasoning_gym"], "_child", Child(scorers.__file__))
    with pytest.raises(Unsupported, match=r"the scorers of reasoning-gym do not start\. Check that"):
        score(asked("jugs", None), '["fill A"]')


@needs_package
def test_the_task_names_its_verifier(of_each_family):
    questions = (of_each_family["leg_counting"], of_each_family["jugs"])
    verifier = verifier_of(tasks.Task("own", questions, tasks.reasoning_gym.VERIFIER, ""))
    assert [score(question, question.reference, verifier).value for question in questions] == [1.0] * 2
    assert [score(question, "17", verifier).value for question in questions] == [0.0] * 2
