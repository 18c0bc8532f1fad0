"""The HTTP process: OpenAI's images API, what guards it, its documentation and the page."""
