"""A service that answers as OpenAI's /v1/moderations does, for prompts and pictures: `moderation:URL`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from launcher.filters.protocol import Picture, Prompt, Scores
from launcher.filters.urls import options as of_urls
from launcher.filters.urls.asking import Service, WrongServiceError
from launcher.filters.urls.by_url import ByUrl, try_out
from launcher.filters.urls.data_urls import as_data_url

OPTIONS = of_urls.OPTIONS
_NAME, _ROUTE = "moderation", "moderations"
_MOST_TEXTS = 32  # in a question
_FLAGGED = 0.5  # the least score of what the service flags, whatever number it gives
_WITHOUT_CATEGORY = "flagged"
_MOST_CATEGORIES, _LONGEST_CATEGORY = 256, 64


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Raise `ArgumentError` for a URL or options that are not allowed."""
    of_urls.check(_NAME, _ROUTE, value, options)
    return value


def make(value: str, options: Mapping[str, str]) -> Moderation:
    """Make the filter, and try it out. Raises `ArgumentError` where the variable that `key-env` names has no key, and
    where the service is another one than the options say."""
    service, negative = of_urls.make_service(_NAME, _ROUTE, value, options), of_urls.checks_negative(_NAME, options)
    made = Moderation(service, options.get("model"), negative=negative)
    try_out(_NAME, made.check_prompts)
    return made


class Moderation(ByUrl):
    """Asks for scores by category. What the service flags has at least `_FLAGGED`, from which a category blocks where
    the operator has said nothing."""

    def __init__(self, service: Service, model: str | None, *, negative: bool = False) -> None:
        super().__init__(service, negative=negative)
        self._model = {} if model is None else {"model": model}

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        """Ask about all texts, several in a question; a prompt has the higher scores of its two texts."""
        texts = [(number, text) for number, prompt in enumerate(prompts) for text in self._texts(prompt)]
        questions = [texts[begin : begin + _MOST_TEXTS] for begin in range(0, len(texts), _MOST_TEXTS)]
        answers = self._service.ask_all([partial(self._about_texts, [text for _, text in each]) for each in questions])
        scores: list[dict[str, float]] = [{} for _ in prompts]
        for question, answer in zip(questions, answers, strict=True):
            for (number, _), result in zip(question, _results(answer, len(question)), strict=True):
                _add(scores[number], _scores(result))
        return scores

    def check_images(self, pictures: Sequence[Picture]) -> Sequence[Scores]:
        """Ask about each picture, at the same time."""
        answers = self._service.ask_all([partial(self._about_picture, picture) for picture in pictures])
        return [_scores(*_results(answer, 1)) for answer in answers]

    def _about_texts(self, texts: list[str]) -> object:
        return {**self._model, "input": texts}

    def _about_picture(self, picture: Picture) -> object:
        return {**self._model, "input": [{"type": "image_url", "image_url": {"url": as_data_url(picture)}}]}


def _results(answer: Any, count: int) -> list[Any]:
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise WrongServiceError(f"the moderation service answered without a list of {count} results")
    return results


def _scores(result: Any) -> dict[str, float]:
    """The scores of a result, whose fields are `categories` (yes or no), `category_scores`, or both, and `flagged`."""
    if not isinstance(result, dict):
        raise _garbage()
    flags, numbers = _by_category(result, "categories"), _by_category(result, "category_scores")
    if not isinstance(result.get("flagged", False), bool) or not (flags or numbers or "flagged" in result):
        raise _garbage()
    scores: dict[str, float] = {}
    for category, flag in flags.items():
        if not isinstance(flag, bool | None):
            raise _garbage()
        scores[category] = 0.0
        if flag:
            scores[category] = _FLAGGED if numbers.get(category) is not None else 1.0
    for category, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise _garbage()
        _add(scores, {category: float(number)})
    if result.get("flagged") and not any(flags.values()):
        scores[_WITHOUT_CATEGORY] = 1.0
    return scores


def _by_category(result: dict[str, Any], field: str) -> dict[str, Any]:
    values = result.get(field)
    if values is None:
        return {}
    if not isinstance(values, dict) or len(values) > _MOST_CATEGORIES:
        raise _garbage()
    if not all(0 < len(name) <= _LONGEST_CATEGORY and name.isprintable() for name in values):
        raise _garbage()
    return values


def _add(scores: dict[str, float], others: Scores) -> None:
    for category, score in others.items():
        scores[category] = max(score, scores.get(category, 0.0))


def _garbage() -> WrongServiceError:
    return WrongServiceError(
        "the moderation service answered with a result that has no categories and scores from 0 to 1"
    )
