"""How stores of other packages become known, and how little a broken one breaks."""

import textwrap

import pytest
from support import compile_library

import ucm

SHOW = "import ucm; print({p.name: p.error or p.origin for p in ucm.plugins()})"


@pytest.fixture
def package(tmp_path):
    """Write a package with an entry point of the group ``ucm``; return the folder."""
    site = tmp_path / "site"

    def write(dist, code, entry_point=None):
        module = dist.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ucm]\n{module} = {entry_point or module}\n")
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        return site

    return write


def store_code(name, answer=False):
    return f"""
    import ucm

    class Store(ucm.StoreBase):
        def lookup(self, block_ids):
            return [{answer}] * len(block_ids)

    @ucm.hookimpl
    def ucm_register_stores(register):
        register({name!r}, Store)
    """


def known(run_python, site, **variables):
    return eval(run_python(SHOW, path=[site], **variables))


def test_an_entry_point_makes_a_store_known(run_python, package):
    site = package("acme-store", store_code("Acme", True))
    assert known(run_python, site)["Acme"] == "acme-store"
    code = "import ucm; print(ucm.open_pipeline('Acme', block_size=64).lookup([bytes(16)]))"
    assert run_python(code, path=[site]) == "[True]\n"


def test_an_entry_point_may_register_a_library(run_python, package, heap_library):
    site = package(
        "heap-store",
        f"""
        import ucm

        @ucm.hookimpl
        def ucm_register_stores(register):
            register("Heap", {str(heap_library)!r})
        """,
    )
    code = """
    import ucm
    with ucm.open_pipeline("Compress|Heap", block_size=64) as store:
        store.wait(store.dump([bytes(16)], [0], [[bytes(64)]]))
        print(store.layers, store.lookup([bytes(16)]))
    """
    out = run_python(textwrap.dedent(code), path=[site])
    assert out == "('Compress', 'Heap') [True]\n"


def test_an_object_can_be_an_entry_point(run_python, package):
    code = store_code("Acme").replace("def ucm", "def ucm_") + ""
    code = """
    import ucm

    class Hooks:
        @ucm.hookimpl
        def ucm_register_stores(self, register):
            register("Acme", ucm.StoreBase)

    hooks = Hooks()
    """
    assert known(run_python, package("acme", code, "acme:hooks"))["Acme"] == "acme"


def test_a_package_may_have_more_than_one_entry_point(run_python, package):
    code = """
    import ucm

    class Hooks:
        def __init__(self, name):
            self.name = name

        @ucm.hookimpl
        def ucm_register_stores(self, register):
            register(self.name, ucm.StoreBase)

    one, two = Hooks("One"), Hooks("Two")
    """
    stores = known(run_python, package("acme", code, "acme:one\nsecond = acme:two"))
    assert (stores["One"], stores["Two"]) == ("acme", "acme")


BROKEN = {
    "import": ("import no_such_module", "no_such_module"),
    "syntax": ("def (:", "SyntaxError"),
    "error": ("raise RuntimeError('on fire')", "on fire"),
    "exit": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "hook": (
        """
        import ucm

        @ucm.hookimpl
        def ucm_register_stores(register):
            raise OSError("no licence")
        """,
        "no licence",
    ),
    "signature": (
        """
        import ucm

        @ucm.hookimpl
        def ucm_register_stores(register, more):
            pass
        """,
        "more",
    ),
    "name": (store_code("Bad name"), "a letter followed by letters and digits"),
    "class": (store_code("Bad").replace("ucm.StoreBase", ""), "derived from neither"),
    "kind": (store_code("Bad").replace(", Store)", ", 7)"), "a library, a class or a builder"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_package_breaks_only_itself(run_python, package, code, reason):
    package("aaa-good", store_code("Aaa"))
    package("broken", code)
    stores = known(run_python, package("zzz-good", store_code("Zzz")))
    assert (stores["Aaa"], stores["Zzz"]) == ("aaa-good", "zzz-good")
    assert stores["Posix"] == "ucm-store"
    assert stores["broken"].startswith("broken (broken): ")
    assert reason in stores["broken"]


def test_naming_a_store_of_a_broken_package_says_what_broke(run_python, package):
    site = package("broken", "import no_such_module")
    done = run_python(
        "import ucm; ucm.open_pipeline('broken', block_size=64)", path=[site], check=False
    )
    assert "the store 'broken' was refused" in done.stderr
    assert "no_such_module" in done.stderr


def test_two_packages_of_one_name_must_be_told_apart(run_python, package):
    package("acme", store_code("Twin", True))
    site = package("other", store_code("Twin", False))
    code = """
    import ucm
    try:
        ucm.open_pipeline("Twin", block_size=64)
    except ucm.PluginError as error:
        print(error)
    for word in ("acme:Twin", "other:Twin"):
        with ucm.open_pipeline(word, block_size=64) as store:
            print(store.layers, store.lookup([bytes(16)]))
    """
    lines = run_python(textwrap.dedent(code), path=[site]).splitlines()
    assert "registered more than once" in lines[0]
    assert "acme:Twin" in lines[0]
    assert "other:Twin" in lines[0]
    assert "by acme 1.0 and other 1.0" in lines[0]
    assert lines[1:] == ["('Twin',) [True]", "('Twin',) [False]"]


def test_one_name_twice_of_one_origin_says_which_files(registered, tiny):
    paths = [tiny("one"), tiny("two")]
    registered(*paths)
    with pytest.raises(ucm.PluginError, match="registered twice by UCM_PLUGINS") as raised:
        ucm.open_pipeline("Tiny", block_size=64)
    assert all(str(path) in str(raised.value) for path in paths)


def test_our_own_names_can_be_told_apart_as_well(run_python, package):
    site = package("acme", store_code("Empty", True))
    code = "import ucm; print(ucm.open_pipeline('Compress|ucm-store:Empty', block_size=64).layers)"
    assert run_python(code, path=[site]) == "('Compress', 'Empty')\n"


def test_ucm_plugins_names_bare_files(registered, heap_library, tiny, tmp_path):
    garbage = tmp_path / "garbage.so"
    garbage.write_text("no")
    registered(heap_library, garbage, tiny())
    infos = {info.name: info for info in ucm.plugins()}
    assert infos["Heap"].path == str(heap_library)
    assert infos["Heap"].origin == infos["Tiny"].origin == "UCM_PLUGINS"
    assert "it does not load" in infos["garbage"].error
    with ucm.open_pipeline("Cache|Heap", block_size=64, cache_buffer_capacity_gb=0.01) as store:
        assert store.layers == ("Cache", "Heap")
    with pytest.raises(ucm.PluginError, match="'garbage' was refused"):
        ucm.open_pipeline("garbage", block_size=64)


def test_a_folder_of_ucm_plugins_stands_for_its_libraries(registered, heap_library, tiny):
    registered(heap_library.parent, tiny().parent)
    assert {info.name for info in ucm.plugins() if info.origin == "UCM_PLUGINS"} == {"Heap", "Tiny"}


def test_an_origin_has_a_version_and_a_library_an_abi(run_python, package, registered, tiny):
    site = package("acme-store", store_code("Acme"))
    code = "import ucm; print({p.name: (p.origin_version, p.abi) for p in ucm.plugins()})"
    assert eval(run_python(code, path=[site]))["Acme"] == ("1.0", "")
    assert eval(run_python(code))["Posix"] == (ucm.__version__, "1.0")


@pytest.mark.parametrize("value", ["", ":", "relative.so", "/nowhere/x.so"])
def test_odd_values_of_ucm_plugins_break_nothing(registered, value):
    registered(value)
    with ucm.open_pipeline("Empty", block_size=64):
        pass


def test_the_header_compiles_where_get_include_says(tmp_path):
    source = tmp_path / "header.c"
    source.write_text('#include "ucm/store_v1.h"\n#include "ucm/task_v1.h"\n')
    compile_library(source, tmp_path / "header.so", "-Wpedantic")


def test_a_word_that_nobody_has_is_told_which_files_were_refused(registered, tmp_path):
    (tmp_path / "acme.so").write_text("no library")
    registered(tmp_path / "acme.so")
    with pytest.raises(ucm.ConfigError, match=r"there is no store 'Other'.*acme.so.*does not load"):
        ucm.open_pipeline("Other", block_size=4096)
    with pytest.raises(ucm.PluginError, match=r"'UCM_PLUGINS:Other' was refused.*acme.so"):
        ucm.open_pipeline("UCM_PLUGINS:Other", block_size=4096)
