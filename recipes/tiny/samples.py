"""What the models of this recipe say to questions of the training data: samples, each step judged right or wrong.

The judge knows the chain and the table, so it finds slips in copying as well as in looking up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import chains

from ponder.data.examples import Example
from ponder.data.step_labels import MOST_STEPS
from ponder.engine.torch_sampler import Job
from ponder.train.model import load
from ponder.train.sampling import sampler_of
from ponder.train.texts import Texts
from ponder.types import Sample, Score, Scored, Trace, to_json
from ponder.verifiers.reward_model import step_ends

CONTEXT = 256
LONGEST = 96
"""Tokens of an answer with its thinking, at the most."""
JUDGE = "chain_steps"


def write_samples(model: Path, examples: Sequence[Example], n: int, path: Path, slots: int = 96) -> None:
    """`n` samples of each question at temperature 1 as traces, in a file, each with the score of its steps."""
    loaded = load(str(model))
    texts = Texts.of(loaded)
    sampler = sampler_of(loaded, texts, CONTEXT, slots)
    jobs = [Job(tuple(texts.prompt(each.prompt)), n, LONGEST, seed=seed) for seed, each in enumerate(examples)]
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for example, job, drawn in zip(examples, jobs, sampler.sample(jobs), strict=True):
            said = [
                texts.read(Sample(index, "", job.prompt, one.ids, one.mask, one.logprobs, one.finish))
                for index, one in enumerate(drawn)
            ]
            file.write(to_json(judged(example, said)) + "\n")
    part.replace(path)


def judged(example: Example, samples: Sequence[Sample]) -> Trace:
    """The samples of a question as a trace; a sample's score is whether its answer is right."""
    events = [
        Scored(
            Score(float(sample.answer.strip() == example.reference), JUDGE, steps=right_steps(example, sample)), index
        )
        for index, sample in enumerate(samples)
    ]
    return Trace(example.question, example.asked(), samples=tuple(samples), events=tuple(events))


def write_direct(examples: Sequence[Example], path: Path) -> None:
    """Right answers without thinking as traces in a file, so that a student learns to answer at once, too."""
    said = [Sample(0, each.answer, finish="stop", answer=each.answer) for each in examples]
    traces = [judged(example, [sample]) for example, sample in zip(examples, said, strict=True)]
    path.write_text("".join(to_json(trace) + "\n" for trace in traces), "utf-8")


def right_steps(example: Example, sample: Sample) -> tuple[float, ...]:
    """1 for each step that is the right one after those before it, whatever they came to; 0 for a slip.

    So a reward model is asked what it can see: the operation of the question, the digit before, the result; and of the
    answer, whether it is what the last of all operations came to.
    """
    ends = step_ends(sample.text, sample.spans, MOST_STEPS)
    value, *operations = example.question.split()
    right = []
    for number, (begin, end) in enumerate(pairwise((0, *ends))):
        line = sample.text[begin:end].split()[-1]  # the end of thinking stands before the answer
        after = chains.step(operations[number], value) if number < len(operations) else value
        right.append(float(number <= len(operations) and line == after))
        value = line[-1:]
    return tuple(right)
