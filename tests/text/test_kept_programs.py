"""Compiled programs on disk: another process loads them, and a setting of the user's is left alone."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json, sys
import jax
import isouq.text

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
isouq.text.keep_compiled_programs(*sys.argv[1:])
print(jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3))).sum())
count = {name: sum(e == f"/jax/compilation_cache/cache_{name}" for e in events) for name in ("hits", "misses")}
print(json.dumps(count | {"folder": jax.config.jax_compilation_cache_dir}))
"""


def run(*arguments, **environment):
    """What a new process prints."""
    cleared = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], env=cleared | environment, capture_output=True, check=True
    )
    value, facts = done.stdout.decode().splitlines()
    return float(value), json.loads(facts)


def test_a_second_process_compiles_nothing(tmp_path):
    (value, first), (again, second) = (run(tmp_path / "programs") for _ in range(2))
    assert value == again == 36
    assert first["hits"] == 0 < first["misses"]
    assert second == first | {"hits": first["misses"], "misses": 0}
    assert first["folder"] == str(tmp_path / "programs")


def test_the_folder_is_in_the_cache_and_a_setting_of_the_user_stays(tmp_path):
    assert run(ISOUQ_CACHE=str(tmp_path))[1]["folder"] == str(tmp_path / "xla")
    assert run(tmp_path / "other", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[1]["folder"] == str(
        tmp_path / "own"
    )
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_cache(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "below")[1] == {"hits": 0, "misses": 0, "folder": None}
