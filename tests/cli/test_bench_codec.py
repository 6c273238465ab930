"""``ucm bench codec`` measures the codec of Compress alone, on bytes of the user."""

import os

import pytest

from ucm import demo

SAMPLE = demo.SAMPLE
RATES = ("compress_gbps", "decompress_gbps", "memcpy_gbps")


@pytest.fixture
def measured(ucm_command):
    """Run the command and return what it says."""

    def run(file, dtype, plane, *args):
        line = ("--dtype", dtype, "--plane", plane, "--repeat", "2", "--json", *args)
        outcome = ucm_command("bench", "codec", file, *line)
        assert outcome.code == 0, outcome.err
        return outcome.json

    return run


@pytest.mark.parametrize("codec", ["fast", "small"])
def test_real_kv_cache_shrinks_and_comes_back(measured, codec):
    result = measured(SAMPLE, "bf16", demo.PLANE_BYTES, "--codec", codec)
    assert result["verified"] is True
    assert result["bytes"] == SAMPLE.stat().st_size
    assert result["ratio"] == pytest.approx(result["bytes"] / result["frame_bytes"], abs=1e-4)
    assert result["ratio"] > 1.4
    assert all(result[rate] > 0 for rate in RATES)
    assert result["codec"] == codec


def test_a_shard_has_a_frame(measured):
    block = 60 * demo.PLANE_BYTES
    frames = {
        size: measured(SAMPLE, "bf16", demo.PLANE_BYTES, "--shard", size, "--codec", "raw")
        for size in (block, 10 * block)
    }
    assert frames[block]["shard_bytes"] == block
    assert frames[block]["frame_bytes"] - frames[10 * block]["frame_bytes"] == 9 * 64


def test_raw_shrinks_nothing(measured):
    result = measured(SAMPLE, "bf16", demo.PLANE_BYTES, "--codec", "raw")
    assert result["frame_bytes"] > result["bytes"]
    assert result["ratio"] == 1.0


def test_what_the_numbers_are_is_seen(measured):
    known, seen = (
        measured(SAMPLE, dtype, demo.PLANE_BYTES)["frame_bytes"] for dtype in ("bf16", "bytes")
    )
    assert seen < 1.01 * known


@pytest.mark.parametrize("kernels", ["scalar", "avx2", "avx512", "neon"])
def test_every_set_of_kernels_makes_the_same_frames(ucm_command, measured, kernels):
    line = ("--dtype", "bf16", "--plane", demo.PLANE_BYTES, "--kernels", kernels, "--json")
    outcome = ucm_command("bench", "codec", SAMPLE, *line)
    if outcome.code == 1 and "does not run" in outcome.err:
        pytest.skip(f"this processor does not run {kernels}")
    assert outcome.code == 0, outcome.err
    best = measured(SAMPLE, "bf16", demo.PLANE_BYTES)
    assert outcome.json["frame_bytes"] == best["frame_bytes"]


def test_the_codec_alone_makes_the_same_frames(measured):
    alone = measured(SAMPLE, "bf16", demo.PLANE_BYTES, "--no-checksums")
    assert alone["frame_bytes"] == measured(SAMPLE, "bf16", demo.PLANE_BYTES)["frame_bytes"]


@pytest.mark.parametrize("dtype", ["bytes", "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"])
def test_every_dtype_of_noise_stays_what_it_is(measured, tmp_path, dtype):
    file = tmp_path / "noise"
    file.write_bytes(os.urandom(100_001))  # ends within a plane, and within an element
    result = measured(file, dtype, 8192)
    assert result["bytes"] == 100_001
    assert result["verified"] is True
    assert result["ratio"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("plane", ["64", "1MiB", "16MiB", "3GiB"])
def test_a_plane_may_be_small_or_larger_than_the_file(measured, plane):
    result = measured(SAMPLE, "bf16", plane)
    assert result["verified"] is True
    assert result["shard_bytes"] % result["plane"] == 0


def test_the_text_says_the_same(ucm_command):
    outcome = ucm_command("bench", "codec", SAMPLE, "--dtype", "bf16", "--plane", "6KiB")
    assert outcome.code == 0, outcome.err
    for words in ("3,686,400 bytes of bf16", "verified", "compress ", "decompress ", "memcpy "):
        assert words in outcome.out


def test_what_cannot_be_measured_is_2(ucm_command, refused, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()

    def bench(*args):
        return ucm_command("bench", "codec", *args)

    refused(bench(empty, "--dtype", "bf16", "--plane", "64"), 2, str(empty), "empty")
    refused(bench(SAMPLE, "--dtype", "bf16", "--plane", "101"), 2, "--plane", "101", "bf16")
    refused(bench(SAMPLE, "--dtype", "bf16", "--plane", "0"), 2, "--plane", "0")
    refused(bench(SAMPLE, "--dtype", "int4", "--plane", "64"), 2, "--dtype", "int4", "bf16")
    refused(bench(SAMPLE, "--dtype", "bf16"), 2, "--plane")
    refused(bench(tmp_path / "gone", "--dtype", "bf16", "--plane", "64"), 2, "gone")
    refused(
        bench(SAMPLE, "--dtype", "bf16", "--plane", "64", "--codec", "zip"), 2, "--codec", "fast"
    )
