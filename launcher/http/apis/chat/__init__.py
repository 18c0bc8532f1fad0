"""OpenAI's chat completions: the last message of a chat is drawn, so that chat front ends can draw."""
