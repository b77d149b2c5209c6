"""What the tests of the page share: Chromium, the mock server, and what a page must never do."""

import os
import unittest
from typing import Any

from mock_server import MockServer
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

# Of a machine that is ten times slower than one at rest.
PATIENCE_MS = 60_000
# What Chromium itself writes to the console when a server is away or refuses: no page can prevent it.
NETWORK = "Failed to load resource: "
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

# Notes what the last answer says, each time that it changed and was painted, and what the policy forbade.
WATCH = """
window.seen = [];
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
new MutationObserver(() => {
    const text = [...document.querySelectorAll(".answer")].at(-1)?.textContent ?? "";
    if (text === "" || text === seen.at(-1)?.text) return;
    const one = { text, painted: 0 };
    seen.push(one);
    requestAnimationFrame(() => {
        const after = new MessageChannel();
        after.port1.onmessage = () => { one.painted = Date.now() / 1000; after.port1.close(); };
        after.port2.postMessage(0);
    });
}).observe(document, { subtree: true, childList: true, characterData: true });
"""


class PageTest(unittest.TestCase):
    """A page of a server, a mock unless a class has another. A test fails where the console has an error or the policy was violated."""

    browser: Browser
    context_options: dict[str, Any] = {"viewport": WIDE}
    # A test whose server refuses or goes away says so.
    network_errors_expected = False

    @classmethod
    def setUpClass(cls) -> None:
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        cls.addClassCleanup(cls.browser.close)
        expect.set_options(timeout=PATIENCE_MS)

    def setUp(self) -> None:
        self.errors: list[str] = []
        self.server = self.make_server()
        self.server.start()
        self.addCleanup(self.server.stop)
        self.page = self.open_page(**self.context_options)

    def make_server(self) -> Any:
        """With a `url`, and `start` and `stop`, which a test may call again."""
        return MockServer()

    def open_page(self, **options: Any) -> Page:
        """A new tab of a new profile on the server."""
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("console", self.note_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.server.url)
        self.ready(page)
        return page

    def note_console(self, message: ConsoleMessage) -> None:
        expected = self.network_errors_expected and message.text.startswith(NETWORK)
        if message.type in ("error", "warning") and not expected:
            self.errors.append(message.text)

    def tearDown(self) -> None:
        self.assertEqual(self.page.evaluate("window.violations"), [], "the Content-Security-Policy was violated")
        self.assertEqual(self.errors, [], "errors in the console")

    # What is on the page.
    @property
    def question(self) -> Locator:
        return self.page.get_by_label("Question")

    @property
    def answer(self) -> Locator:
        return self.page.locator(".answer").last

    @property
    def note(self) -> Locator:
        return self.page.locator(".note").last

    def button(self, name: str) -> Locator:
        """The last one: of the last turn, where turns have it."""
        return self.page.get_by_role("button", name=name, exact=True).last

    def state(self, words: str) -> None:
        expect(self.page.locator("#state")).to_have_text(words)

    def ready(self, page: Page | None = None) -> None:
        expect((page or self.page).locator("#state")).to_have_text("ready")

    def ask(self, question: str) -> None:
        self.question.fill(question)
        self.question.press("Enter")

    def ask_and_wait(self, question: str) -> None:
        asked = len(self.server.requests)
        self.ask(question)
        self.wait_for(lambda: len(self.server.requests) > asked, "the question did not reach the server")
        self.ended()

    def ended(self) -> None:
        """The answer is over, however it ended."""
        expect(self.answer).to_have_attribute("aria-busy", "false")
        expect(self.button("Stop")).to_be_hidden()

    def wait_for(self, condition: Any, otherwise: str) -> None:
        """Of what the server notes; the browser's own waits are `expect`."""
        for _ in range(PATIENCE_MS // 20):
            if condition():
                return
            self.page.wait_for_timeout(20)
        self.fail(otherwise)

    def seen(self) -> list[dict]:
        return self.page.evaluate("window.seen")
