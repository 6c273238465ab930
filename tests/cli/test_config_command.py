import shutil
import subprocess
from pathlib import Path

import pytest


def test_the_include_folder_has_the_contract(ucm_command):
    folder = Path(ucm_command("config", "--includedir").out.strip())
    assert (folder / "ucm" / "store_v1.h").is_file()
    assert (folder / "ucm" / "store_v1.hpp").is_file()


def test_flags_come_in_one_line(ucm_command):
    everything = ucm_command("config", "--json").json
    assert set(everything) == {"cflags", "includedir", "pkgconfigdir"}
    assert everything["cflags"] == f"-I{everything['includedir']}"
    both = ucm_command("config", "--cflags", "--pkgconfigdir").out
    assert both == f"{everything['cflags']} {everything['pkgconfigdir']}\n"


def test_without_a_flag_it_shows_all(ucm_command):
    everything = ucm_command("config", "--json").json
    assert ucm_command("config").out == "".join(f"{k}: {v}\n" for k, v in everything.items())


def test_json_takes_flags_too(ucm_command):
    assert list(ucm_command("config", "--includedir", "--json").json) == ["includedir"]


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_pkg_config_agrees(ucm_command):
    everything = ucm_command("config", "--json").json
    done = subprocess.run(
        ["pkg-config", "--cflags", "ucm-store"],
        env={"PKG_CONFIG_PATH": everything["pkgconfigdir"], "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = Path(done.stdout.strip().removeprefix("-I")).resolve()
    assert found == Path(everything["includedir"]).resolve()
