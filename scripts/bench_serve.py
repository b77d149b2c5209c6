"""What `codecllm serve` gives clients that come together, over HTTP: tokens a second and the wait for the first token.

Usage: bench_serve.py ADDRESS [--clients 1,8,32,64] [--prompt 256] [--new 256] [--json]

ADDRESS is what the server prints, such as http://127.0.0.1:8080. Each client streams one greedy answer to a prompt of its own. The time counts
from the first request to the last token, prompts included. Every number of clients is asked for once; client 0 has to get the same answer
each time, or is counted under "differs". Needs Python alone.
"""

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What one client got, seconds from its request."""

    first: float
    tokens: int
    text: str


@dataclass
class Round:
    """What all clients of a round got."""

    clients: int
    tokens_per_second: float
    gain: float
    first_token_median_ms: float
    seconds: float
    differs: int


def ask(address: str, client: int, prompt: int, new: int) -> Answer:
    """Streams one answer. The prompt is token ids, so that its length is known."""
    ids = [10 + (client * 7919 + i * 31) % 20000 for i in range(prompt)]
    body = {"prompt": ids, "max_tokens": new, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
    start, first, text, tokens = time.monotonic(), None, "", 0
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"client {client}: status {response.status}: {response.read().decode(errors='replace')[:300]}")
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise RuntimeError(f"client {client}: {event['error']}")
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        for choice in event.get("choices", []):
            first = first or time.monotonic() - start
            text += choice.get("text") or ""
    if first is None or tokens == 0:
        raise RuntimeError(f"client {client}: no token came")
    return Answer(first, tokens, text)


def together(address: str, clients: int, prompt: int, new: int) -> tuple[list[Answer], float]:
    """All clients at once, and how long that took."""
    answers: list[Answer | Exception] = [RuntimeError("not asked")] * clients

    def run(client: int) -> None:
        try:
            answers[client] = ask(address, client, prompt, new)
        except Exception as error:  # told below, by the thread that can end the run
            answers[client] = error

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    got = [answer for answer in answers if isinstance(answer, Answer)]
    if len(got) < clients:
        failed = next(answer for answer in answers if isinstance(answer, Exception))
        sys.exit(f"error: {clients - len(got)} of {clients} clients failed, the first: {failed}")
    return got, seconds


def rounds(address: str, counts: list[int], prompt: int, new: int) -> list[Round]:
    """One round for each number of clients, after one that nobody looks at."""
    together(address, 1, prompt, min(new, 8))
    done: list[Round] = []
    text = None
    for clients in counts:
        answers, seconds = together(address, clients, prompt, new)
        text = text if text is not None else answers[0].text
        rate = sum(answer.tokens for answer in answers) / seconds
        first = 1000 * statistics.median(answer.first for answer in answers)
        gain = rate / done[0].tokens_per_second if done else 1.0
        done.append(Round(clients, rate, gain, first, seconds, int(answers[0].text != text)))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--clients", default="1,8,32,64", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    done = rounds(arguments.address, arguments.clients, arguments.prompt, arguments.new)
    if arguments.json:
        print(json.dumps([asdict(round) for round in done]))
        return
    print(f"{'clients':>7} {'tokens/s':>9} {'gain':>7} {'first token':>12} {'differs':>8}")
    for round in done:
        print(
            f"{round.clients:7} {round.tokens_per_second:9.1f} {round.gain:6.2f}x "
            f"{round.first_token_median_ms:9.0f} ms {round.differs:8}"
        )


if __name__ == "__main__":
    main()
