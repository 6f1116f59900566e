"""Prices: public ones, one's own, and what one's own machine costs. What is unknown is never nothing."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.ops.prices import Prices, Rate

FILE = """
[local]
dollars_per_second = 0.0001
dollars_per_exaflop = 0.02

[models."openai/gpt-4o"]
prompt = 1
cached = 0.5
output = 2

[models."ollama/*"]
prompt = 0
output = 0

[models."My-Model"]
prompt = 0.3
output = 0.6
"""


def read(tmp_path: Path, text: str) -> Prices:
    (tmp_path / "prices.toml").write_text(text, encoding="utf-8")
    return Prices.read(tmp_path / "prices.toml")


def test_what_is_unknown_has_no_price() -> None:
    prices = Prices()
    assert prices.rate("openai", "gpt-nonsense") is None
    assert prices.rate("nobody", "gpt-4o") is None
    assert prices.rate("", "gpt-4o") is None  # a model of this name on one's own server is not the cloud's
    assert prices.rate("http://127.0.0.1:8000/v1", "gpt-4o") is None
    assert prices.rate("local", "ponder-135m") is None
    assert prices.rate("mistral", "mistral-ocr-2503") is None  # by the page
    assert prices.rate("openai", "gpt-nonsense") is None  # once more: what was not found is remembered as that


@pytest.mark.parametrize("prompt", [1_000, 300_000])
def test_public_prices_are_those_of_the_data(prompt: int) -> None:
    """Every tenth model that the data has, short and long prompts: the dollars are those of the package's own sums."""
    prices, now, compared = Prices(), datetime.now(UTC), 0
    models = [(provider.id, model.id) for provider in get_snapshot().providers for model in provider.models]
    for provider, model in itertools.islice(models, 0, None, 10):
        rate = prices.rate(provider, model, prompt_tokens=prompt, at=now)
        if rate is None or rate.request:
            continue
        usage = Usage(input_tokens=prompt, cache_read_tokens=900, output_tokens=500)
        theirs = calc_price(usage, model, provider_id=provider, genai_request_timestamp=now).total_price * 10**6
        micro = rate.micro(prompt, 900, 500)
        assert micro is not None
        assert 0 <= micro - theirs < 1, (provider, model)
        compared += 1
    assert compared > 100


def test_a_server_is_known_by_its_address() -> None:
    prices = Prices()
    assert prices.rate("https://api.openai.com/v1", "gpt-4o") == prices.rate("openai", "gpt-4o") is not None


def test_prices_of_some_hours_and_by_the_request() -> None:
    prices = Prices()
    day, night = (
        prices.rate("deepseek", "deepseek-chat", at=datetime(2026, 1, 5, hour, tzinfo=UTC)) for hour in (12, 20)
    )
    assert day is not None
    assert night is not None
    assert night.output < day.output
    sonar = prices.rate("perplexity", "sonar")
    assert sonar is not None
    assert sonar.request > 0
    assert sonar.micro() == sonar.request * 10**6


def test_a_file_goes_before_the_public_prices(tmp_path: Path) -> None:
    prices = read(tmp_path, FILE)
    assert prices.rate("openai", "GPT-4o") == Rate(Decimal(1), Decimal("0.5"), Decimal(2), Decimal(1))
    assert prices.rate("ollama", "anything") == Rate()
    assert prices.rate("anywhere", "my-model") == Rate(*map(Decimal, ("0.3", "0.3", "0.6", "0.3")))
    assert prices.rate("openai", "gpt-4o-mini") == Prices().rate("openai", "gpt-4o-mini") is not None


def test_one_s_own_machine_stands_in_the_same_table(tmp_path: Path) -> None:
    rate = read(tmp_path, FILE).rate("local", "ponder-135m")
    assert rate is not None
    assert rate.micro(100, 0, 50, seconds=2.0, flops=5e16) == 200 + 1000
    assert rate.micro(100, 0, 50, seconds=2.0) is None  # the operations are not known, and are not free
    assert rate.micro(100, 0, 50, flops=1.0) is None
    assert rate.most(100, 50, seconds=10.0, flops=5e16) == 1000 + 1000


def test_a_machine_that_is_free_has_to_be_said_to_be(tmp_path: Path) -> None:
    assert read(tmp_path, "[local]\ndollars_per_second = 0").rate("local", "m") == Rate()
    assert Rate().micro(10**6, 0, 10**6) == 0


def test_the_file_is_looked_for_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path))
    assert Prices.read().rate("local", "m") is None
    (tmp_path / "prices.toml").write_text(FILE)
    assert Prices.read().rate("local", "m") is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[lokal]\n", "has a table 'lokal'"),
        ("models = 3", "models is no table"),
        ("[local]\nprompt = 1", "local states 'prompt'"),
        ("[local]\n", "local states no price"),
        ('[models."a"]\nprompt = 1', "only one of prompt and output"),
        ('[models."a"]\nprompt = -1\noutput = 1', "prompt is -1"),
        ('[models."a"]\nprompt = nan\noutput = 1', "prompt is NaN"),
        ('[models."a"]\nprompt = "1"\noutput = 1', "prompt is 1"),
        ('[models."a"]\nprompt = true\noutput = 1', "prompt is True"),
        ('[models."a"]\nprice = 1', "states 'price'"),
        ("[models", "is no TOML"),
    ],
)
def test_a_wrong_file_is_said_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        read(tmp_path, text)
    assert "prices.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        Prices.read(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        Prices.read(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match="cannot be read"):
        Prices.read(tmp_path / "latin.toml")


PRICE = st.decimals(0, 1000, places=4)
COUNT = st.integers(0, 10**6)


@given(st.builds(Rate, PRICE, PRICE, PRICE, PRICE, PRICE), COUNT, COUNT, COUNT, st.floats(0, 1), st.floats(0, 1))
def test_nothing_costs_more_than_the_most(
    rate: Rate, prompt: int, completion: int, most: int, cached_share: float, written_share: float
) -> None:
    cached = int(prompt * cached_share)
    written = int((prompt - cached) * written_share)
    micro = rate.micro(prompt, cached, min(completion, most), cache_written=written)
    worst = rate.most(prompt, most)
    assert micro is not None
    assert worst is not None
    assert micro <= worst


@given(st.integers(1, 10**6), st.decimals("0.0001", 100, places=4))
def test_what_is_used_is_never_free(tokens: int, price: Decimal) -> None:
    assert Rate(output=price).micro(0, 0, tokens) == -(-tokens * int(price * 10**4) // 10**4) > 0
