"""The chat page against `codecllm serve` with stories15M, compressed."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from unittest import SkipTest

from browser import PageTest
from playwright.sync_api import expect

sys.path.append(str(Path(__file__).resolve().parents[2] / "python/serve_tests"))

import support  # noqa: E402

QUESTION = "Once upon a time, there was a little"
TOKENS = 40


class CodecllmServe:
    """The server as its users start it, on one port through stops and starts."""

    def __init__(self, model: Path, *arguments: str) -> None:
        self.model, self.arguments = model, arguments
        self.port = "0"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        command = [support.CODECLLM, "serve", str(self.model), "--port", self.port, "--json", *self.arguments]
        # Threads of so small a model wait for each other longer than they compute where others use the cores, too.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command} ended: {self.process.communicate()[1]}")
        self.port = json.loads(line)["address"].rsplit(":", 1)[1].rstrip("/")

    def stop(self, how: int = signal.SIGKILL) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.communicate()
            self.process = None

    def get(self, path: str, body: dict | None = None) -> dict:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)


class RealServerTest(PageTest):
    model: Path
    arguments: tuple[str, ...] = ("--shutdown-seconds", "600")

    @classmethod
    def setUpClass(cls) -> None:
        if not (support.MODEL / "config.json").exists():
            raise SkipTest(f"{support.MODEL} is absent; `make models` fetches it")
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.model = support.compress_model(cls.folder)
        super().setUpClass()

    def make_server(self) -> Any:
        return CodecllmServe(self.model, *self.arguments)

    def likeliest(self, longest: int = TOKENS) -> None:
        """The same answer each time."""
        self.button("Settings").click()
        self.page.get_by_label("Temperature").fill("0")
        self.page.get_by_label("Longest answer").fill(str(longest))
        self.button("Save").click()
        expect(self.page.get_by_role("dialog")).to_be_hidden()

    def assert_answers_whole(self, question: str) -> None:
        """The page shows what the server says to the same request in one piece."""
        self.ask(question)
        expect(self.page.locator(".question").last).to_have_text(question)
        self.ended()
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": TOKENS}
        want = self.server.get("v1/chat/completions", body)["choices"][0]["message"]["content"]
        self.assertGreater(len(want), 50)
        self.assertEqual(self.answer.inner_text().split(), want.split())


class Conversation(RealServerTest):
    def test_an_answer_comes_token_by_token(self) -> None:
        self.likeliest()
        self.assert_answers_whole(QUESTION)
        texts = [one["text"] for one in self.seen()]
        self.assertGreater(len(texts), 3, f"tokens were shown together: {texts}")
        figures = self.page.locator(".turn dl")
        expect(figures).to_have_text(re.compile(r"^tokens40tokens/s[\d.]+to first token[\d.]+ sprompt tokens\d+$"))
        stats = self.server.get("stats")
        shown = self.page.locator("#figures")
        expect(shown).to_contain_text(re.compile(r"weights[\d.]+ MBcache[\d.]+ MBprocess[\d.]+ [MG]B"))
        expect(shown).to_contain_text(f"weights{stats['weight_bytes'] / 1e6:.1f} MB")
        used = int(re.search(r"prompt tokens(\d+)$", figures.text_content())[1]) + TOKENS
        expect(shown).to_contain_text(f"context{used} of {stats['context']}")

    def test_stop_frees_the_place_and_a_new_conversation_begins(self) -> None:
        self.likeliest(240)
        self.ask(QUESTION)
        expect(self.answer).not_to_be_empty()
        self.question.press("Escape")
        expect(self.note).to_have_text("Stopped.")
        self.wait_for(lambda: self.server.get("stats")["running"] == 0, "the server goes on")
        self.assertLess(self.server.get("stats")["completion_tokens"], 200, "it was not stopped, it ended")
        self.button("New conversation").click()
        self.likeliest()
        self.assert_answers_whole("The dog")


class Trouble(RealServerTest):
    network_errors_expected = True

    def test_a_killed_server_comes_back(self) -> None:
        self.likeliest(240)
        self.ask(QUESTION)
        expect(self.answer).not_to_be_empty()
        self.server.stop()
        expect(self.note).to_contain_text("This answer was cut")
        self.state("server is away")
        self.server.start()
        self.ready()
        self.likeliest()
        self.button("Try again").click()
        expect(self.note).to_contain_text("reached its longest length")
        self.button("New conversation").click()
        self.assert_answers_whole(QUESTION)

    def test_a_server_that_is_asked_to_end_finishes_the_answer(self) -> None:
        self.likeliest()
        self.ask(QUESTION)
        expect(self.answer).not_to_be_empty()
        self.server.stop(signal.SIGTERM)
        self.ended()
        expect(self.note).not_to_contain_text("cut")
        expect(self.page.locator(".turn dl")).to_contain_text("prompt tokens")
        self.state("server is away")

    def test_a_question_longer_than_the_context(self) -> None:
        self.ask_long("word " * 400)
        expect(self.note).to_contain_text("The question is longer than the model can read.")
        self.button("New conversation").click()
        self.likeliest()
        self.ask_long("word " * 150)
        self.ask_long("word " * 150)
        expect(self.note).to_contain_text("The conversation is longer than the model can read.")
        self.button("Ask in a new conversation").click()
        expect(self.answer).not_to_be_empty()
        self.ended()

    def ask_long(self, question: str) -> None:
        asked = self.page.locator(".turn").count()
        self.ask(question)
        expect(self.page.locator(".turn")).to_have_count(asked + 1)
        self.ended()


class WithKey(RealServerTest):
    network_errors_expected = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        keys = cls.folder / "keys"
        keys.write_text("the-key\n")
        keys.chmod(0o600)
        cls.arguments = ("--api-key-file", str(keys))

    def ready(self, page: Any = None) -> None:
        """As far as a page gets without the key."""
        expect((page or self.page).locator("#state")).to_have_text("key needed")

    def test_the_key_opens_the_conversation(self) -> None:
        self.ask(QUESTION)
        expect(self.note).to_contain_text("This server asks for a key.")
        self.button("Enter the key").click()
        self.page.keyboard.type("the-key")
        self.page.keyboard.press("Enter")
        expect(self.answer).not_to_be_empty()
        self.button("Stop").or_(self.button("Copy")).first.wait_for()
        self.question.press("Escape")
        self.ended()
