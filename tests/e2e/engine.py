"""Forks vLLM engines and has them do what they are told: engine.py SOCKET

vLLM is imported once; each connection to the socket forks an engine. The first line it is sent is
its SPEC, every other one an order of ORDERS with its arguments, as JSON; each is answered by one
line. An engine ends when its connection is closed, and all of it when its input is. SOCKET.ends
gets a line for each engine that has ended: its PID and its exit code.

SPEC: log (a file), environment, and the arguments of vLLM's LLM.
"""

import json
import os
import select
import signal
import socket
import sys

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    # Beside the model, which is eager, vLLM compiles small functions, for seconds in each engine.
    TORCHDYNAMO_DISABLE="1",
)


def parameters(outputs):
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, logprobs=1)


def result(done):
    output = done.outputs[0]
    steps = zip(output.logprobs or (), output.token_ids, strict=True)
    return {
        "tokens": list(output.token_ids),
        "logprobs": [step[token].logprob for step, token in steps],
        "ttft_ms": done.metrics.first_token_latency * 1000,
        "end": output.finish_reason,
    }


def run(llm, prompts, outputs, salt=None):
    """Answer prompts one after the other."""
    results = []
    for tokens in prompts:
        given = {"prompt_token_ids": tokens, **({"cache_salt": salt} if salt else {})}
        (done,) = llm.generate(given, parameters(outputs), use_tqdm=False)
        results.append(result(done))
    return results


def together(llm, prompts, outputs, abort):
    """Answer prompts at once; ``abort`` has, by a prompt's place, the step after which it goes."""
    engine = llm.llm_engine
    for i, tokens in enumerate(prompts):
        engine.add_request(str(i), {"prompt_token_ids": tokens}, parameters(outputs))
    results, step = {}, 0
    while engine.has_unfinished_requests():
        for done in engine.step():
            if done.finished and done.outputs[0].finish_reason != "abort":
                results[int(done.request_id)] = result(done)
        step += 1
        engine.abort_request([i for i, when in abort.items() if when == step])
    return [results.get(i) for i in range(len(prompts))]


def reset(llm, connector):
    """Forget vLLM's own cache, and with ``connector`` what the store has."""
    # Blocks are held until they are saved, which an engine in this process learns when it steps.
    while llm.llm_engine.engine_core.engine_core.scheduler.has_requests():
        llm.llm_engine.step()
    return llm.reset_prefix_cache(reset_connector=connector)


def metrics(llm):
    """Return vLLM's counters, summed over their labels."""
    values = {}
    for metric in llm.get_metrics():
        if hasattr(metric, "value"):
            values[metric.name] = values.get(metric.name, 0) + metric.value
    return values


def endpoint(llm):
    """Return what vLLM's own endpoint would show."""
    from prometheus_client import generate_latest
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    return generate_latest(get_prometheus_registry()).decode()


def spent(llm):
    """Return what the audited connector counted since the last call."""
    import audit

    return audit.take_spent()


ORDERS = {f.__name__: f for f in (run, together, reset, metrics, endpoint, spent)}


def import_all():
    """Import what every engine imports, without a thread that forks would lack."""
    import vllm.model_executor.models.llama
    import vllm.model_executor.models.qwen2
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401


def engine(connection):
    """Be one engine."""
    lines = connection.makefile("rw")
    spec = json.loads(lines.readline())
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(spec["environment"])
    from vllm import LLM

    def answer(value):
        lines.write(json.dumps(value) + "\n")
        lines.flush()

    answer(os.getpid())
    llm = LLM(**spec["engine"])
    run(llm, [list(range(10))], 2)  # the first request of an engine is slow
    answer("ready")
    for line in lines:
        order = json.loads(line)
        answer(ORDERS[order.pop("do")](llm, **order))


def reap(ends):
    """Note how engines ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        with open(ends, "a") as file:
            file.write(f"{pid} {os.waitstatus_to_exitcode(status)}\n")


def main(path):
    import_all()
    signal.signal(signal.SIGCHLD, lambda *_: reap(path + ".ends"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            engine(connection)
            return
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
