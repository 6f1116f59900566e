"""Texts as token ids and back, under the paths that vLLM has for it: what evaluations of likelihood measure texts with.

POST /tokenize        {model, prompt} or {model, messages}  ->  {tokens, count, max_model_len}
POST /detokenize      {model, tokens}  ->  {prompt}
GET  /tokenizer_info  ?model=  ->  {bos_token, eos_token, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ponder.errors import EngineError
from ponder.server.app import Route
from ponder.server.desk import Desk
from ponder.server.failures import Refusal
from ponder.server.http import Exchange
from ponder.server.json_body import parsed
from ponder.server.local import Local
from ponder.server.openai_completions import token_ids
from ponder.server.openai_failures import failure
from ponder.server.openai_messages import messages_of, tools_of


@dataclass(frozen=True)
class Tokens:
    """Answers with the tokenizers of the models that ponder runs itself. A body without a model means the first one."""

    desk: Desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route("POST", "/tokenize", self.tokenize, failure),
            Route("POST", "/detokenize", self.detokenize, failure),
            Route("GET", "/tokenizer_info", self.info, failure),
        )

    async def tokenize(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /tokenize: the token ids of a text, or of messages as the model reads them."""
        body = parsed(await exchange.body())
        body.only("model", "prompt", "messages", "tools", "add_special_tokens", "add_generation_prompt")
        body.flag("add_special_tokens")
        body.flag("add_generation_prompt")
        tools = tools_of(body)
        local = self._local(body.text("model", ""))
        if body.has("messages"):
            ids = (await local.model.prompt(messages_of(body), False, tools)).ids
        else:
            ids = tuple(await local.model.engine.tokenize(body.need_text("prompt", empty=True)))
        context = local.model.engine.info.context
        await exchange.json({"tokens": list(ids), "count": len(ids), "max_model_len": context})

    async def detokenize(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """POST /detokenize: the text of token ids."""
        body = parsed(await exchange.body())
        body.only("model", "tokens")
        local = self._local(body.text("model", ""))
        body.need("tokens")
        ids = body.items("tokens")
        try:
            text = await local.model.engine.detokenize(token_ids(ids, "tokens")) if ids else ""
        except (ValueError, EngineError) as error:
            raise body.wrong("tokens", str(error)) from None
        await exchange.json({"prompt": text})

    async def info(self, exchange: Exchange, names: Mapping[str, str]) -> None:
        """GET /tokenizer_info: the tokens that begin and end a text, and the chat template."""
        info = self._local(exchange.query.get("model", "")).model.engine.info
        told = {"bos_token": info.bos or None, "eos_token": info.eos or None, "chat_template": info.chat_template}
        await exchange.json({"tokenizer_class": "ponder", **told})

    def _local(self, model: str) -> Local:
        backend, served = self.desk.find(model)
        if not isinstance(backend, Local) or not backend.model.engine.capabilities.tokens:
            raise Refusal(501, "api_error", f"{served.name} is behind a server that shows no tokens", "ask that server")
        return backend
