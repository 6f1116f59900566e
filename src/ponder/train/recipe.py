"""A recipe: everything that decides what a training run does, as a TOML file. docs/training.md describes it.

    kind = "sft"
    model = "ponder-135m"
    adapter = "own"
    steps = 200
    batch = 16

    [optimizer]
    rate = 1e-4

    [data]
    sources = ["examples.jsonl", { from = "generated:word_problems", count = 2000, seed = 1 }]

What a recipe leaves out has the value here. What it misspells, contradicts or does not need is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ponder.errors import InputError

SEE = "See docs/training.md"
Kind = Literal["sft", "grpo", "reward", "distill", "dpo"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OWN = "own"
"""The adapter that the model comes with."""
STORED = ".safetensors"
TRACES, GSM8K, GYM, GENERATED = "traces", "gsm8k:", "gym:", "generated:"

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=1, le=5)]
Several = Field(strict=False)  # TOML has arrays, and these are tuples


def _one_or_table(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class Table(BaseModel):
    """A table of the file: what it may hold is what its class names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class NewModel(Table):
    """Weights drawn anew, for a decoder of the Llama line, with the tokenizer of another model.

    groups: heads of keys and values (None: as many as heads). feed_forward: width (None: 4 * hidden). tied: one matrix
    for embeddings and head.
    """

    tokenizer: str
    hidden: Count
    layers: Count
    heads: Count
    groups: Count | None = None
    feed_forward: Count | None = None
    context: Count = 1024
    tied: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise clash(f"hidden = {self.hidden} does not share out evenly to heads = {self.heads}, in even parts")
        if self.heads % (self.groups or 1):
            raise clash(f"heads = {self.heads} does not share out evenly to groups = {self.groups}")
        return self


class Lora(Table):
    """A low-rank adapter, which alone is trained."""

    rank: Count = 16
    alpha: Positive = 32.0
    targets: Annotated[tuple[str, ...], Several] = PROJECTIONS
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Optimizing(Table):
    """AdamW. rate: the highest learning rate. warmup: steps. floor: share of the rate at the end. clip: of the norm."""

    rate: Positive = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    floor: Share = 0.0
    decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Annotated[tuple[Share, Share], Several] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    clip: Positive | None = 1.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.floor and self.schedule == "constant":
            raise clash('floor says nothing to schedule = "constant"', "Take cosine or linear, or leave it out")
        return self


class Source(Table):
    """Where examples or questions are from, and how many of them are taken.

    from: a file, traces, gsm8k:FILE, gym:FAMILY or generated:word_problems: see `ponder.train.sources`. count,
    difficulty (1 to 5; several take turns) and seed are of what is generated. search: of traces, what they hold.
    """

    source: str = Field(alias="from")
    limit: Count | None = None
    count: Count | None = None
    difficulty: Annotated[tuple[Level, ...], BeforeValidator(_listed), Several] | None = None
    seed: int | None = None
    search: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.source.partition(":")[0] + ":"
        if self.search is not None and self.source != TRACES:
            raise clash(f"search is of traces, not of {self.source!r}")
        if self.difficulty is not None and kind != GENERATED:
            raise clash(f"difficulty is of what is generated, not of {self.source!r}")
        for name in ("count", "seed"):
            if getattr(self, name) is not None and kind not in (GENERATED, GYM):
                raise clash(f"{name} is of what is generated, not of {self.source!r}", "limit takes the first ones")
        if self.difficulty == ():
            raise clash("difficulty is empty", "Give levels from 1 to 5, which take turns")
        return self


class Data(Table):
    """What is learnt from.

    keep_out: files of evaluation sets; what shares something with them is left out, and counted. direct: share of the
    examples that are learnt without their thinking.
    """

    sources: Annotated[
        tuple[Annotated[Source, BeforeValidator(_one_or_table)], ...], BeforeValidator(_listed), Field(strict=False)
    ]

    keep_out: Annotated[tuple[str, ...], Several] = ()
    direct: Share = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.sources:
            raise clash("sources is empty", "Name a file of examples, or generated:word_problems")
        return self


class Tracking(Table):
    """Where metrics go beside the run's own folder."""

    tensorboard: bool = False
    wandb: str | None = None
    """The name of a project there."""


class Grpo(Table):
    """Reinforcement learning: see `ponder.train.grpo.Settings`, and `rewards.Rewards` for what a length earns.

    rewards: verifiers, as expressions, with their weights; the first says what is right. process_reward: a verifier of
    steps, which counts with weight `process`. judge: the uri of the engine that verifiers ask, where they ask one, and
    judge_adapters what it is opened with. answer: tokens that stay for it when the thinking is cut. rollouts: "local",
    or the uri of an engine. slots: samples that are drawn side by side. tools: what the model may call in a sample, as
    `ponder.train.tools` names it; turns: of the model in a sample, at the most.
    """

    prompts: Count = 16
    samples: Annotated[int, Field(ge=2)] = 8
    max_tokens: Count = 256
    thinking: Count | None = None
    answer: Count = 32
    budgets: Annotated[tuple[Count, ...], Several] = ()
    temperature: Positive = 1.0
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo"] = "dapo"
    clip_low: Annotated[float, Field(ge=0)] = 0.2
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    ceiling: Positive | None = None
    beta: Annotated[float, Field(ge=0)] = 0.0
    scale: Literal["group", "batch", "none"] = "group"
    dynamic: Annotated[int, Field(ge=0)] = 0
    minibatches: Count = 1
    passes: Count = 1
    old: Literal["sampler", "trainer"] = "sampler"
    importance: Positive | None = None
    drop_truncated: bool = False
    rewards: dict[str, float] = {"math_answer()": 1.0}
    length_reward: Literal["none", "exact", "maximum"] = "none"
    alpha: Positive = 0.0003
    delta: float = 0.5
    overlong: Annotated[int, Field(ge=0)] = 0
    process: Annotated[float, Field(ge=0)] = 0.0
    process_reward: str | None = None
    judge: str | None = None
    judge_adapters: Annotated[tuple[str, ...], Several] = ()
    rollouts: str = "local"
    slots: Count = 64
    part: Count = 1024
    keep_rollouts: Count | None = None
    tools: Annotated[tuple[str, ...], Several] = ()
    turns: Count = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _tools(self.tools, self.turns)
        if not self.rewards:
            raise clash("rewards is empty", 'Name a verifier, such as "math_answer()" = 1.0')
        for text in [*self.rewards, *([self.process_reward] if self.process_reward else [])]:
            _verifier(text, self.judge)
        if self.length_reward != "none" and not self.budgets:
            raise clash(f'length_reward = "{self.length_reward}" measures budgets, and there are none', "Set budgets")
        if self.budgets and max(self.budgets) > self.max_tokens:
            raise clash(f"budgets go up to {max(self.budgets)}, beyond max_tokens = {self.max_tokens}")
        if self.budgets and self.thinking is not None:
            raise clash("thinking and budgets both bound the thinking", "Leave one out")
        if self.overlong > self.max_tokens:
            raise clash(f"overlong = {self.overlong} is beyond max_tokens = {self.max_tokens}")
        if self.importance is not None and self.old == "sampler":
            raise clash(
                'importance corrects from the sampler to the trainer, and old = "sampler"', 'Set old = "trainer"'
            )
        if self.ceiling is not None and self.loss != "cispo":
            raise clash(f'ceiling is of cispo, and loss = "{self.loss}"', "Leave it out")
        if bool(self.process) != bool(self.process_reward):
            raise clash("process is the weight of process_reward: one says nothing without the other", "Give both")
        if self.minibatches > self.prompts * self.samples:
            raise clash(f"minibatches = {self.minibatches} is more than prompts * samples")
        return self


class Dpo(Table):
    """Learning from pairs: see `ponder.train.preference` for kind, beta, smoothing, `dpo` for reference.

    Of traces, where `verifier` (or any) scored samples: pairs whose scores differ by more than `gap`; matched: of like
    lengths.
    """

    beta: Positive = 0.1
    kind: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    reference: Literal["initial", "base", "none"] = "initial"
    matched: bool = False
    gap: Annotated[float, Field(ge=0)] = 0.0
    verifier: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.smoothing and self.kind not in ("sigmoid", "robust"):
            raise clash(f'smoothing says nothing to kind = "{self.kind}"', "Leave it out, or take sigmoid or robust")
        return self


class Distill(Table):
    """Learning from a teacher: its verified traces, or its distributions. See `ponder.train.distill`.

    way: traces (those that score at least `threshold`, `most` a question), or the divergence from `teacher`: a model,
    or a file that `ponder.train.teacher.store` wrote. on_policy: share of the rows that the student samples itself, of
    max_tokens at the most. mixture: the teacher's share in the middle of jensen_shannon.
    """

    teacher: str | None = None
    way: Literal["traces", "forward", "reverse", "jensen_shannon"] = "forward"
    on_policy: Share = 0.0
    temperature: Positive = 1.0
    mixture: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_tokens: Count | None = None
    slots: Count = 64
    threshold: float | None = None
    most: Count | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        traces = self.way == "traces"
        if traces == (self.teacher is not None):
            raise clash('way = "traces" has its teacher in the data' if traces else "teacher is missing", SEE)
        if not traces and (self.threshold is not None or self.most is not None):
            raise clash(f'threshold and most are of way = "traces", and way = "{self.way}"', "Leave them out")
        if self.mixture is not None and self.way != "jensen_shannon":
            raise clash(f'mixture is of jensen_shannon, and way = "{self.way}"', "Leave it out")
        if self.on_policy and self.way == "traces":
            raise clash('on_policy needs the teacher\'s distributions, and way = "traces"', 'Take "reverse"')
        if bool(self.on_policy) != (self.max_tokens is not None):
            raise clash("max_tokens is of on_policy samples: one says nothing without the other", "Give both")
        return self


class Reward(Table):
    """A reward model. kind: of the outcome, or of each step (process). See `ponder.train.reward_model`.

    An outcome is labelled by the score that `verifier` (or any) gave it; a step by the label that its trace holds, else
    by whether its equations, and those before it, are right. marker, plus, minus: what is asked after what is judged,
    and its two answers. held_out: share that is only measured.
    """

    kind: Literal["outcome", "process"] = "process"
    verifier: str | None = None
    marker: str | None = None
    plus: str = "+"
    minus: str = "-"
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.plus == self.minus:
            raise clash(f"plus and minus are both {self.plus!r}")
        return self


class Recipe(Table):
    """A training run. One of steps and epochs says how long, one of full, lora and adapter what is trained.

    tokens: of a micro-batch, packed. longest: examples of more tokens are left out, and counted. precision: of the
    products; weights: how they are kept (masters are float32 in any case). adapter: one to go on from, a folder, a
    GGUF file, or "own" for the one that the model comes with. thinking: markers of a model that is to be taught to
    think, by the name of a model that has them.
    """

    version: Literal[1] = 1
    kind: Kind
    model: str | NewModel
    thinking: str | None = None
    seed: int = 0
    steps: Count | None = None
    epochs: Positive | None = None
    batch: Count | None = None
    tokens: Count = 8192
    longest: Count = 1024
    precision: Literal["float32", "bfloat16"] = "float32"
    weights: Literal["float32", "bfloat16"] = "float32"
    full: bool = False
    adapter: str | None = None
    save_every: Annotated[int, Field(ge=0)] = 50
    keep: Count = 2
    sharing: Literal["ddp", "fsdp"] = "ddp"
    lora: Lora | None = None
    optimizer: Optimizing = Optimizing()
    data: Data
    track: Tracking = Tracking()
    grpo: Grpo | None = None
    dpo: Dpo | None = None
    distill: Distill | None = None
    reward: Reward | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._own_table_alone()
        if (self.steps is None) == (self.epochs is None):
            both = self.steps is not None
            raise clash("steps and epochs both say how long" if both else "nothing says how long", "Give one of both")
        trained = [name for name in ("full", "lora", "adapter") if getattr(self, name)]
        if len(trained) != 1:
            said = " and ".join(trained) + " contradict each other" if trained else "nothing is said to be trained"
            raise clash(said, "Give one of full = true, a [lora] table, and adapter")
        if isinstance(self.model, NewModel) and not self.full:
            raise clash(f"[model] draws new weights, and {trained[0]} would train none of them", "Set full = true")
        if self.weights == "bfloat16" and self.precision == "float32":
            raise clash('weights = "bfloat16" cannot be computed in float32', 'Set precision = "bfloat16"')
        if self.longest > self.tokens:
            raise clash(f"longest = {self.longest} does not fit into tokens = {self.tokens}", "Raise tokens")
        if self.steps is not None and self.optimizer.warmup >= self.steps:
            raise clash(f"optimizer.warmup = {self.optimizer.warmup} leaves none of steps = {self.steps}")
        return self

    def _own_table_alone(self) -> None:
        tables = ("grpo", "dpo", "distill", "reward")
        for name in tables:
            if getattr(self, name) is not None and name != self.kind:
                raise clash(f'[{name}] is of another kind than kind = "{self.kind}"', "Leave one of both out")
        if self.kind == "distill" and self.distill is None:
            raise clash("the [distill] table is missing", "Name the teacher in it")
        if self.distill is not None and self.distill.teacher is not None and self.distill.teacher.endswith(STORED):
            self._read_by_teacher(self.distill)
        if self.dpo is not None and self.dpo.reference == "base" and self.full:
            raise clash('dpo.reference = "base" is the model without its adapter, and full trains none', "Leave it out")
        if self.kind == "grpo" and self.sharing == "fsdp" and (self.grpo or Grpo()).rollouts == "local":
            raise clash('the local sampler reads whole weights, and sharing = "fsdp" has none', 'Take "ddp"')
        if self.kind == "grpo" and self.batch is not None:
            raise clash("batch says nothing to grpo", "Set grpo.prompts and grpo.samples")

    @staticmethod
    def _read_by_teacher(told: Distill) -> None:
        if told.way != "forward" or told.on_policy:
            raise clash(
                f"distill.teacher = {told.teacher!r} holds what a teacher said: it has the forward divergence alone",
                'Set way = "forward" and on_policy = 0, or name a model',
            )

    @property
    def size(self) -> int:
        """Items a step: rows, pairs, or questions."""
        return (self.grpo or Grpo()).prompts if self.kind == "grpo" else self.batch or 16


class Clash(ValueError):
    """Settings that contradict each other; `mend` says what to do."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem, self.mend = problem, mend


def clash(problem: str, mend: str = "Change one of them") -> Clash:
    """An error for a validator to raise."""
    return Clash(problem, mend)


def _verifier(text: str, judge: str | None) -> None:
    from ponder.verifiers.naming import verifier_named

    try:
        verifier = verifier_named(text)
    except InputError as error:
        raise clash(error.problem, error.mend) from None
    if hasattr(verifier, "with_model") and judge is None:
        raise clash(f"{text} asks a model, and none is named", 'Name its engine: judge = "gguf:ponder-135m", say')


def _tools(given: tuple[str, ...], turns: int) -> None:
    from ponder.train.tools import tools_named

    try:
        tools_named(given)
    except InputError as error:
        raise clash(error.problem, error.mend) from None
    if given and turns == 1:
        raise clash("tools are answered between turns, and turns = 1", "Set turns = 3, say")
    if turns > 1 and not given:
        raise clash(f"turns = {turns} says nothing without tools", 'Set tools = ["calculator()"], say, or leave it out')
