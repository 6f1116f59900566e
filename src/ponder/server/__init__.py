"""One endpoint that thinks under a budget: the dialects of OpenAI and Anthropic in front of engines and upstreams.

wire -> dialect -> Request -> desk (key, limits, ledger) -> backend -> events -> dialect -> wire
"""
