"""ABI 1.0 is frozen: stores and hosts of 1.0, of a later version and ours work with each other.

``1.0/`` holds the headers of 1.0, and a layer, a bottom store and a host written for them; none of
these files changes. A later version is made here: the header of today with more members in every
struct, which whoever is built with it fills with nonsense, and more values.
"""

import re
import subprocess
from pathlib import Path

import pytest
from ucm._abi import ffi, lib

import ucm
from ucm import loader, pipeline, registry

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FROZEN = HERE / "1.0"
NOW = Path(ucm.get_include())
OURS = {path.stem: str(path) for path in registry.shipped_libraries()}
CC = ["cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pthread"]
LATER = """
#define UCM_LATER
#define POISON(pointer) \\
    for (size_t i_ = 0; i_ < 4; i_++) (pointer)->later[i_] = 0xa5a5a5a5a5a5a5a5u + i_
#define POISONED , .later = {0xa5a5a5a5a5a5a5a5u, 1, 2, 3}
enum { UCM_LATER_TYPE = 99, UCM_LATER_METRIC = 9 };
#define UCM_LATER_CAP (1u << 20)
#define UCM_LATER_RESULT (1u << 20)
#endif /* UCM_STORE_V1_H */
"""


def later(header):
    """Return the header of a later version."""
    text, structs = re.subn(r"\n}( ucm_\w+)?;", r"\n    uint64_t later[4];\n}\1;", header)
    enums = re.compile(r"(\nenum \{[^}]*)\n    uint64_t later\[4\];(\n\};)")
    text, undone = enums.subn(r"\1\2", text)
    assert structs - undone == 20
    text, minors = re.subn(r"UCM_ABI_MINOR = (\d+)", "UCM_ABI_MINOR = 77", text)
    assert minors == 1
    return text.replace("#endif /* UCM_STORE_V1_H */\n", LATER)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Compile host and stores, of 1.0 and of the later version, each once."""
    folder = tmp_path_factory.mktemp("abi")
    now = {name: (NOW / "ucm" / name).read_text() for name in ("store_v1.h", "task_v1.h")}
    old = {name: (FROZEN / name).read_text() for name in now}
    for age, texts in ("Old", old), ("New", {**now, "store_v1.h": later(now["store_v1.h"])}):
        headers = folder / age
        (headers / "ucm").mkdir(parents=True)
        for name, text in texts.items():
            (headers / "ucm" / name).write_text(text)
        for name in "Layer", "Bottom":
            source = FROZEN / f"{name.lower()}.c"
            flags = ["-shared", "-fPIC", f'-DNAME="{age}{name}"', f"-I{headers}"]
            subprocess.run([*CC, *flags, source, "-o", folder / f"{age}{name}.so"], check=True)
        host = [FROZEN / "host.c", "-o", folder / f"{age}Host", "-ldl"]
        subprocess.run([*CC, f"-I{headers}", *host], check=True)
    return folder


@pytest.fixture(scope="session")
def attic(built):
    """Compile a store in C++, of today, against the later header, as its author might."""
    library = built / "Attic.so"
    command = ["c++", "-std=c++17", "-shared", "-fPIC", f"-I{built}/New", f"-I{NOW}"]
    subprocess.run([*command, ROOT / "examples/cpp_store/attic.cpp", "-o", library], check=True)
    return library


@pytest.fixture(scope="session")
def encrypt(built):
    """Compile a layer in C++, of today, against the later header, as its author might."""
    crypto = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libcrypto"], capture_output=True, text=True
    )
    if crypto.returncode:
        pytest.skip("the headers of OpenSSL are not installed")
    library, source = built / "Encrypt.so", ROOT / "examples" / "encrypt_store"
    command = ["c++", "-std=c++17", "-shared", "-fPIC", f"-I{built}/New", f"-I{NOW}", "-pthread"]
    whole = built / "encrypt.cpp"
    parts = ("plugin", "seal", "store")
    whole.write_text("".join(f'#include "{source}/{part}.cpp"\n' for part in parts))
    subprocess.run([*command, whole, "-o", library, *crypto.stdout.split()], check=True)
    return library


def path_of(folder, name):
    """Return the library of a layer."""
    return OURS.get(name.lower(), f"{folder}/{name}.so")


def run_host(folder, host, pipeline, **options):
    """Run a host; return its facts by name, and those of each layer as lists."""
    arguments = []
    for name in pipeline.split("|"):
        arguments.append(path_of(folder, name))
        arguments += [
            f"{k}={v}" for k, v in options.items() if name.endswith(k.split("_")[0].title())
        ]
        if name == "Posix":
            arguments.append(f"storage_backends={folder}/{host}-{pipeline.replace('|', '-')}")
            Path(f"{folder}/{host}-{pipeline.replace('|', '-')}").mkdir(exist_ok=True)
        if name == "Cache":
            arguments.append("cache_buffer_capacity_gb=0.01")
    done = subprocess.run(
        [f"{folder}/{host}", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = {}
    for line in done.stdout.splitlines():
        name, number = line.split()
        facts.setdefault(name, []).append(int(number))
    return facts


GOOD = {
    "dumped": [8], "dump": [0], "all": [8], "prefix": [8], "last": [8], "no_mode": [-4],
    "loaded": [8], "bytes": [39972], "load": [0], "flag": [4], "touch": [0], "prefetch": [0],
    "drain": [0], "stored": [8], "lost": [0], "unknown_flag": [4], "remove": [0],
    "after_remove": [0],
}  # fmt: skip
PIPELINES = [
    "OldLayer|OldBottom", "OldLayer|NewBottom", "NewLayer|OldBottom", "NewLayer|NewBottom",
    "OldLayer|Posix", "NewLayer|Posix", "Compress|OldBottom", "Compress|NewBottom",
    "Cache|OldBottom", "Cache|NewBottom", "OldLayer|Cache|NewLayer|Compress|OldLayer|Posix",
    "Cache|OldLayer|Compress|NewLayer|OldBottom", "NewLayer|Cache|OldLayer|Compress|NewBottom",
]  # fmt: skip


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("host", ["OldHost", "NewHost"])
def test_any_host_runs_any_mixture(built, host, pipeline):
    facts = run_host(built, host, pipeline)
    assert {name: facts[name] for name in GOOD} == GOOD
    own = [name for name in pipeline.split("|") if name[:3] in ("Old", "New")]
    assert facts.get("faults", []) == [0] * len(own)
    assert facts["close"] == [0] * (pipeline.count("|") + 1)


@pytest.mark.parametrize("host", ["OldHost", "NewHost"])
def test_a_store_in_cpp_is_compiled_with_a_later_header(built, attic, host):
    facts = run_host(built, host, "OldLayer|Attic")
    assert {name: facts[name] for name in GOOD} == GOOD


@pytest.fixture
def key(tmp_path):
    """Make the options of Encrypt."""
    file = tmp_path / "key"
    file.write_text("5f" * 32)
    file.chmod(0o600)
    return {"encrypt_key_file": str(file)}


@pytest.mark.parametrize("host", ["OldHost", "NewHost"])
@pytest.mark.parametrize("pipeline", ["OldLayer|Encrypt|NewBottom", "Encrypt|OldBottom"])
def test_a_layer_in_cpp_is_compiled_with_a_later_header(built, encrypt, key, host, pipeline):
    facts = run_host(built, host, pipeline, **key)
    assert {name: facts[name] for name in GOOD} == GOOD
    assert set(facts.get("faults", [])) <= {0}


def test_a_layer_that_changes_the_bytes_hands_on_no_unknown_result_flag(built, encrypt, key):
    def faults(pipeline):
        return run_host(built, "OldHost", pipeline, layer_strict="true", **key)["faults"][0]

    assert faults("OldLayer|NewBottom") > 0  # the layer sees the flag
    assert faults("OldLayer|Encrypt|NewBottom") == 0


def test_two_versions_of_the_cpp_helper_share_no_state(attic):
    symbols = subprocess.run(["nm", "-C", attic], capture_output=True, text=True, check=True).stdout
    assert not [line for line in symbols.splitlines() if " u " in line and "ucm::" in line]


def test_what_is_reserved_is_zero_among_peers_of_1_0(built):
    facts = run_host(
        built, "OldHost", "OldLayer|OldBottom", layer_strict="true", bottom_strict="true"
    )
    assert facts["faults"] == [0, 0]


@pytest.fixture
def open_mixed(built, monkeypatch, tmp_path):
    """Return a function that opens a pipeline of all of these in this process."""
    monkeypatch.setenv("UCM_PLUGINS", ":".join(map(str, sorted(built.glob("*.so")))))
    registry.registry.cache_clear()

    def open_(pipeline, **options):
        own = {"storage_backends": str(tmp_path)} if "Posix" in pipeline else {}
        if "Cache" in pipeline:
            own["cache_buffer_capacity_gb"] = 0.01
        return ucm.open_pipeline(pipeline, block_size=10000, shard_size=5000, **own, **options)

    yield open_
    registry.registry.cache_clear()


IDS = [bytes([i]) * 16 for i in range(4) for _ in range(2)]
SHARDS = [0, 1] * 4


def rows(first=0):
    """Make memory for all shards."""
    return [[bytearray([first + i]) * 5000] for i in range(8)]


def moved(store):
    """Dump four blocks and load them again."""
    store.wait(store.dump(IDS, SHARDS, rows(1)))
    back = rows()
    store.wait(store.load(IDS, SHARDS, back))
    return back == rows(1)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_our_host_runs_any_mixture(open_mixed, pipeline):
    with open_mixed(pipeline, dtype="bf16") as store:
        assert moved(store)
        assert store.lookup(IDS) == [True] * 8
        report = store.drain()
        assert (report.stored, report.lost) == (8, 0)
        for name, values in store.stats().items():
            assert values.get("faults_total", 0) == 0, name
            assert "later" not in values  # but what came before it is read
        assert store.capabilities <= {"keeps", "loads", "persistent", "verifies", "write_back",
                                      "remove", "cancel"}  # fmt: skip
        store.remove(IDS)
        assert store.lookup(IDS) == [False] * 8


LAYERS = ["{}", "OldLayer|{}", "Compress|{}", "NewLayer|Compress|OldLayer|{}"]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("where", ["bottom_call", "bottom_dump"])
def test_an_unknown_status_is_an_error(open_mixed, layers, where):
    with (
        open_mixed(layers.format("OldBottom"), **{where: 99}) as store,
        pytest.raises(ucm.StoreError) as raised,
    ):
        store.wait(store.dump(IDS, SHARDS, rows()))
    assert raised.value.status == ucm.Status.INTERNAL


@pytest.mark.parametrize("layers", LAYERS)
def test_pending_is_no_result(open_mixed, layers):
    with open_mixed(layers.format("OldBottom"), bottom_dump=1) as store:
        task = store.dump(IDS, SHARDS, rows())
        with pytest.raises(ucm.StoreError):
            store.wait(task)
        assert {result.status for result in task.results} == {ucm.Status.INTERNAL}


@pytest.mark.parametrize("pipeline", ["OldBottom", "OldLayer|OldBottom", "Compress|OldBottom"])
def test_an_unknown_status_of_drain_is_an_error(open_mixed, pipeline):
    with open_mixed(pipeline, bottom_drain=99) as store, pytest.raises(ucm.StoreError):
        store.drain()


STANDS = [
    "Posix", "OldBottom", "NewBottom", "Cache|Empty", "Compress|Empty", "Fault|Empty",
    "OldLayer|Empty", "NewLayer|Empty",
]  # fmt: skip
TOUCH_NO_MEMORY = ["Empty", "Fake"]


def with_top_layout(monkeypatch, change):
    """Have the host change every top layout."""

    def top_layout(*args, make=pipeline._top_layout):
        layout = make(*args)
        change(layout)
        return layout

    monkeypatch.setattr(pipeline, "_top_layout", top_layout)


@pytest.mark.parametrize("layers", STANDS)
def test_memory_of_a_later_kind_is_refused(open_mixed, monkeypatch, layers):
    with_top_layout(monkeypatch, lambda layout: setattr(layout, "memory", 2))
    with pytest.raises((ucm.UnsupportedError, ucm.PluginError), match="memory"):
        open_mixed(layers)


@pytest.mark.parametrize("layers", [*STANDS, *TOUCH_NO_MEMORY])
def test_a_flag_of_a_later_layout_is_refused(open_mixed, monkeypatch, layers):
    with_top_layout(monkeypatch, lambda layout: setattr(layout, "flags", 1 << 63))
    with pytest.raises(ucm.UnsupportedError):
        open_mixed(layers)


# Nobody asks the bottom for the layout below it.
LATER_CALLS = [("ucmh_open", layers) for layers in [*STANDS, *TOUCH_NO_MEMORY]]
LATER_CALLS += [("ucmh_ask_lower_layout", layers) for layers in STANDS if "|" in layers]


@pytest.mark.parametrize(("function", "layers"), LATER_CALLS)
def test_a_flag_of_a_later_call_is_refused(open_mixed, monkeypatch, layers, function):
    class Later:
        def __getattr__(self, name):
            return getattr(lib, name) if name != function else self.call

        def call(self, plugin, args, *rest):
            args.flags |= 1 << 63
            return getattr(lib, function)(plugin, args, *rest)

    monkeypatch.setattr(pipeline, "lib", Later())
    with pytest.raises(ucm.UnsupportedError):
        open_mixed(layers)


@pytest.mark.parametrize("dtype", [-1, 99])
@pytest.mark.parametrize("layers", ["Compress|OldBottom", PIPELINES[-3], PIPELINES[-1]])
def test_numbers_of_a_later_type_are_bytes(open_mixed, monkeypatch, layers, dtype):
    with_top_layout(monkeypatch, lambda layout: setattr(layout.planes[0], "dtype", dtype))
    with open_mixed(layers, dtype="bf16") as store:
        assert moved(store)


@pytest.mark.parametrize("layers", ["Cache|OldBottom", "Compress|NewBottom", "Posix"])
def test_a_report_of_a_later_host_is_filled_in_as_far_as_it_is_known(open_mixed, layers):
    with open_mixed(layers) as store:
        assert moved(store)
        memory = ffi.new("uint64_t[]", [64, 0, 0, 0, 0, 7, 7, 7, 7])  # three more members, and past
        report = ffi.cast("ucm_report *", memory)
        args = ffi.new("ucm_wait_args *", {"struct_size": 24, "timeout_ms": 60000})
        handle = ffi.cast("ucm_store *", store.native_handle())
        assert handle.ops.drain(handle, args, report, ffi.NULL) == 0
        assert list(memory) == [64, 8, 0, 0, 0, 7, 7, 7, 7]


@pytest.mark.parametrize(
    ("status", "words"), [(99, "bottom_close"), (3, "refused, the store stays")]
)
def test_close_says_what_went_wrong(open_mixed, caplog, status, words):
    open_mixed("OldLayer|OldBottom", bottom_close=status).close()
    assert words in caplog.text


@pytest.mark.parametrize(
    "lower", ["OldBottom", "Posix", "Compress|OldBottom", "OldLayer|OldBottom"]
)
def test_a_flag_of_a_later_layer_is_refused(open_mixed, lower):
    with open_mixed(f"NewLayer|{lower}", layer_flag=50) as store:
        with pytest.raises(ucm.UnsupportedError):
            store.dump(IDS, SHARDS, rows())
        assert store.lookup(IDS) == [False] * 8


def test_an_option_of_an_unknown_type_is_text_and_not_shown(open_mixed):
    with pytest.raises(ucm.ConfigError, match=r"bottom_later: \(secret\) is not text"):
        open_mixed("NewBottom", bottom_later=["s3cret"])
    with open_mixed("NewBottom", bottom_later="a; b") as store:
        assert store.stats()["NewBottom"]["faults_total"] == 0
    with open_mixed("NewBottom", bottom_later="anything") as store:
        assert store.stats()["NewBottom"]["faults_total"] == 1  # it is given as it stands
    (option,) = [
        option for info in ucm.plugins() for option in info.options if option.name == "bottom_later"
    ]
    assert (option.type, option.allowed, option.hidden) == ("unknown", None, True)


def test_frozen_files_stay(built):
    """Of the header of 1.0, today's has all that it has, at the same places."""
    code = re.compile(r"/\*.*?\*/|\s+", re.DOTALL)
    now = code.sub(" ", (NOW / "ucm" / "store_v1.h").read_text())
    frozen = code.sub(" ", (FROZEN / "store_v1.h").read_text())
    minor = int(re.search(r"UCM_ABI_MINOR = (\d+)", now)[1])
    if minor == 0:
        assert now == frozen
    strict = [*CC, "-Wpedantic", "-fsyntax-only"]
    for headers in NOW, built / "Old", built / "New":
        subprocess.run([*strict, f"-I{headers}", HERE / "layout_1_0.c"], check=True)


def test_the_loader_looks_no_further_than_1_0_ends():
    ends = {"ucm_plugin": 128, "ucm_option": 48, "ucm_metric": 32, "ucm_plane": 16}
    for struct, end in ends.items():
        assert loader.minimum(struct) == end
    plugin = ffi.new("ucm_plugin *")
    plugin.struct_size = 120
    assert not loader.has(plugin, "ucm_plugin", "open")
    assert loader.has(plugin, "ucm_plugin", "lower_layout")


def wrong_layouts():
    """List what a layer may get wrong in the layout for below."""
    planes = ffi.new("ucm_plane[]", [{"bytes": 60}, {"bytes": 60}])
    return {
        "0 segments": {"n_segments": 0},
        "1 segments": {"segment_bytes": ffi.NULL},
        "0 shards": {"shards_per_block": 0},
        "capacity 101": {"capacity": 101},
        "raw_capacity 7": {"raw_capacity": 7},
        "its flags 0x2": {"flags": 2},
        "memory of kind 2": {"memory": 2},
        "encoding '\\+a'": {"encoding": b"+a"},
        "encoding 'A'": {"encoding": b"A"},
        "encoding 'aaa": {"encoding": b"a" * 64},
        "2 planes": {"n_planes": 2, "plane_stride": 16},
        "stride of its planes is 20": {"n_planes": 2, "planes": planes, "plane_stride": 20},
        "planes are longer": {"n_planes": 2, "planes": planes, "plane_stride": 16},
    }


@pytest.mark.parametrize("words", wrong_layouts())
def test_a_wrong_layout_for_below_is_refused(words):
    segments = ffi.new("uint64_t[]", [100])
    good = {
        "segment_bytes": segments, "n_segments": 1, "shards_per_block": 2, "capacity": 100,
        "raw_capacity": 50, "encoding": b"acme.1+ucmz.3",
    }  # fmt: skip
    above = ffi.new("ucm_layout *", good)
    pipeline._check_lower_layout("Acme", above, above)
    wrong = ffi.new("ucm_layout *", {**good, **wrong_layouts()[words]})
    with pytest.raises(ucm.PluginError, match=f"Acme: its lower_layout is wrong: .*{words}"):
        pipeline._check_lower_layout("Acme", above, wrong)
