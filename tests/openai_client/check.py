"""What OpenAI's own client gets from a server: the tokens of `generate`, streamed or not, and the client's own exceptions.

Arguments: the server's URL, the URL of one whose queue is always full, and what `generate` gave (one JSON object a line).
"""

import asyncio
import json
import sys

import openai

URL, FULL, EXPECTED = sys.argv[1:]
MODEL = "builtin:target"
client = openai.OpenAI(base_url=URL, api_key="secret", max_retries=0)


def completion(expected, **more):
    sampling = {"temperature": 0} if expected["request_id"] == "greedy" else {"temperature": 0.9, "top_p": 0.9, "seed": 5}
    return dict(
        model=MODEL,
        prompt=expected["prompt_token_ids"],
        max_tokens=len(expected["token_ids"]),
        extra_body={"return_token_ids": True, "ignore_eos": True},
        **sampling,
        **more,
    )


def check_tokens(expected):
    plain = client.completions.create(**completion(expected))
    assert plain.choices[0].token_ids == expected["token_ids"], (plain, expected)
    assert plain.choices[0].text == expected["text"], (plain, expected)
    assert plain.usage.completion_tokens == len(expected["token_ids"]), plain.usage
    tokens, text, usage = [], "", None
    for chunk in client.completions.create(**completion(expected, stream=True, stream_options={"include_usage": True})):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            tokens += choice.token_ids
            text += choice.text
    assert (tokens, text) == (expected["token_ids"], expected["text"]), (tokens, text, expected)
    assert usage.total_tokens == plain.usage.total_tokens, usage


async def check_many(expected):
    """Eight at once give what one gives alone."""
    many = openai.AsyncOpenAI(base_url=URL, api_key="secret", max_retries=0)
    answers = await asyncio.gather(*[many.completions.create(**completion(expected)) for _ in range(8)])
    for answer in answers:
        assert answer.choices[0].token_ids == expected["token_ids"], (answer, expected)


def check_chat():
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Speak."}], max_completion_tokens=12, temperature=0)
    plain = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    text = plain.choices[0].message.content
    assert plain.choices[0].finish_reason == "length" and len(plain.choices[0].logprobs.content) == 12, plain
    with client.chat.completions.create(**ask, stream=True) as stream:
        assert "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices) == text


def check_error(kind, at=None, **changed):
    ask = {**dict(model=MODEL, prompt="The king", max_tokens=2), **changed}
    try:
        (at or client).completions.create(**ask)
    except openai.APIStatusError as error:
        assert type(error) is kind, (type(error), error)
        assert error.body["message"] and "code" in error.body, error.body
        return error
    raise AssertionError(f"{changed} was answered")


assert [model.id for model in client.models.list()] == [MODEL]
with open(EXPECTED) as lines:
    outputs = [json.loads(line) for line in lines]
assert {output["request_id"] for output in outputs} == {"greedy", "drawn"}, outputs
for output in outputs:
    check_tokens(output)
    asyncio.run(check_many(output))
check_chat()
check_error(openai.AuthenticationError, openai.OpenAI(base_url=URL, api_key="other", max_retries=0))
check_error(openai.NotFoundError, model="nobody")
check_error(openai.BadRequestError, temperature=-1)
assert check_error(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
check_error(openai.UnprocessableEntityError, extra_body={"guided_regex": "a+"})
full = check_error(openai.RateLimitError, openai.OpenAI(base_url=FULL, api_key="secret", max_retries=0))
assert int(full.response.headers["retry-after"]) > 0, full.response.headers
print(f"openai {openai.__version__}: {len(outputs)} outputs are equal, streamed and plain")
