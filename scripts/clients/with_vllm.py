"""Perplexity of a model directory by vLLM's server on the CPU, from the log-probabilities that it gives for prompts."""
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import json

import windows

START_SECONDS = 600
MODEL_NAME = "model"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(args, port, log):
    binaries = pathlib.Path(sys.executable).parent
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "PATH": f"{binaries}:{os.environ['PATH']}",
    }
    command = [binaries / "vllm", "serve", args.directory, "--host", "127.0.0.1", "--port", str(port), "--served-model-name",
               MODEL_NAME, "--max-model-len", str(args.seq_len + 64), "--max-num-seqs", "4", "--enforce-eager"]
    # A session of its own, so that its worker processes can be ended with it.
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait_until_up(server, url, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    log.seek(0)
    sys.stderr.write(log.read().decode(errors="replace")[-6000:])
    raise SystemExit("vLLM's server did not start" if server.poll() is None else f"vLLM's server ended with {server.poll()}")


def complete(url, **request):
    body = json.dumps({"model": MODEL_NAME, "temperature": 0, **request}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"}),
                                timeout=600) as answer:
        return json.load(answer)["choices"][0]


def measure(args, url):
    nll, n_tokens = 0.0, 0
    for ids in windows.token_windows(args.directory, args.text, args.windows, args.seq_len):
        log_probabilities = complete(url, prompt=ids, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
        # The first token has no prediction; each entry holds the prompt's own token under its id.
        for token, candidates in zip(ids[1:], log_probabilities[1:]):
            nll -= candidates[str(token)]["logprob"]
            n_tokens += 1
    return math.exp(nll / n_tokens)


def main():
    args = windows.parse_arguments(__doc__)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        server = start_server(args, port, log)
        try:
            wait_until_up(server, url, log)
            text = complete(url, prompt="The capital of France is", max_tokens=12)["text"]
            windows.print_result(perplexity=measure(args, url), kernel="vLLM CPU", text=text)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
