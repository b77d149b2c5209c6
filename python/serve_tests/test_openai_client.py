"""OpenAI's own client, unchanged, against `codecllm serve`."""

import asyncio
import threading

import openai
from openai import AsyncOpenAI, OpenAI

from support import KEY, ServerTest

PROMPT = "Once upon a time"
STORY = ", there was a little girl named Lily."
# So many tokens.
STORY_TOKENS = 10
GREEDY = {"model": "stories", "temperature": 0}


def client_of(test, key=KEY, **options):
    options = {"max_retries": 0, "timeout": 300, **options}
    client = OpenAI(base_url=f"{test.server.address}/v1", api_key=key, **options)
    test.addCleanup(client.close)
    return client


def said(*contents):
    return [{"role": "user", "content": content} for content in contents]


class Client(ServerTest):
    def setUp(self):
        self.client = client_of(self)

    def test_models_are_listed_and_described(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["stories"])
        model = self.client.models.retrieve("stories")
        self.assertEqual((model.id, model.object), ("stories", "model"))
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.models.retrieve("gpt-4o")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_a_chat_is_answered(self):
        chat = self.client.chat.completions.create(messages=said(PROMPT), max_tokens=STORY_TOKENS, **GREEDY)
        self.assertEqual(chat.object, "chat.completion")
        choice = chat.choices[0]
        self.assertEqual((choice.message.role, choice.message.content), ("assistant", STORY))
        self.assertEqual((choice.finish_reason, choice.logprobs), ("length", None))
        self.assertEqual((chat.usage.completion_tokens, chat.model), (STORY_TOKENS, "stories"))
        self.assertEqual(chat.usage.total_tokens, chat.usage.prompt_tokens + STORY_TOKENS)

    def test_an_answer_goes_back_into_the_conversation(self):
        first = self.client.chat.completions.create(messages=said(PROMPT), max_tokens=STORY_TOKENS, **GREEDY)
        messages = said(PROMPT) + [first.choices[0].message.model_dump()]
        more = self.client.chat.completions.create(messages=messages, max_tokens=5, **GREEDY)
        whole = self.client.chat.completions.create(messages=said(PROMPT), max_tokens=STORY_TOKENS + 5, **GREEDY)
        self.assertEqual(STORY + more.choices[0].message.content, whole.choices[0].message.content)

    def test_parts_of_content_are_joined(self):
        parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
        chat = self.client.chat.completions.create(messages=said(parts), max_completion_tokens=STORY_TOKENS, **GREEDY)
        self.assertEqual(chat.choices[0].message.content, STORY)

    def test_a_chat_streams(self):
        stream = self.client.chat.completions.create(
            messages=said(PROMPT), max_tokens=STORY_TOKENS, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
        chunks = list(stream)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        self.assertEqual(text, STORY)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
        self.assertEqual((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], STORY_TOKENS))
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_the_stream_helper_puts_the_chunks_together(self):
        # The helper takes an answer that its length ended for an error.
        with self.client.chat.completions.stream(messages=said(PROMPT), stop=["."], **GREEDY) as stream:
            final = stream.get_final_completion()
        self.assertEqual((final.choices[0].message.content + ".", final.choices[0].finish_reason), (STORY, "stop"))

    def test_a_stream_can_be_left(self):
        for _ in range(3):
            with self.client.chat.completions.create(messages=said(PROMPT), stream=True, **GREEDY) as stream:
                next(iter(stream))
        self.test_a_chat_is_answered()

    def test_completions_of_every_kind_of_prompt(self):
        create = self.client.completions.create
        one = create(prompt=PROMPT, max_tokens=STORY_TOKENS, **GREEDY)
        self.assertEqual((one.object, one.choices[0].text), ("text_completion", STORY))
        # The tokens of the prompt, with the one that begins a text.
        tokens = create(prompt=[1, 9038, 2501, 263, 931], max_tokens=STORY_TOKENS, **GREEDY)
        self.assertEqual(tokens.choices[0].text, STORY)
        several = create(prompt=[PROMPT, "Tom had a"], n=2, max_tokens=STORY_TOKENS, **GREEDY)
        texts = [choice.text for choice in several.choices]
        self.assertEqual([choice.index for choice in several.choices], [0, 1, 2, 3])
        self.assertEqual(texts[:2], [STORY, STORY])
        self.assertEqual(texts[2], texts[3])
        self.assertEqual(several.usage.completion_tokens, 4 * STORY_TOKENS)
        self.assertEqual(create(prompt=PROMPT, **GREEDY).usage.completion_tokens, 16, "OpenAI's default")

    def test_completions_stream(self):
        chunks = list(self.client.completions.create(prompt=[PROMPT, PROMPT], max_tokens=STORY_TOKENS, stream=True, **GREEDY))
        for index in (0, 1):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            self.assertEqual("".join(choice.text for choice in mine), STORY)
            self.assertEqual([choice.finish_reason for choice in mine if choice.finish_reason], ["length"])

    def test_stop_strings_end_an_answer(self):
        for stop in ("girl", ["nowhere", "girl"]):
            chat = self.client.chat.completions.create(messages=said(PROMPT), stop=stop, max_tokens=40, **GREEDY)
            self.assertEqual(chat.choices[0].message.content, ", there was a little ")
            self.assertEqual(chat.choices[0].finish_reason, "stop")

    def test_a_seed_repeats_an_answer(self):
        def tell(**options):
            options = {"model": "stories", "prompt": PROMPT, "max_tokens": 30, **options}
            return self.client.completions.create(**options).choices[0].text

        self.assertEqual(tell(seed=5), tell(seed=5))
        self.assertNotEqual(tell(seed=5), tell(seed=6))
        self.assertNotEqual(tell(), tell())
        self.assertEqual(tell(seed=5, top_p=0), tell(temperature=0))
        self.assertEqual(tell(seed=5, extra_body={"top_k": 1}), tell(temperature=0))
        two = self.client.completions.create(model="stories", prompt=PROMPT, max_tokens=30, seed=5, n=2).choices
        self.assertEqual([choice.text for choice in two], [tell(seed=5), tell(seed=6)])

    def test_logprobs_of_a_chat(self):
        chat = self.client.chat.completions.create(
            messages=said(PROMPT), max_tokens=5, logprobs=True, top_logprobs=3, **GREEDY
        )
        tokens = chat.choices[0].logprobs.content
        self.assertEqual(len(tokens), 5)
        for token in tokens:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].token, token.token)
            self.assertEqual(token.top_logprobs[0].logprob, token.logprob)
            falling = [top.logprob for top in token.top_logprobs]
            self.assertEqual(falling, sorted(falling, reverse=True))
        spelled = b"".join(bytes(token.bytes) for token in tokens).decode()
        self.assertEqual(spelled, chat.choices[0].message.content)
        streamed = self.client.chat.completions.create(
            messages=said(PROMPT), max_tokens=5, logprobs=True, top_logprobs=3, stream=True, **GREEDY
        )
        choices = [chunk.choices[0] for chunk in streamed]
        self.assertEqual([token for choice in choices if choice.logprobs for token in choice.logprobs.content], tokens)

    def test_logprobs_of_a_completion(self):
        choice = self.client.completions.create(prompt=PROMPT, max_tokens=5, logprobs=2, **GREEDY).choices[0]
        logprobs = choice.logprobs
        self.assertEqual("".join(logprobs.tokens), choice.text)
        self.assertEqual(len(logprobs.token_logprobs), 5)
        self.assertEqual([len(top) for top in logprobs.top_logprobs], [2] * 5)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset):
            self.assertTrue(choice.text[offset:].startswith(token))

    def test_wrong_requests_raise_what_openai_raises(self):
        def chat(**options):
            return self.client.chat.completions.create(**{"messages": said(PROMPT), **GREEDY, **options})

        for options, param in [
            ({"temperature": 3}, "temperature"),
            ({"messages": []}, "messages"),
            ({"frequency_penalty": 1}, "frequency_penalty"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"logit_bias": {"5": 1}}, "logit_bias"),
            ({"extra_body": {"min_p": 0.1}}, "min_p"),
        ]:
            with self.assertRaises(openai.BadRequestError, msg=param) as raised:
                chat(**options)
            self.assertEqual(raised.exception.param, param)
        with self.assertRaises(openai.NotFoundError):
            chat(model="gpt-4o")
        with self.assertRaises(openai.BadRequestError) as raised:
            chat(messages=said("and then " * 500))
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        for key in ("wrong", "another-key-", KEY[:-1]):
            with self.assertRaises(openai.AuthenticationError) as raised:
                client_of(self, key=key).models.list()
            self.assertEqual(raised.exception.code, "invalid_api_key")

    def test_the_async_client_gets_many_answers_at_once(self):
        async def tell(client, number):
            stream = await client.completions.create(prompt=PROMPT, max_tokens=STORY_TOKENS + number, stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def tell_all():
            async with AsyncOpenAI(base_url=f"{self.server.address}/v1", api_key=KEY, timeout=300) as client:
                return await asyncio.gather(*(tell(client, number) for number in range(12)))

        stories = asyncio.run(tell_all())
        self.assertTrue(all(long.startswith(short) for short, long in zip(stories, stories[1:])))
        self.assertEqual(stories[0], STORY)


class FullServer(ServerTest):
    arguments = ("--max-batch", "1", "--max-queue", "0")

    def test_a_full_queue_raises_rate_limit_error(self):
        client = client_of(self)
        with client.completions.create(prompt=PROMPT, max_tokens=250, stream=True, **GREEDY) as stream:
            next(iter(stream))
            with self.assertRaises(openai.RateLimitError) as raised:
                client.completions.create(prompt=PROMPT, **GREEDY)
            self.assertEqual(raised.exception.response.headers["retry-after"], "1")
        # Its place is free once the stream is left; until then the client tries again by itself.
        patient = client_of(self, max_retries=60)
        self.assertEqual(patient.completions.create(prompt=PROMPT, max_tokens=STORY_TOKENS, **GREEDY).choices[0].text, STORY)

    def test_the_server_finishes_an_answer_before_it_ends(self):
        stream = client_of(self, max_retries=60).completions.create(prompt=PROMPT, max_tokens=100, stream=True, **GREEDY)
        chunks = iter(stream)
        texts = [next(chunks).choices[0].text]
        ending = threading.Thread(target=lambda: setattr(self, "code", self.server.stop()))
        ending.start()
        finish = None
        for chunk in chunks:
            texts.append(chunk.choices[0].text)
            finish = chunk.choices[0].finish_reason
        ending.join()
        self.assertEqual((finish, self.code), ("length", 0))
        self.assertTrue("".join(texts).startswith(STORY))
