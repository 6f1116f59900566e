"""How each family of models marks its thinking, and how to tell which family a model is of.

A `ThinkingFormat` is data: the markers that the parser looks for, the texts that ponder writes to
begin, close or skip thinking, and the variables that switch it in the model's chat template.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.chat.template import ChatTemplate
from ponder.errors import InputError
from ponder.protocols import ModelInfo
from ponder.types import user

ENDS = (
    "<|im_start|>",  # a model that goes on with another turn
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|end|>",
    "<|call|>",
    "</s>",
    "<end_of_turn>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
)
"""End-of-turn tokens that leak into the text when a server or a script spells them out."""


@dataclass(frozen=True)
class ThinkingFormat:
    """How a model marks its thinking.

    open, close: the markers around thinking; `opens` and `closes` are further spellings of them.
    ends: markers without a meaning for the parser; they are kept out of thinking and answer.
    start: what ponder writes after the generation prompt to begin thinking; "" where the prompt or
        the model does it.
    opened_by_prompt: the generation prompt already ends inside thinking.
    closing: what ponder writes to close thinking when the budget is up.
    skip: what ponder writes after the generation prompt to have an answer without thinking.
    answer_opener: the words that begin an answer, written when the model gives none.
    wait: what ponder writes instead of a closing marker to force more thinking.
    switches_on, switches_off: variables of the chat template that switch thinking on and off.
    effort: the template variable that takes "low", "medium" or "high", where there is one.
    instruction: what is appended to the question to elicit thinking.
    keep_close: the closing marker is itself the beginning of the answer.
    channels: messages carry a header that names their channel (gpt-oss).
    calls_first: calls of tools are marked, and stand at the beginning of what is answered or not at all.
    trained: the model was trained to think in this format.
    """

    name: str
    open: str = "<think>"
    close: str = "</think>"
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    ends: tuple[str, ...] = ENDS
    start: str = ""
    opened_by_prompt: bool = False
    closing: str = "\n</think>\n\n"
    skip: str = ""
    answer_opener: str = "The answer is"
    wait: str = "\nWait"
    switches_on: Mapping[str, Any] = field(default_factory=dict)
    switches_off: Mapping[str, Any] = field(default_factory=dict)
    effort: str = ""
    instruction: str = ""
    keep_close: bool = False
    channels: bool = False
    calls_first: bool = False
    trained: bool = True

    @property
    def open_markers(self) -> tuple[str, ...]:
        """Every spelling of the opening marker, bare of white space; empty where thinking has none."""
        return _bare(self.open, *self.opens)

    @property
    def close_markers(self) -> tuple[str, ...]:
        """Every spelling of the closing marker, bare of white space."""
        return _bare(self.close, *self.closes)

    def inside(self, prompt: str) -> bool:
        """Whether a reply to the rendered `prompt` begins inside thinking.

        Only the very end of the prompt counts: a user may write "<think>" too. A format without an
        opening marker is inside from the start, so ask only where thinking is wanted.
        """
        if not self.open_markers:
            return self.opened_by_prompt
        return prompt.rstrip().endswith(self.open_markers)

    def past(self, prompt: str) -> bool:
        """Whether the rendered `prompt` already ends after thinking, so that the answer comes next."""
        return not self.keep_close and prompt.rstrip().endswith((*self.close_markers, *_bare(self.skip)))

    def begin(self, prompt: str, think: bool) -> str:
        """What to write after the rendered `prompt` so that the model thinks, or does not."""
        if think:
            return "" if self.inside(prompt) else self.start
        if self.open_markers and self.inside(prompt):
            return self.closing
        return "" if self.past(prompt) else self.skip


def _bare(*texts: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


PONDER = ThinkingFormat(
    # An empty block must not stand for a direct answer here: the model would then close every block at once.
    name="ponder",
    start="<think>\n",
    closing="\n</think>\n",
)
THINK_TAGS = ThinkingFormat(name="think-tags", skip="<think>\n\n</think>\n\n")
DEEPSEEK_R1 = replace(THINK_TAGS, name="deepseek-r1", start="<think>\n")
DEEPSEEK_V3_1 = ThinkingFormat(
    name="deepseek-v3.1",
    start="<think>",
    closing="</think>",
    skip="</think>",
    switches_on={"thinking": True},
    switches_off={"thinking": False},
)
QWQ = replace(THINK_TAGS, name="qwq", start="<think>\n")
QWEN3 = replace(
    THINK_TAGS,
    name="qwen3",
    switches_on={"enable_thinking": True},
    switches_off={"enable_thinking": False},
)
MISTRAL = ThinkingFormat(name="mistral", open="[THINK]", close="[/THINK]", start="[THINK]", closing="[/THINK]")
GPT_OSS = ThinkingFormat(
    name="gpt-oss",
    open="<|channel|>analysis<|message|>",
    close="<|end|>",
    closing="<|end|><|start|>assistant<|channel|>final<|message|>",
    skip="<|channel|>final<|message|>",
    switches_on={"reasoning_effort": "medium"},
    switches_off={"reasoning_effort": "low"},
    effort="reasoning_effort",
    channels=True,
)
GEMMA = ThinkingFormat(
    name="gemma",
    open="<|channel>thought",
    close="<channel|>",
    ends=(*ENDS, "<eos>", "<|think|>", "<|channel>final"),
    closing="\n<channel|>",
    skip="<|channel>thought\n<channel|>",
    switches_on={"enable_thinking": True},
    switches_off={"enable_thinking": False},
)
GRANITE = ThinkingFormat(
    name="granite",
    # A response that begins ends the thinking, even where the model forgot to close it.
    closes=("<response>",),
    ends=(*ENDS, "</response>"),
    closing="</think>\n<response>",
    switches_on={"thinking": True},
    switches_off={"thinking": False},
)
GRANITE_PHRASES = replace(
    GRANITE,
    name="granite-phrases",
    open="Here is my thought process:",
    close="Here is my response:",
    opens=("Here's my thought process:",),
    closes=("Here's my response:",),
    ends=ENDS,
    closing="\n\nHere is my response:\n\n",
)
ELICIT = ThinkingFormat(
    name="elicit",
    open="",
    close="The answer is",
    closes=("the answer is", "The final answer is", "the final answer is"),
    # A model that was trained to think may use its tags here too; they must not reach the answer.
    ends=(*ENDS, "<think>", "</think>"),
    opened_by_prompt=True,
    closing="\nThe answer is",
    instruction="Let's think step by step. Finish with one line that says: The answer is ...",
    keep_close=True,
    trained=False,
)
"""Thinking step by step, asked for in words: usable on any model."""

NOT_TRAINED = ELICIT
"""The format of a model that was never trained to think."""

FAMILIES: Mapping[str, ThinkingFormat] = {
    family.name: family
    for family in (
        PONDER,
        THINK_TAGS,
        DEEPSEEK_R1,
        DEEPSEEK_V3_1,
        QWQ,
        QWEN3,
        MISTRAL,
        GPT_OSS,
        GEMMA,
        GRANITE,
        GRANITE_PHRASES,
        ELICIT,
    )
}

METADATA_KEY = "ponder.thinking"


def detect(info: ModelInfo) -> ThinkingFormat:
    """The format of the model: what its metadata says, else what its chat template shows.

    Metadata `ponder.thinking` is a mapping of fields of `ThinkingFormat` (or the same as JSON text);
    a `name` out of `FAMILIES` lends it the fields that it leaves out. Raises InputError for fields
    that do not exist or have values of another type.
    """
    stated = info.metadata.get(METADATA_KEY)
    if stated is not None:
        return _from_metadata(stated)
    if not info.chat_template:
        return NOT_TRAINED
    return _from_template(ChatTemplate(info.chat_template, info.bos, info.eos))


def _from_metadata(stated: Any) -> ThinkingFormat:
    if isinstance(stated, str):
        try:
            stated = json.loads(stated)
        except ValueError as error:
            raise InputError(f"{METADATA_KEY} is not JSON: {error}", "Write it as a JSON object of fields") from error
    if not isinstance(stated, Mapping):
        raise InputError(f"{METADATA_KEY} must be a mapping of fields, not {stated!r}", 'Try {"name": "qwen3"}')
    base = FAMILIES.get(str(stated.get("name", "")), ThinkingFormat(name="custom"))
    known = {each.name: type(getattr(base, each.name)) for each in dataclasses.fields(ThinkingFormat)}
    return replace(base, **{key: _checked(key, value, known) for key, value in stated.items()})


def _checked(key: str, value: Any, known: Mapping[str, type]) -> Any:
    if key not in known:
        raise InputError(f"{METADATA_KEY} has no field {key!r}", f"Fields are: {', '.join(known)}")
    if known[key] is tuple and isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if not isinstance(value, known[key]) or known[key] is tuple:
        wanted = "list of strings" if known[key] is tuple else known[key].__name__
        raise InputError(f"{METADATA_KEY} has {key}={value!r}", f"Make it a {wanted}")
    return value


def _from_template(template: ChatTemplate) -> ThinkingFormat:
    family = _family(template)
    if family.open_markers and family.close.startswith("</think"):
        # The same tags come with prompts that open the block and prompts that leave it to the model.
        opened = family.inside(_generation_prompt(template, family.switches_on))
        return replace(family, opened_by_prompt=opened)
    return family


def _family(template: ChatTemplate) -> ThinkingFormat:
    source, variables = template.source, template.variables
    if "<|channel|>" in source and "<|message|>" in source:
        return GPT_OSS
    if "<|channel>" in source:
        return GEMMA
    if "[THINK]" in source:
        return MISTRAL
    if "Here is my thought process:" in source:
        return GRANITE_PHRASES
    if "<think>" in source and "<response>" in source:
        return GRANITE
    if "<｜Assistant｜>" in source and "</think>" in source:
        return DEEPSEEK_V3_1 if "thinking" in variables else DEEPSEEK_R1
    if "<think>" not in source:
        return NOT_TRAINED
    if "enable_thinking" in variables:
        return QWEN3
    if "thinking" in variables:
        return replace(THINK_TAGS, switches_on={"thinking": True}, switches_off={"thinking": False})
    return QWQ if QWQ.inside(_generation_prompt(template, {})) else THINK_TAGS


def _generation_prompt(template: ChatTemplate, switches: Mapping[str, Any]) -> str:
    return template.render((user("Hello"),), **switches)
