"""Helpers that several suites use."""

from __future__ import annotations

import subprocess

import ucm


def compile_library(source, library, *flags):
    """Compile one C file against the installed header; return the library's path."""
    command = ["cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-pthread", f"-I{ucm.get_include()}", *flags]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library
