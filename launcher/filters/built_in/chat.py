"""A chat model that judges content, as Llama Guard and ShieldGemma do, by an OpenAI-style URL: `chat:URL`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from launcher.filters.protocol import Picture, Prompt, Scores
from launcher.filters.spec import is_yes, wrong
from launcher.filters.urls import options as of_urls
from launcher.filters.urls.asking import Service, WrongServiceError
from launcher.filters.urls.by_url import ByUrl, try_out
from launcher.filters.urls.data_urls import as_data_url

OPTIONS = (*of_urls.OPTIONS, "style", "images", "policies", "logprobs")
STYLES = ("llama-guard", "shieldgemma")
# What ShieldGemma is asked about, a question each, by the category that it finds.
POLICIES = {
    "sexual": '"No Sexually Explicit Information": The prompt shall not contain or seek generation of sexually '
    "explicit content, such as depictions of sexual acts or content meant to arouse. Medical, scientific and artistic "
    "terms for anatomy or sex education are permitted.",
    "dangerous": '"No Dangerous Content": The prompt shall not contain or seek generation of content that harms '
    "oneself or others, such as building weapons and explosive devices, promotion of terrorism, or instructions for "
    "suicide.",
    "harassment": '"No Harassment": The prompt shall not contain or seek generation of content that is malicious, '
    "intimidating, bullying or abusive towards another individual, such as physical threats or denial of tragic "
    "events.",
    "hate": '"No Hate Speech": The prompt shall not contain or seek generation of content that expresses, incites or '
    "promotes hate based on race, gender, ethnicity, religion, nationality, sexual orientation, disability status, "
    "age, caste or any other protected status.",
}
_BY_SERVER = "server"  # policies=: those that the server's own template has
_NAME, _ROUTE = "chat", "chat/completions"
_UNSAFE = "unsafe"  # the category of what has no other
_FOUND = 0.5  # the least score of what the model names, whatever its tokens' probabilities
_CODE = re.compile(r"[A-Za-z][\w.-]{0,31}")
_MOST_CODES = 32
_LONGEST_ANSWER = 64  # tokens


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Raise `ArgumentError` for a URL or options that are not allowed, and where no model is named."""
    of_urls.check(_NAME, _ROUTE, value, options)
    if "model" not in options:
        raise wrong(_NAME, "it needs model=, the name by which the server knows the model")
    style = of_urls.one_of(_NAME, options, "style", STYLES)
    is_yes(_NAME, options, "images")
    _asks_logprobs(options)
    if "policies" in options and style != "shieldgemma":
        raise wrong(_NAME, "policies= is for style=shieldgemma; Llama Guard's are in its server's template")
    _policies(options)
    return value


def make(value: str, options: Mapping[str, str]) -> Chat:
    """Make the filter, and try it out. Raises `ArgumentError` where the variable that `key-env` names has no key, and
    where the service is another one than the options say."""
    check_options(value, options)
    kind = ChatWithPictures if is_yes(_NAME, options, "images") else Chat
    style: Style = ShieldGemma(_policies(options)) if options.get("style") == "shieldgemma" else LlamaGuard()
    settings: dict[str, object] = {"model": options["model"], "temperature": 0, "max_tokens": _LONGEST_ANSWER}
    if _asks_logprobs(options):
        settings |= {"logprobs": True, "top_logprobs": 5}
    service, negative = of_urls.make_service(_NAME, _ROUTE, value, options), of_urls.checks_negative(_NAME, options)
    made = kind(service, settings, style, negative=negative)
    try_out(_NAME, made.check_prompts)
    return made


class Chat(ByUrl):
    """Asks a model about each text by itself, at the same time. A prompt has the higher scores of its two texts.

    settings: fields of every question besides its messages. categories: all that the model finds, None where its
    server's template says what that is.
    """

    def __init__(
        self, service: Service, settings: Mapping[str, object], style: Style, *, negative: bool = False
    ) -> None:
        super().__init__(service, negative=negative)
        self._settings, self._style = settings, style
        self.categories = style.policies.keys() if isinstance(style, ShieldGemma) else None

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        contents = [self._texts(prompt) for prompt in prompts]
        scores = iter(self._scores([text for texts in contents for text in texts]))
        return [_highest([next(scores) for _ in texts]) for texts in contents]

    def _scores(self, contents: Sequence[str | Picture]) -> list[Scores]:
        policies = self._style.policies
        questions = [partial(self._question, content, policy) for content in contents for policy in policies]
        answers = iter(self._service.ask_all(questions))
        return [
            _highest([self._style.scores(category, _Answer.read(next(answers))) for category in policies])
            for _ in contents
        ]

    def _question(self, content: str | Picture, category: str) -> object:
        policy = self._style.policies[category]
        messages: list[dict[str, Any]] = [] if policy is None else [{"role": "system", "content": policy}]
        return {**self._settings, "messages": [*messages, {"role": "user", "content": _content(content)}]}


class ChatWithPictures(Chat):
    """Asks a model that sees pictures also about each of these, with the prompt that it was drawn from."""

    def check_images(self, pictures: Sequence[Picture]) -> Sequence[Scores]:
        return self._scores(pictures)


@dataclass(frozen=True)
class _Answer:
    """text: what the model wrote. tokens: the candidates for the first token that is not blank, and their
    probabilities; none where the server gives none."""

    text: str
    tokens: Mapping[str, float]

    @classmethod
    def read(cls, answer: Any) -> _Answer:
        """Read a chat completion. Raises `WrongServiceError`."""
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        except (LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise WrongServiceError("the chat service answered without the text of a message")
        try:
            return cls(text.strip(), _candidates(choice.get("logprobs")))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise WrongServiceError("the chat service answered with logprobs that cannot be read") from None

    def probability(self, yes: str, no: str) -> float | None:
        """How likely the answer `yes` is, of these two, by the beginnings of them that are tokens. None if unknown."""
        sums = [
            sum(chance for token, chance in self.tokens.items() if word.startswith(token.strip().casefold()))
            for word in (yes, no)
        ]
        return sums[0] / sum(sums) if sum(sums) > 0 else None


class LlamaGuard:
    """Answers `safe`, or `unsafe` and in the next line the codes of categories."""

    policies: Mapping[str, str | None] = {_UNSAFE: None}

    def scores(self, category: str, answer: _Answer) -> Scores:
        """The score of each category that is named, or of `unsafe` where none is: how likely that word was."""
        verdict, *rest = answer.text.split("\n")
        chance = answer.probability("unsafe", "safe")
        match verdict.strip().casefold():
            case "safe":
                return {category: chance or 0.0}
            case "unsafe":
                codes = [code for code in re.split(r"[,\s]+", " ".join(rest[:1])) if _CODE.fullmatch(code)]
                return dict.fromkeys(codes[:_MOST_CODES] or [category], _at_least_found(chance))
        raise WrongServiceError(
            "the chat model answered neither safe nor unsafe: look at style= and the server's template"
        )


class ShieldGemma:
    """Answers `Yes` if a text violates the policy that it is asked about, else `No`."""

    def __init__(self, policies: Mapping[str, str | None]) -> None:
        self.policies = policies

    def scores(self, category: str, answer: _Answer) -> Scores:
        """The score of the policy's category: how likely Yes was, of Yes and No."""
        verdict = re.match(r"[\W_]*(yes|no)\b", answer.text, re.IGNORECASE)
        if verdict is None:
            raise WrongServiceError(
                "the chat model answered neither Yes nor No: look at style= and the server's template"
            )
        chance = answer.probability("yes", "no")
        return {category: _at_least_found(chance) if verdict[1].casefold() == "yes" else chance or 0.0}


Style = LlamaGuard | ShieldGemma


def _asks_logprobs(options: Mapping[str, str]) -> bool:
    return is_yes(_NAME, options, "logprobs", default="yes")


def _policies(options: Mapping[str, str]) -> Mapping[str, str | None]:
    given = options.get("policies")
    if given == _BY_SERVER:
        return {_UNSAFE: None}
    names = list(POLICIES) if given is None else given.split("/")
    if not set(names) <= POLICIES.keys():
        raise wrong(_NAME, f"policies= must be {_BY_SERVER} or some of {'/'.join(POLICIES)}, got {given!r}")
    return {name: POLICIES[name] for name in names}


def _content(content: str | Picture) -> object:
    if isinstance(content, str):
        return content
    text = [{"type": "text", "text": content.prompt}] if content.prompt.strip() else []
    return [*text, {"type": "image_url", "image_url": {"url": as_data_url(content)}}]


def _candidates(logprobs: Any) -> dict[str, float]:
    if logprobs is None or not logprobs.get("content"):
        return {}
    first = next((token for token in logprobs["content"] if token["token"].strip()), None)
    if first is None:
        return {}
    chances: dict[str, float] = {}
    for each in first.get("top_logprobs") or [first]:
        token, chance = each["token"], math.exp(min(each["logprob"], 0.0))
        if token.strip():
            chances[token] = chance
    return chances


def _at_least_found(chance: float | None) -> float:
    return 1.0 if chance is None else max(chance, _FOUND)


def _highest(scores: Sequence[Scores]) -> Scores:
    highest: dict[str, float] = {}
    for each in scores:
        for category, score in each.items():
            highest[category] = max(score, highest.get(category, 0.0))
    return highest
