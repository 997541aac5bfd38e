"""Runs scenarios with one SDK, set up by its own environment variables alone, and prints a line of JSON for each.

    drive.py <module> <scenario>...

A scenario is a function of the module; one that returns has passed. `load` asks until the program gets a SIGTERM.
"""

import asyncio
import importlib
import inspect
import json
import keyword
import signal
import sys
import threading
import traceback

# What the fake provider says, and what its models call tools with.
TEXT = "".join(f"piece {n} " for n in range(1, 7))
CITY = {"city": "Paris"}
SAID = "The tool said: "
CITY_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# A key that nobody made valid.
WRONG_KEY = "sk-wrong-0123456789"
WORKERS = 4


def same(seen, expected):
    assert seen == expected, f"{seen!r} instead of {expected!r}"


def raises(kind, call, status=None):
    """That a call ends in an error of this class."""
    try:
        result = call()
    except kind as error:
        if status is not None:
            same(getattr(error, "status_code", None) or getattr(error, "code", None), status)
        return error
    raise AssertionError(f"no {kind.__name__}, but {result!r}")


def breaks(chunks):
    """That a stream begins, and ends in an error, of whichever class the HTTP library beneath has."""
    pieces = []
    try:
        for chunk in chunks:
            pieces.append(chunk)
    except Exception as error:
        assert pieces, "nothing came before the end"
        return type(error).__name__
    raise AssertionError(f"a clean end after {len(pieces)} events")


def load(module):
    """Plain and streamed requests, over and over, by several threads. The first failure would do, but all are told."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    lock = threading.Lock()
    requests = 0
    failures = []

    def work():
        nonlocal requests
        while not end.is_set():
            for scenario in (module.chat, module.stream):
                try:
                    scenario()
                except Exception:
                    failures.append(traceback.format_exc())
                with lock:
                    requests += 1
                    if requests == 1:
                        print(json.dumps({"begun": True}), flush=True)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"{len(failures)} of {requests} failed, the first:\n{failures[0]}"
    return f"{requests} requests"


def main():
    sys.path.insert(0, __file__.rsplit("/", 1)[0])
    # Modules import this one by its name.
    sys.modules["drive"] = sys.modules["__main__"]
    module = importlib.import_module(sys.argv[1])
    # One loop for all: what a module keeps between scenarios may be bound to it.
    loop = asyncio.Runner()
    for scenario in sys.argv[2:]:
        try:
            if scenario == "load":
                said = load(module)
            else:
                name = scenario.replace("-", "_")
                said = getattr(module, name + "_" * keyword.iskeyword(name))()
                if inspect.iscoroutine(said):
                    said = loop.run(said)
            line = {"scenario": scenario, "passed": True, "said": str(said or "")}
        except Exception:
            line = {"scenario": scenario, "passed": False, "said": traceback.format_exc()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
