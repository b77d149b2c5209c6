"""The chat page for those who use a keyboard, listen to it, or need contrast and stillness."""

from mock_server import ANSWER, Refusal
from playwright.sync_api import expect
from browser import PageTest

TEXT = "".join(ANSWER)

# The ratio of a text's color to what is behind it, by WCAG 2, and the least that AA asks for.
CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const over = (colors) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (rgb) => rgb.map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const ratio = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const behind = (at) => {
        const colors = [];
        for (; at; at = at.parentElement) colors.unshift(getComputedStyle(at).backgroundColor);
        return colors;
    };
    const found = [];
    for (const one of document.body.querySelectorAll("*")) {
        const text = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const field = one.matches("input, textarea") && !one.matches("[type=radio]");
        if ((!text && !field) || one.disabled || one.matches("script") || !one.checkVisibility({ opacityProperty: true })) continue;
        const name = `${one.tagName} ${one.id} ${(one.textContent || one.placeholder || "").slice(0, 30)}`;
        const paper = behind(one);
        found.push([name, ratio(over([...paper, getComputedStyle(one).color]), over(paper)), 4.5]);
        if (field) found.push([name + " placeholder", ratio(over([...paper, getComputedStyle(one, "::placeholder").color]), over(paper)), 4.5]);
    }
    return found;
}"""


class Keyboard(PageTest):
    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.getAttribute('aria-label') ?? (document.activeElement.id || document.activeElement.textContent)")

    def walk(self, key: str, steps: int) -> list[str]:
        names = []
        for _ in range(steps):
            self.page.keyboard.press(key)
            names.append(self.focused())
            ring = self.page.evaluate(
                """() => [document.activeElement, document.activeElement.closest(".box")].some((one) => {
                    const style = one && getComputedStyle(one);
                    return style && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
                })"""
            )
            self.assertTrue(ring, f"the focus on {names[-1]} can't be seen")
        return names

    def test_a_conversation_without_a_mouse(self) -> None:
        keyboard = self.page.keyboard
        expect(self.question).to_be_focused()
        keyboard.type("Line one")
        keyboard.press("Shift+Enter")
        keyboard.type("line two")
        keyboard.press("Enter")
        self.ended()
        self.assertEqual(self.server.requests[-1]["messages"][-1]["content"], "Line one\nline two")
        expect(self.question).to_be_focused()
        self.assertEqual(self.walk("Shift+Tab", 6), ["Edit", "Again", "Copy", "Conversation", "settings-open", "New conversation"])
        self.assertEqual(self.walk("Tab", 6), ["settings-open", "Conversation", "Copy", "Again", "Edit", "question"])
        keyboard.type("A draft")
        self.assertEqual(self.walk("Tab", 1), ["send"])
        keyboard.press("Space")
        expect(self.page.locator(".turn")).to_have_count(2)
        self.ended()

    def test_the_focus_survives_what_disappears(self) -> None:
        self.server.script.end_after = 2
        self.ask_and_wait("Cut this")
        for name in ("Try again", "Again", "New conversation", "Bring the last conversation back"):
            self.button(name).focus()
            self.page.keyboard.press("Enter")
            expect(self.question).to_be_focused()
            expect(self.button("Stop")).to_be_hidden()

    def test_escape_stops_from_anywhere(self) -> None:
        self.server.script.tokens = ["word "] * 2000
        for place in ("question", "log", "stop"):
            self.server.left.clear()
            self.question.focus()
            self.page.keyboard.type("Talk forever")
            self.page.keyboard.press("Enter")
            expect(self.answer).to_contain_text("word")
            self.page.locator(f"#{place}").focus()
            self.page.keyboard.press("Escape")
            expect(self.note).to_have_text("Stopped.")
            self.assertTrue(self.server.left.wait(60), "the server does not see that the client left")
            if place == "stop":
                expect(self.question).to_be_focused()

    def test_escape_closes_the_settings_and_leaves_the_answer(self) -> None:
        self.server.script.tokens = ["word "] * 2000
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("word")
        self.button("Settings").focus()
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("dialog")).to_be_visible()
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("dialog")).to_be_hidden()
        expect(self.button("Settings")).to_be_focused()
        expect(self.button("Stop")).to_be_visible()
        self.page.keyboard.press("Escape")
        self.ended()

    def test_enter_that_ends_a_composition_does_not_send(self) -> None:
        self.question.fill("にほん")
        self.question.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
        self.page.wait_for_timeout(100)
        self.assertEqual(self.server.requests, [])


class Listening(PageTest):
    def test_an_answer_is_announced_once_it_is_whole(self) -> None:
        self.page.evaluate(
            """() => {
                window.heard = [];
                const heard = document.querySelector("[role=status]");
                new MutationObserver(() => window.heard.push(heard.textContent)).observe(heard, { subtree: true, childList: true, characterData: true });
            }"""
        )
        self.ask_and_wait("Say it")
        self.wait_for(lambda: len(self.page.evaluate("window.heard")) > 1, "the answer was not announced")
        self.assertEqual(self.page.evaluate("window.heard"), ["Answering", TEXT])
        live = self.answer.evaluate("(one) => one.closest('[aria-live], [role=status], [role=log], [role=alert]') !== null")
        self.assertFalse(live, "each token would be read")

    def test_every_control_has_a_name(self) -> None:
        self.ask_and_wait("Name them")
        self.button("Settings").click()
        nameless = self.page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea")].filter((one) =>
                !one.textContent.trim() && !one.labels?.length && !one.getAttribute("aria-label") && !one.hidden).map((one) => one.outerHTML)"""
        )
        self.assertEqual(nameless, [])
        self.assertEqual(self.page.evaluate("document.documentElement.lang"), "en")


class Seeing(PageTest):
    network_errors_expected = True

    def test_contrasts_reach_aa(self) -> None:
        self.server.script.tokens = ["Text, `code`, **strong**.\n\n", "```\nfenced\n```\n"]
        self.ask_and_wait("First")
        self.server.script.refusal = Refusal(429, "too many wait")
        self.ask_and_wait("Second")
        checked = 0
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            for where in ("conversation", "settings"):
                if where == "settings":
                    self.button("Settings").click()
                contrasts = self.page.evaluate(CONTRASTS)
                checked += len(contrasts)
                low = [(name, round(ratio, 2)) for name, ratio, least in contrasts if ratio < least]
                self.assertEqual(low, [], f"{scheme}, {where}")
            self.page.keyboard.press("Escape")
        self.assertGreater(checked, 80, "the texts were not found")

    def test_nothing_moves_for_who_asked_for_that(self) -> None:
        self.server.script.tokens = ["word "] * 2000
        self.ask("Talk forever")
        expect(self.answer).to_contain_text("word")

        def animation() -> str:
            return self.page.evaluate("getComputedStyle(document.querySelector('.answer > :last-child'), '::after').animationName")

        self.assertEqual(animation(), "beat")
        self.page.emulate_media(reduced_motion="reduce")
        self.assertEqual(animation(), "none")
        self.button("Stop").click()
