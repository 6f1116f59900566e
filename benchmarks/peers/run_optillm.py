"""optillm on a file of questions: a line of JSON for each.

    python benchmarks/peers/run_optillm.py METHOD QUESTIONS --url URL [--n 8] [--temperature 0.7] [--max-tokens 256]

METHOD is self_consistency, best_of_n ("bon") or majority_voting (its plugin, which votes on extracted
answers). They are called as functions, since its proxy fixes n at 5 for self_consistency, sets one n
for all requests of best_of_n, and puts "User: " before each question.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lines import Account, Found, parser, questions, slots
from openai import OpenAI

THEIRS = 1
"""The temperature that optillm has written into self_consistency and bon; its rating requests have another one."""

SYSTEM = ""
"""optillm always sends a system message; serve.py takes an empty one for none."""


@dataclass
class Client:
    """Samples at the temperature that is asked for, and keeps what was sampled; else the client it is given.

    optillm calls `client.chat.completions.create`.
    """

    client: OpenAI
    temperature: float
    as_it_comes: bool = False
    samples: list[str] = field(default_factory=list)

    @property
    def chat(self) -> Client:
        return self

    @property
    def completions(self) -> Client:
        return self

    def create(self, **request: Any) -> Any:
        """A chat completion. Requests at another temperature are ratings, and go through as they are."""
        sampling = request["temperature"] in (THEIRS, self.temperature)
        if sampling and not self.as_it_comes:
            request["temperature"] = self.temperature
        reply = self.client.chat.completions.create(**request)
        if sampling:
            self.samples += [choice.message.content or "" for choice in reply.choices]
        return reply


Method = Callable[[str, Client, int, int], str]


def self_consistency(question: str, client: Client, n: int, max_tokens: int) -> str:
    """n requests one after the other; the first text of the largest cluster of similar texts."""
    from optillm.self_consistency import AdvancedSelfConsistency

    voting = AdvancedSelfConsistency(client, "model", num_samples=n, request_config={"max_tokens": max_tokens})
    clusters = voting.evaluate(SYSTEM, question)["aggregated_result"]["clusters"]
    return str(clusters[0]["answer"]) if clusters else ""


def best_of_n(question: str, client: Client, n: int, max_tokens: int) -> str:
    """One request for n samples, then the model is asked to rate each, one after the other."""
    from optillm.bon import best_of_n_sampling

    chosen, _ = best_of_n_sampling(SYSTEM, question, client, "model", n=n, request_config={"max_tokens": max_tokens})
    return str(chosen)


def majority_voting(question: str, client: Client, n: int, max_tokens: int) -> str:
    """One request for n samples; the first text whose extracted answer is the most frequent."""
    from optillm.plugins.majority_voting_plugin import run

    config = {"k": n, "temperature": client.temperature, "max_tokens": max_tokens}
    chosen, _ = run(SYSTEM, question, client, "model", request_config=config)
    return str(chosen)


METHODS: dict[str, Method] = {
    "self_consistency": self_consistency,
    "best_of_n": best_of_n,
    "majority_voting": majority_voting,
}


def main() -> None:
    """Asks everything, one question after the other."""
    arguments = parser(__doc__, tuple(METHODS))
    arguments.add_argument("--as-it-comes", action="store_true", help="leave optillm's own temperature of 1")
    asked = arguments.parse_args()
    if asked.n > (most := slots(asked.url)):  # optillm would silently ask for one sample after the other
        arguments.error(f"--n {asked.n} is more than the server's {most} slots")
    import optillm  # noqa: F401 - so that loading it is in no question's time

    logging.getLogger().setLevel(logging.WARNING)
    official = OpenAI(base_url=f"{asked.url}/v1", api_key="none")
    account, method = Account(asked.url), METHODS[asked.method]
    for question in questions(asked.questions):
        client = Client(official, asked.temperature, asked.as_it_comes)
        with account.running():
            chosen = method(question.text, client, asked.n, asked.max_tokens)
        print(account.line(question, Found(chosen, client.samples)), flush=True)


if __name__ == "__main__":
    main()
