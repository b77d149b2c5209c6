"""The chat page against a server that does what a test tells it to."""

import re
import unittest

from mock_server import ANSWER, MODEL, PAGE, Refusal, policy
from playwright.sync_api import expect
from browser import PHONE, PageTest

TEXT = "".join(ANSWER)


class Answering(PageTest):
    def test_tokens_arrive_one_by_one(self) -> None:
        self.server.script.token_after = 0.3
        self.ask("What stays in memory?")
        self.ended()
        expect(self.answer).to_have_text(TEXT)
        texts = [one["text"] for one in self.seen()]
        for earlier, later in zip(texts, texts[1:]):
            self.assertTrue(later.startswith(earlier.strip()), texts)
        self.assertGreaterEqual(len(texts), len(ANSWER) - 2, f"tokens were shown together: {texts}")
        self.assertEqual(self.server.requests[0]["messages"], [{"role": "user", "content": "What stays in memory?"}])
        self.assertTrue(self.server.requests[0]["stream"])
        self.assertEqual(self.server.requests[0]["model"], MODEL)

    def test_first_token_is_visible_within_300_ms(self) -> None:
        self.server.script.token_after = 0.3  # the end is not what is seen first
        delays: list[float] = []
        for attempt in range(8):
            self.server.script.tokens = [f"Answer {attempt}", *ANSWER]
            self.ask_and_wait(f"Question {attempt}")
            own = [one for one in self.seen() if one["text"].startswith(f"Answer {attempt}")]
            self.assertGreater(own[-1]["painted"], 0, "the answer was not painted")
            delays.append(own[0]["painted"] - self.server.sent[0])
            if delays[-1] < 0.3:
                break
        self.assertLess(min(delays), 0.3, f"seconds from the server to the eye: {delays}")
        self.assertGreater(min(delays), 0, "painted before it was sent: the clocks are wrong")
        print(f"\nfirst token visible {min(delays) * 1000:.0f} ms after the server sent it")

    def test_figures_of_the_answer_and_of_the_server(self) -> None:
        self.server.script.token_after = 0.2
        self.ask_and_wait("How fast?")
        figures = self.page.locator(".turn dl")
        expect(figures).to_have_text(re.compile(r"^tokens6tokens/s[\d.]+to first token[\d.]+ sprompt tokens12$"))
        speed = float(re.search(r"tokens/s([\d.]+)", figures.text_content())[1])
        # Five intervals of 0.2 s; a slow machine makes them longer.
        self.assertLess(speed, 5.5)
        self.assertGreater(speed, 0.1)
        server = self.page.locator("#figures")
        for figure in ("weights 98.4 MB", "cache 23.6 MB", "process 512 MB", "context 18 of 2048", "tokens/s 41.5"):
            expect(server).to_contain_text(figure.replace(" ", "", 1))

    def test_stop_ends_the_answer_on_both_sides(self) -> None:
        self.server.script.tokens = [f"token{at} " for at in range(2000)]
        self.server.script.token_after = 0.02
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("token3 ")
        self.button("Stop").click()
        expect(self.note).to_have_text("Stopped.")
        self.assertTrue(self.server.left.wait(60), "the server does not see that the client left")
        said = self.answer.inner_text()
        self.page.wait_for_timeout(200)
        self.assertEqual(self.answer.inner_text(), said, "the answer goes on")
        self.server.script.tokens = list(ANSWER)
        self.ask_and_wait("And now?")
        expect(self.answer).to_have_text(TEXT)
        self.assertEqual(len(self.server.requests[-1]["messages"]), 3, "what was said stays part of the conversation")

    def test_a_conversation_is_sent_whole_and_starts_over(self) -> None:
        self.ask_and_wait("First")
        self.ask_and_wait("Second")
        said = [(message["role"], message["content"]) for message in self.server.requests[-1]["messages"]]
        self.assertEqual(said, [("user", "First"), ("assistant", TEXT), ("user", "Second")])
        self.button("New conversation").click()
        expect(self.page.locator(".turn")).to_have_count(0)
        expect(self.question).to_be_focused()
        self.ask_and_wait("Third")
        self.assertEqual(self.server.requests[-1]["messages"], [{"role": "user", "content": "Third"}])

    def test_starting_over_ends_a_running_answer(self) -> None:
        self.server.script.tokens = ["word "] * 2000
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("word")
        self.button("New conversation").click()
        self.assertTrue(self.server.left.wait(60), "the server does not see that the client left")
        self.server.script.tokens = list(ANSWER)
        self.ask_and_wait("Again")
        expect(self.answer).to_have_text(TEXT)
        expect(self.page.locator(".turn")).to_have_count(1)

    def test_a_conversation_can_be_brought_back_and_outlives_a_reload(self) -> None:
        self.ask_and_wait("Keep this")
        self.button("New conversation").click()
        self.button("Bring the last conversation back").click()
        expect(self.answer).to_have_text(TEXT)
        self.page.reload()
        self.ready()
        expect(self.answer).to_have_text(TEXT)
        expect(self.page.locator(".turn")).to_contain_text(MODEL)
        self.ask_and_wait("Go on")
        self.assertEqual(len(self.server.requests[-1]["messages"]), 3)

    def test_again_and_edit_replace_the_last_answer(self) -> None:
        self.ask_and_wait("First")
        self.ask_and_wait("Second")
        self.server.script.tokens = ["Another ", "answer."]
        self.button("Again").click()
        expect(self.answer).to_have_text("Another answer.")
        self.ended()
        self.assertEqual(self.server.requests[1], self.server.requests[2])
        self.button("Edit").click()
        expect(self.question).to_be_focused()
        expect(self.question).to_have_value("Second")
        self.question.press("Escape")
        expect(self.question).to_have_value("")
        self.button("Edit").click()
        self.server.script.tokens = ["Third."]
        self.ask_and_wait("Second, better")
        expect(self.page.locator(".question")).to_have_text(["First", "Second, better"])
        expect(self.answer).to_have_text("Third.")
        self.assertEqual(len(self.server.requests[-1]["messages"]), 3)

    def test_copy(self) -> None:
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.ask_and_wait("Copy me")
        self.button("Copy").click()
        expect(self.button("Copied")).to_be_visible()
        self.assertEqual(self.page.evaluate("navigator.clipboard.readText()"), TEXT)

    def test_what_a_model_writes_is_text(self) -> None:
        hostile = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script> **bold** `code`\n\n```html\n<b>raw</b>\n```\nend"
        self.server.script.tokens = [hostile[at : at + 3] for at in range(0, len(hostile), 3)]
        self.server.script.token_after = 0.005
        self.ask_and_wait("<b>Hurt</b> me")
        expect(self.page.locator(".question")).to_have_text("<b>Hurt</b> me")
        expect(self.answer).to_contain_text("<img src=x onerror=window.hurt=1><script>window.hurt=1</script>")
        self.assertEqual(self.answer.locator("img, script, b").count(), 0)
        expect(self.answer.locator("strong")).to_have_text("bold")
        expect(self.answer.locator("p code")).to_have_text("code")
        expect(self.answer.locator("pre code")).to_have_text("<b>raw</b>")
        self.assertIsNone(self.page.evaluate("window.hurt ?? null"))

    def test_characters_cut_anywhere_arrive_whole(self) -> None:
        text = "Größe: 好, 🦀 — fin"
        self.server.script.tokens = list(text)
        self.ask_and_wait("Umlauts?")
        expect(self.answer).to_have_text(text)


class Markup(unittest.TestCase):
    def test_it_needs_nothing_from_elsewhere_and_no_inline_permission(self) -> None:
        page = PAGE.read_text()
        policy(page)  # one style, one script
        markup = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
        self.assertEqual(re.findall(r"\s(?:on\w+|style|src|srcset)=", markup), [])
        # The address in an SVG is a name, nothing that is fetched.
        elsewhere = page.replace("http://www.w3.org/2000/svg", "")
        self.assertEqual(re.findall(r"https?://|@import|url\(", elsewhere), [])


class Settings(PageTest):
    def fill(self, **values: str) -> None:
        self.button("Settings").click()
        for label, value in values.items():
            self.page.get_by_label(label.replace("_", " "), exact=True).fill(value)

    def test_settings_are_sent_and_the_key_is_not_kept(self) -> None:
        self.ask_and_wait("Defaults")
        for name in ("temperature", "top_p", "max_tokens", "seed"):
            self.assertNotIn(name, self.server.requests[-1], "what was not set is the server's to choose")
        self.server.script.key = "secret"
        self.fill(Temperature="0", Longest_answer="64", Seed="7", System_message="Be brief.", API_key="secret")
        self.page.get_by_label("Top-p").fill("0.9")
        self.button("Save").click()
        self.ready()
        self.ask_and_wait("Settings")
        sent = self.server.requests[-1]
        got = {name: sent.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")}
        self.assertEqual(got, {"temperature": 0, "top_p": 0.9, "max_tokens": 64, "seed": 7})
        self.assertEqual(sent["messages"][0], {"role": "system", "content": "Be brief."})
        expect(self.answer).to_have_text(TEXT)
        self.assertNotIn("secret", self.page.evaluate("JSON.stringify(localStorage)"))
        self.page.reload()
        self.ready()
        self.button("Settings").click()
        expect(self.page.get_by_label("Seed")).to_have_value("7")

    def test_cancel_and_escape_change_nothing(self) -> None:
        for leave in (lambda: self.button("Cancel").click(), lambda: self.page.keyboard.press("Escape")):
            self.fill(Seed="9")
            self.page.get_by_label("Dark").check()
            leave()
            expect(self.page.get_by_role("dialog")).to_be_hidden()
        self.assertIsNone(self.page.evaluate("document.documentElement.dataset.theme ?? null"))
        self.ask_and_wait("Seed?")
        self.assertNotIn("seed", self.server.requests[-1])

    def test_a_value_out_of_range_is_not_saved(self) -> None:
        self.fill(Temperature="7")
        self.button("Save").click()
        expect(self.page.get_by_role("dialog")).to_be_visible()
        self.fill_again_and_save()

    def fill_again_and_save(self) -> None:
        self.page.get_by_label("Temperature").fill("1.25")
        self.button("Save").click()
        expect(self.page.get_by_role("dialog")).to_be_hidden()
        self.ask_and_wait("Now?")
        self.assertEqual(self.server.requests[-1]["temperature"], 1.25)

    def test_themes(self) -> None:
        def paper() -> str:
            return self.page.evaluate("getComputedStyle(document.body).backgroundColor")

        self.page.emulate_media(color_scheme="light")
        light = paper()
        self.page.emulate_media(color_scheme="dark")
        dark = paper()
        self.assertNotEqual(light, dark, "the system's scheme is not followed")
        for scheme, chosen, want in (("dark", "Light", light), ("light", "Dark", dark)):
            self.page.emulate_media(color_scheme=scheme)
            self.fill()
            self.page.get_by_label(chosen).check()
            self.button("Save").click()
            self.assertEqual(paper(), want)
            self.page.reload()
            self.ready()
            self.assertEqual(paper(), want, "the choice is not kept")


class Trouble(PageTest):
    network_errors_expected = True

    def test_a_restart_between_two_questions(self) -> None:
        self.ask_and_wait("Before")
        self.question.fill("A draft")
        self.server.stop()
        self.state("server is away")
        expect(self.button("Send")).to_be_disabled()
        expect(self.page.get_by_text("This page goes on by itself")).to_be_visible()
        self.question.press("Enter")
        expect(self.question).to_have_value("A draft")
        self.server.start()
        self.ready()
        expect(self.button("Send")).to_be_enabled()
        self.question.press("Enter")
        expect(self.page.locator(".answer")).to_have_text([TEXT, TEXT])
        self.assertEqual(len(self.server.requests[-1]["messages"]), 3)

    def test_a_restart_in_the_middle_of_an_answer(self) -> None:
        self.server.script.tokens = ["word "] * 2000
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("word word")
        self.server.stop()
        expect(self.note).to_contain_text("This answer was cut")
        self.state("server is away")
        expect(self.button("Try again")).to_be_disabled()
        expect(self.answer).to_contain_text("word word")
        self.server.script.tokens = list(ANSWER)
        self.server.start()
        self.ready()
        self.button("Try again").click()
        expect(self.answer).to_have_text(TEXT)
        expect(self.note).to_be_hidden()

    def test_a_late_frame_does_not_unlock_what_waits_for_the_server(self) -> None:
        self.page.context.add_init_script(
            "{ const frame = requestAnimationFrame; window.requestAnimationFrame = (show) => setTimeout(frame, 3000, show); }"
        )
        self.page.reload()
        self.ready()
        self.server.script.tokens = ["word "] * 2000
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("word")
        self.server.stop()
        self.state("server is away")
        expect(self.button("Try again")).to_be_disabled()
        self.page.wait_for_timeout(3500)
        expect(self.button("Try again")).to_be_disabled(timeout=1000)

    def test_an_answer_cut_without_a_reason(self) -> None:
        self.server.script.cut_after = 2
        self.ask_and_wait("Cut this")
        expect(self.note).to_contain_text("This answer was cut")
        expect(self.answer).to_have_text("The weights")
        self.server.script.cut_after = None
        self.button("Try again").click()
        expect(self.answer).to_have_text(TEXT)

    def test_an_answer_that_ends_without_a_reason(self) -> None:
        self.server.script.end_after = 2
        self.ask_and_wait("End this")
        expect(self.note).to_contain_text("This answer was cut")
        expect(self.button("Try again")).to_be_enabled()

    def test_an_error_in_the_middle_of_an_answer(self) -> None:
        self.server.script.error_after = 2
        self.ask_and_wait("Break this")
        expect(self.note).to_contain_text("the engine met an error")
        expect(self.answer).to_have_text("The weights")

    def test_the_longest_length(self) -> None:
        self.server.script.finish_reason = "length"
        self.ask_and_wait("Long")
        expect(self.note).to_contain_text("reached its longest length")

    def test_401_asks_for_the_key_and_goes_on_with_it(self) -> None:
        self.server.script.key = "right"
        self.ask("Let me in")
        expect(self.note).to_contain_text("This server asks for a key.")
        self.state("key needed")
        self.button("Enter the key").click()
        expect(self.page.get_by_label("API key")).to_be_focused()
        self.page.keyboard.type("wrong")
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("dialog")).to_be_hidden()
        self.state("key needed")
        self.button("Enter the key").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type("right")
        self.page.keyboard.press("Enter")
        expect(self.answer).to_have_text(TEXT)
        self.ready()

    def test_a_page_opened_without_the_key_says_so(self) -> None:
        self.server.script.key = "right"
        self.page.reload()
        self.state("key needed")
        self.page.locator("#notice").get_by_role("button", name="Enter the key").click()
        self.page.keyboard.type("right")
        self.page.keyboard.press("Enter")
        self.ready()
        expect(self.page.locator("#model")).to_have_text(MODEL)

    def test_429_says_busy_and_offers_to_try_again(self) -> None:
        self.server.script.refusal = Refusal(429, "64 requests wait already, 64 may", "queue_full", {"Retry-After": "3"})
        self.ask_and_wait("Now?")
        expect(self.note).to_contain_text("The server is busy")
        expect(self.note).to_contain_text("3 s")
        expect(self.note).to_contain_text("64 requests wait already")
        self.server.script.refusal = None
        self.button("Try again").click()
        expect(self.answer).to_have_text(TEXT)

    def test_400_of_a_full_context_proposes_a_new_conversation(self) -> None:
        self.ask_and_wait("First")
        message = "the prompt has 3000 tokens, the context holds 2048"
        self.server.script.refusal = Refusal(400, message, "context_length_exceeded")
        self.ask_and_wait("Second")
        expect(self.note).to_contain_text("longer than the model can read")
        self.server.script.refusal = None
        self.button("Ask in a new conversation").click()
        expect(self.page.locator(".question")).to_have_text(["Second"])
        expect(self.answer).to_have_text(TEXT)
        self.assertEqual(self.server.requests[-1]["messages"], [{"role": "user", "content": "Second"}])

    def test_other_refusals_are_shown_in_the_server_s_words(self) -> None:
        for status, message in ((400, "temperature: got 9, at most 2"), (500, "<b>broken</b>"), (503, "shutting down")):
            self.server.script.refusal = Refusal(status, message)
            self.ask_and_wait(f"Status {status}")
            expect(self.note).to_contain_text(message)
            expect(self.button("Try again")).to_be_enabled()

    def test_another_model_after_a_restart(self) -> None:
        self.server.script.model = "another-model"  # and nobody saw the restart
        self.ask_and_wait("Who are you?")
        expect(self.note).to_contain_text("another model")
        self.ready()
        expect(self.page.locator("#model")).to_have_text("another-model")
        self.button("Try again").click()
        expect(self.answer).to_have_text(TEXT)

    def test_a_server_without_figures(self) -> None:
        for stats in (None, {}, {"weight_bytes": 5_200_000, "running": "many"}):
            self.server.script.stats = stats
            self.page.reload()
            self.ready()
            self.ask_and_wait("Still there?")
            expect(self.answer).to_have_text(TEXT)
            if stats:
                expect(self.page.locator("#figures")).to_have_text("weights5.2 MB")


class Phone(PageTest):
    context_options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    network_errors_expected = True

    def assert_fits(self, when: str) -> None:
        """Nothing is wider than the screen, but what scrolls in itself."""
        outside = self.page.evaluate(
            """() => [...document.body.querySelectorAll("*")].filter((one) => {
                const box = one.getBoundingClientRect();
                return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)
                    && !one.closest("pre, #heard, script") && getComputedStyle(one).clipPath === "none";
            }).map((one) => one.outerHTML.slice(0, 80))"""
        )
        self.assertEqual(outside, [], when)
        widths = self.page.evaluate("[document.scrollingElement.scrollWidth, document.querySelector('main').scrollWidth]")
        self.assertLessEqual(max(widths), PHONE["width"], when)

    def test_nothing_scrolls_sideways(self) -> None:
        self.assert_fits("empty")
        wide = ["x" * 300, "\n\n", "```\n" + "y" * 300 + "\n```\n\n", "`" + "z" * 300 + "`"]
        self.server.script.tokens = wide
        self.ask_and_wait("w" * 300)
        self.assert_fits("answered")
        self.button("Edit").click()
        self.assert_fits("editing")
        self.question.press("Escape")
        self.server.script.refusal = Refusal(400, "u" * 300, "context_length_exceeded")
        self.ask_and_wait("Too long?")
        self.assert_fits("refused")
        self.button("Settings").click()
        self.assert_fits("settings")
        self.button("Cancel").click()
        self.server.stop()
        self.state("server is away")
        self.assert_fits("away")
        self.server.script.key = "secret"
        self.server.start()
        self.state("key needed")
        self.assert_fits("key")

    def test_what_is_touched_is_large_enough(self) -> None:
        self.ask_and_wait("Touch")
        for name in ("Send", "Settings", "New conversation", "Copy", "Again", "Edit"):
            self.assertGreaterEqual(self.button(name).bounding_box()["height"], 44, name)
        # Smaller text makes iOS zoom into a field that is touched.
        size = self.question.evaluate("(field) => parseFloat(getComputedStyle(field).fontSize)")
        self.assertGreaterEqual(size, 16)

    def test_the_last_words_stay_in_sight(self) -> None:
        self.server.script.tokens = ["line\n\n"] * 60 + ["the end"]
        self.server.script.token_after = 0.01
        self.ask_and_wait("Long")
        expect(self.answer.get_by_text("the end")).to_be_in_viewport()
        expect(self.question).to_be_in_viewport()
        self.server.script.refusal = Refusal(429, "busy")
        self.ask_and_wait("A note and a notice take room")
        self.server.stop()
        self.state("server is away")
        expect(self.note).to_be_in_viewport(ratio=1)
        self.page.locator("main").evaluate("(main) => { main.scrollTop = 0 }")
        self.button("To the end").click()
        expect(self.note).to_be_in_viewport(ratio=1)


if __name__ == "__main__":
    unittest.main()
