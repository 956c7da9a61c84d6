"""faas.toml: what it says is taken exactly, and what it cannot mean is refused with file, line and a way out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from broker_faas import options, toml
from broker_faas.config import Config, find, load
from broker_faas.errors import ConfigError
from broker_faas.where import prefix

from .test_dispatch import spec as spec_of

HEAD = 'project = "shop"\nmodules = ["shop.orders"]\n'  # two lines: what a case adds starts at line 3
Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "faas.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(path, environ or {})

    return read


def refusal(read: Read, text: str | bytes, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, environ)
    return str(caught.value)


# --- what it says -------------------------------------------------------------------------------------------


def test_two_lines_are_a_configuration(read: Read, tmp_path: Path) -> None:
    config = read(HEAD)

    assert (config.root, config.project, config.modules) == (tmp_path, "shop", ("shop.orders",))
    assert (config.keep, config.bus.url, config.functions) == (86400.0, None, {})
    assert config.worker.executors == len(os.sched_getaffinity(0))


def test_every_option_arrives_where_it_is_read(read: Read) -> None:
    config = read(
        HEAD + "keep = 3600\n"
        '[bus]\nurl = "nats://127.0.0.1:4222"\nmax_bytes = 104_857_600\ndead_bytes = 1048576\nreplicas = 3\n'
        '[worker]\nexecutors = 3\ngrace = 9.5\nimport_timeout = 5\nrecycle_events = 7\nrecycle_bytes = 8\npass_env = ["HOME"]\n'
        '[function.reserve]\ntimeout = 60\nconcurrency = 2\nretry.max_attempts = 3\nretry.jitter = 0\nenv = {A = "b"}\n'
    )
    reserve = config.functions["reserve"]

    assert config.keep == 3600
    assert (config.bus.url, config.bus.max_bytes, config.bus.dead_bytes, config.bus.replicas) == (
        "nats://127.0.0.1:4222",
        100 << 20,
        1 << 20,
        3,
    )
    assert (config.worker.executors, config.worker.grace, config.worker.import_timeout) == (3, 9.5, 5.0)
    assert (config.worker.recycle_events, config.worker.recycle_bytes, config.worker.pass_env) == (7, 8, ("HOME",))
    assert (reserve.timeout, reserve.concurrency, reserve.retry, reserve.env) == (60.0, 2, {"max_attempts": 3, "jitter": 0.0}, {"A": "b"})


def test_file_is_found_from_a_folder_below_it(tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_text(HEAD)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    assert find(below) == tmp_path / "faas.toml"


def test_missing_file_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")

    with pytest.raises(ConfigError, match="faas new"):
        load()


def test_origin_of_each_value_is_known(read: Read) -> None:
    config = read(HEAD + '[bus]\nmax_bytes = 1048576\n[function.f]\nenv = {TOKEN = "secret"}\nretry = {max_attempts = 2}\n')
    shown = {key: (value, origin) for key, value, origin in config.with_url("nats://u:secret@localhost", "--url").shown()}

    assert shown["project"] == ("shop", "faas.toml:1")
    assert shown["bus.max_bytes"] == (1048576, "faas.toml:4")
    assert shown["bus.url"] == ("nats://…@localhost", "--url")
    assert shown["worker.grace"] == (25.0, "default")
    assert shown["function.f.retry.max_attempts"] == (2, "faas.toml:7")
    assert shown["function.f.env.TOKEN"] == ("…", "faas.toml:6")


def test_secrets_are_in_no_repr(read: Read) -> None:
    config = read(HEAD + '[bus]\nurl = "nats://u:hunter2@localhost"\n[function.f]\nenv = {TOKEN = "hunter2"}\n')

    assert "hunter2" not in repr(config)


def test_override_of_an_unknown_function_names_the_nearest(read: Read) -> None:
    config = read(HEAD + "[function.resreve]\ntimeout = 3\n")

    with pytest.raises(ConfigError, match=r"faas\.toml:3: there is no function 'resreve'; did you mean 'reserve'\?"):
        config.check_functions([spec_of(name="reserve"), spec_of(name="ship")])


# --- variables ----------------------------------------------------------------------------------------------


def test_variables_are_replaced_in_strings_only(read: Read) -> None:
    config = read(
        HEAD + '[worker]\npass_env = ["${WHICH}"]\n[function.f.env]\nURL = "db://${USER}:${PASSWORD}@db"\nPRICE = "$${USER} $(id) $5"\n',
        {"USER": "u", "PASSWORD": "${USER}", "WHICH": "HOME"},
    )

    assert config.worker.pass_env == ("HOME",)
    assert config.functions["f"].env == {"URL": "db://u:${USER}@db", "PRICE": "${USER} $(id) $5"}  # never expanded twice, never run


def test_missing_variable_is_named_with_its_place(read: Read) -> None:
    assert refusal(read, HEAD + '[bus]\nurl = "${NOPE}"\n').startswith(
        "faas.toml:4: bus.url = '${NOPE}' needs the environment variable NOPE"
    )


def test_value_of_a_variable_is_in_no_error(read: Read) -> None:
    said = refusal(read, HEAD + '[bus]\nurl = "${BUS}"\n[worker]\ngrace = "x"', {"BUS": "http://u:hunter2@nats"})

    assert "hunter2" not in said


@pytest.mark.parametrize("text", ["${!x}", "${}", "${a b}", "${HOME", "${A-B}"])
def test_malformed_variable_is_refused(read: Read, text: str) -> None:
    assert "names no variable" in refusal(read, HEAD + f'[function.f.env]\nA = "{text}"\n', {"HOME": "/"})


# --- what it cannot mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('project = "a"\nmodles = ["a"]', "faas.toml:2: faas.toml has no option 'modles'; did you mean 'modules'?"),
        (HEAD + "[wroker]\ngrace = 1", "faas.toml:3: faas.toml has no option 'wroker'; did you mean 'worker'?"),
        (HEAD + "[worker]\n\nexecutor = 1", "faas.toml:5: [worker] has no option 'executor'; did you mean 'executors'?"),
        (
            HEAD + "[function.f]\nretry = {attempts = 3}",
            "faas.toml:4: [function.f.retry] has no option 'attempts'; did you mean 'max_attempts'?",
        ),
        (HEAD + "[bus]\nxyz = 1", "has no option 'xyz'; there is: dead_bytes, insecure, max_bytes, monitor_url, replicas, url"),
        ('modules = ["a"]', "does not say 'project'"),
        ('project = "a"', "does not say 'modules'"),
        ('project = "a"\nmodules = []', "it is empty"),
        ('project = "a"\nmodules = ["a", "a"]', "twice"),
        ('project = "a--b"\nmodules = ["a"]', "single '-'"),
        (f'project = "{"a" * 61}"\nmodules = ["a"]', "at most 60"),
        (HEAD + "worker = 3", "faas.toml:3: worker must be a table, like [worker]"),
        (HEAD + "[function]\nreserve = 3", "faas.toml:4: function.reserve must be a table"),
        (HEAD + '[function."../x"]\ntimeout = 1', "'../x' in [function] must be a name"),
        (HEAD + 'project = "b"', ":3: no valid TOML: a key is given twice"),
        (HEAD + "[bus]\n[bus]", ":4: no valid TOML"),
        (HEAD + "[bus", ":3: no valid TOML"),
        (HEAD + "[bus]\nmax_bytes = " + "9" * 5000, ":4: no valid TOML"),
        ("x = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_refusal_names_place_and_remedy(read: Read, text: str, said: str) -> None:
    assert said in refusal(read, text)


@pytest.mark.parametrize("value", ["0", "-1", "inf", "-inf", "nan", "1e308", '"30"', "true", "[30]", "30d", "1979-05-27", "{}"])
def test_timeout_is_a_positive_finite_number(read: Read, value: str) -> None:
    assert ":4:" in refusal(read, HEAD + f"[function.f]\ntimeout = {value}\n")


@pytest.mark.parametrize(
    "line",
    ["[worker]\nexecutors = 1000000000", "[worker]\nexecutors = 0", "[worker]\nexecutors = 2.0", "[worker]\nexecutors = true",
     "[bus]\nmax_bytes = 1", "[bus]\nreplicas = 2", '[bus]\ninsecure = "yes"', "[bus]\ninsecure = 1",
     "[worker]\ngrace = -5", "[function.f]\nconcurrency = 0", "[function.f.retry]\nmax_attempts = 0", "[function.f.retry]\nfactor = 0.5",
     "[function.f.retry]\nmin_backoff = -1", '[worker]\npass_env = "HOME"', "[function.f.env]\nA = 1"],
)  # fmt: skip
def test_numbers_and_flags_are_typed_and_bounded(read: Read, line: str) -> None:
    assert refusal(read, HEAD + line).startswith("faas.toml:4: ")


@pytest.mark.parametrize("module", ["os:system", "builtins:eval", "../x", "a..b", ":f", "", "a b", "a.b;c", "class", "a\\u0000b"])
def test_module_is_a_name_that_can_be_imported(read: Read, module: str) -> None:
    assert "faas.toml:2: modules" in refusal(read, f'project = "a"\nmodules = ["{module}"]')


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "BASH_ENV", "NATS_URL", "A-B", "1A"]
)
def test_env_that_runs_other_code_or_hands_out_the_bus_is_refused(read: Read, name: str) -> None:
    assert f"faas.toml:4: {name!r} in [function.f.env]" in refusal(read, HEAD + f'[function.f]\nenv = {{{name} = "x"}}\n')
    assert "faas.toml:4: worker.pass_env" in refusal(read, HEAD + f'[worker]\npass_env = ["{name}"]\n')


# --- the bus ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "localhost:4222", "nats://", "nats://localhost:99999", "nats://h/x", "nats://[::1", "nats://localhost,x", ""],
)
def test_bus_url_is_a_nats_url(read: Read, url: str) -> None:
    assert "must look like nats://" in refusal(read, HEAD + f'[bus]\nurl = "{url}"\n')


@pytest.mark.parametrize("url", ["nats://10.0.0.1:4222", "nats://u:p@nats:4222", "tls://nats:4222", "nats://127.0.0.1,nats://u:p@other"])
def test_another_machine_needs_tls_and_a_login(read: Read, url: str) -> None:
    said = refusal(read, HEAD + f'[bus]\nurl = "{url}"\n')

    assert said.startswith("faas.toml:4: bus.url is another machine")
    assert "u:p@" not in said
    with pytest.raises(ConfigError, match=r"NATS_URL = .* is another machine"):
        read(HEAD).with_url(url, "NATS_URL")
    assert read(HEAD + f'[bus]\nurl = "{url}"\ninsecure = true\n').bus.url == url


@pytest.mark.parametrize(
    "url", ["nats://localhost", "nats://127.8.9.1:1", "nats://[::1]:4222", "tls://u:p@nats.example:4222,tls://t@n2.example"]
)
def test_loopback_and_tls_with_a_login_are_taken(read: Read, url: str) -> None:
    assert read(HEAD + f'[bus]\nurl = "{url}"\n').bus.url == url


# --- the file -----------------------------------------------------------------------------------------------


def test_byte_order_mark_and_crlf_are_normalised(read: Read) -> None:
    config = read(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"[worker]\r\ngrace = 7\r\n")

    assert (config.worker.grace, config.origins["worker.grace"]) == (7.0, "faas.toml:4")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (HEAD.encode("utf-16"), "UTF-16"),
        (HEAD.encode("utf-16-le"), "UTF-16"),
        (HEAD.encode() + b'\n# caf\xe9\n', ":4: byte 0xe9 is no UTF-8"),
        (b"#" * ((1 << 20) + 1), "more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_file_that_is_no_utf8_or_too_large_is_refused(read: Read, raw: bytes, said: str) -> None:
    assert said in refusal(read, raw)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"no regular file|Is a directory"):
            load(path, {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "missing.toml", {})


def test_lines_are_found_behind_strings_comments_and_brackets() -> None:
    text = """
a = '''
x = 1
[t]
''' # [u]
b = [ # ]
  "]", [1,
 2],
]
[t."q.r"] # c
  'k' . l = {z = 1}
[[many]]
y = "\\"["
"""

    assert toml.lines(text) == {
        ("a",): 2,
        ("b",): 6,
        ("t", "q.r"): 10,
        ("t", "q.r", "k", "l"): 11,
        ("many", "0"): 12,
        ("many", "0", "y"): 13,
    }


def test_loading_imports_no_heavy_module_and_no_code_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_text('project = "a"\nmodules = ["mine"]\n')
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n")
    heavy = ("nats", "msgspec", "orjson", "asyncio", "mine")
    program = f"import sys; from broker_faas.config import load; load(); print([m for m in {heavy} if m in sys.modules])"
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert (said.stdout, said.stderr) == ("[]\n", "")


def test_a_missing_variable_of_a_function_is_an_error_for_what_runs_it_and_for_nothing_else(read: Read) -> None:
    config = read(HEAD + '[function.f]\nenv = {TOKEN = "${NOPE}"}\n')

    with pytest.raises(ConfigError, match=r"^faas.toml:4: function.f.env.TOKEN needs the environment variable NOPE, which is not set$"):
        config.check_functions([spec_of(name="f")])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://me:secret@host:4222", "nats://…@host:4222"),
        ("nats://me:sec/ret@host", "nats://…@host"),
        ("me:secret@host", "…@host"),
        ("tls://a:secret@b,tls://c:secret@d", "tls://…@b,tls://…@d"),
        ("nats://host:4222", "nats://host:4222"),
    ],
)
def test_a_password_in_a_url_is_never_shown(url: str, shown: str) -> None:
    assert options.masked(url) == shown


# --- connectors ---------------------------------------------------------------------------------------------

ORDERS = '[[connector]]\nname = "orders"\ntype = "kafka"\n'


def test_a_connector_has_a_name_a_type_and_the_options_of_its_driver(read: Read) -> None:
    text = HEAD + ORDERS + 'to = "shop.orders"\nservers = "${SERVERS}"\ntopics = ["a"]\n[connector.where.prefix]\ntype = "order."\n'
    [connector] = read(text, {"SERVERS": "k:9092"}).connectors

    assert (connector.name, connector.type, connector.to) == ("orders", "kafka", "shop.orders")
    assert connector.options == {"servers": "k:9092", "topics": ["a"]}
    assert connector.where == prefix(type="order.")
    assert connector.places["topics"].endswith(":8")


def test_a_missing_variable_of_a_connector_is_no_error_for_what_does_not_run_it(read: Read) -> None:
    [connector] = read(HEAD + ORDERS + 'servers = "${NOPE}"\n').connectors

    assert connector.unset == ("faas.toml:6: connector 'orders': servers needs the environment variable NOPE, which is not set",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[connector]\nname = "a"\n', "faas.toml:3: connectors are written [[connector]], in two brackets, one for each"),
        ('[[connector]]\ntype = "kafka"\n', "faas.toml:3: [[connector]] does not say 'name'"),
        ('[[connector]]\nname = "a"\n', "faas.toml:3: connector 'a' does not say 'type'"),
        (ORDERS + ORDERS, "faas.toml:6: there is a connector 'orders' already, at faas.toml:3"),
        ('[[connector]]\nname = "A b"\ntype = "kafka"\n', "faas.toml:4: connector 'A b': name must be a name of lower-case letters"),
        (ORDERS + 'to = "a..b"\n', "faas.toml:6: connector 'orders': to is no topic: topic 'a..b' has an empty part"),
        (
            ORDERS + 'where = {perfix = {type = "a"}}\n',
            "faas.toml:6: connector 'orders': where is no filter: unknown filter dialect 'perfix'",
        ),
    ],
)
def test_a_connector_that_cannot_be_read_is_refused_with_its_line(read: Read, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(HEAD + text)

    assert says in str(raised.value)
