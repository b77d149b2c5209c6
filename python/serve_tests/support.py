"""A server of stories15M, compressed, with a chat template."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache" / "models" / "stories15M"
CODECLLM = os.environ.get("CODECLLM", str(ROOT / "target" / "debug" / "codecllm"))
KEY = "a-key-of-the-tests"
# The model tells stories: what was said is continued.
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def compress_model(folder):
    """Makes folder/stories, the compressed model."""
    source = folder / "source"
    shutil.copytree(MODEL, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    target = folder / "stories"
    subprocess.run([CODECLLM, "compress", str(source), "-o", str(target), "--json"], check=True, stdout=subprocess.DEVNULL)
    return target


class Server:
    """A running `codecllm serve`."""

    def __init__(self, model, *arguments):
        command = [CODECLLM, "serve", str(model), "--port", "0", "--json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command} ended with {self.process.wait()}")
        self.address = json.loads(line)["address"]

    def stop(self):
        """Ends the server as SIGTERM does; returns its exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=120)
        self.process.stdout.close()
        return code


class ServerTest(unittest.TestCase):
    """Tests against one server with a key, which `arguments` are given to."""

    arguments = ()

    @classmethod
    def setUpClass(cls):
        if not (MODEL / "config.json").exists():
            raise unittest.SkipTest(f"{MODEL} is absent; `make models` fetches it")
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        folder = pathlib.Path(cls.folder.name)
        keys = folder / "keys"
        keys.write_text(f"another-key\n{KEY}\n")
        keys.chmod(0o600)
        cls.server = Server(compress_model(folder), "--api-key-file", str(keys), *cls.arguments)
        cls.addClassCleanup(cls.server.stop)
