import subprocess
import sys

import ucm
from ucm.cli import main


def test_help_names_every_command(ucm_command):
    outcome = ucm_command("--help")
    assert outcome.code == 0
    for command in ("bench", "check", "config", "demo", "plugins"):
        assert f"  {command} " in outcome.out


def test_no_command_shows_the_help(ucm_command):
    assert ucm_command() == ucm_command("--help")


def test_version(ucm_command):
    assert ucm_command("--version").out == f"ucm, version {ucm.__version__}\n"


def test_help_is_fast_because_it_imports_only_click(tmp_path):
    code = (
        "import sys, ucm.cli; ucm.cli.main(['--help']); "
        "print([m for m in ('rich', 'yaml', 'pluggy', 'numpy', 'torch', 'ucm._abi')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")


def test_a_wrong_command_line_is_one_line_and_2(ucm_command, refused):
    refused(ucm_command("dmeo"), 2, "dmeo", "ucm --help")
    refused(ucm_command("demo", "--bogus"), 2, "--bogus", "ucm demo --help")
    refused(ucm_command("bench", "--repeat", "0"), 2, "--repeat")
    refused(ucm_command("config", "extra"), 2, "extra")


def test_a_wrong_configuration_is_one_line_and_2(ucm_command, refused):
    refused(ucm_command("demo", "--pipeline", "Cache|Posxi"), 2, "Posxi", "'Posix'")
    refused(ucm_command("demo", "-o", "timeout_sm=5"), 2, "timeout_sm", "timeout_ms")
    refused(ucm_command("demo", "-o", "timeout_ms=soon"), 2, "timeout_ms", "soon")
    refused(ucm_command("demo", "-o", "timeout_ms"), 2, "timeout_ms", "KEY=VALUE")
    refused(ucm_command("demo", "--pipeline", "Cache|Compress"), 2, "Compress")


def test_a_failure_is_one_line_and_1(ucm_command, refused, tmp_path):
    missing = tmp_path / "missing"
    refused(ucm_command("demo", "-o", f"storage_backends={missing}"), 1, str(missing))


def test_a_traceback_is_shown_when_asked_for(ucm_process):
    asked = ucm_process("demo", "--pipeline", "Nothing", UCM_TRACEBACK="1")
    assert asked.code == 2
    assert "Traceback" in asked.err
    assert "Traceback" not in ucm_process("demo", "--pipeline", "Nothing").err


def test_a_surprise_is_1_and_says_how_to_see_more(monkeypatch, capsys):
    def broken():
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(ucm, "plugins", broken)
    assert main(["plugins"]) == 1
    assert "ZeroDivisionError: surprise (UCM_TRACEBACK=1 shows where)" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(ucm, "plugins", interrupted)
    assert main(["plugins"]) == 130
    assert capsys.readouterr().err.endswith("ucm: interrupted\n")
