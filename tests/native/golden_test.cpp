// SPDX-License-Identifier: MIT
//
// Directories of every version, as tests/goldens.py has written them.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "harness.h"

using namespace ucm_test;

namespace {

const std::string kData = UCM_TEST_FILES "/data/";

BlockId golden_id(int block) {
    BlockId id{};
    std::memset(id.bytes, block, sizeof id.bytes);
    return id;
}

// As contents() of tests/goldens.py.
std::vector<uint8_t> golden_contents(int block, uint32_t shard, uint64_t length) {
    std::vector<uint8_t> bytes(length, uint8_t(uint32_t(block) + shard));
    const uint32_t kind = (uint32_t(block) + shard) % 3;
    uint32_t state = 1000 * uint32_t(block) + shard;
    for (uint64_t i = 0; i < length; i++) {
        state = state * 1664525 + 1013904223;
        if (kind == 0) bytes[i] = uint8_t(37 * uint64_t(block) + 11 * shard + i / 16);
        if (kind == 2) bytes[i] = uint8_t(state >> 24);
    }
    return bytes;
}

void require_block(Stack &stack, int block, const std::vector<uint64_t> &lengths) {
    Move move(stack, shards_of({golden_id(block)}, uint32_t(lengths.size())));
    REQUIRE(move.load() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    for (size_t i = 0; i < lengths.size(); i++) {
        INFO("block " << block << ", shard " << i);
        REQUIRE(move.result(i).length == lengths[i]);
        std::vector<uint8_t> bytes = move.bytes(i);
        bytes.resize(lengths[i]);
        REQUIRE(bytes == golden_contents(block, uint32_t(i), lengths[i]));
    }
    REQUIRE_FALSE(move.overrun());
}

}  // namespace

TEST_CASE("blocks of every version are read bit for bit", "[posix]") {
    const std::string name = GENERATE("blocks-1");
    const std::string direct = GENERATE("false", "true");
    TempDir directory;
    std::filesystem::copy(kData + name, directory.path(), std::filesystem::copy_options::recursive);
    const auto options = [&](const char *model, const char *fingerprint) {
        return Options{{"storage_backends", directory.path()},
                       {"namespace", "golden"},
                       {"model", model},
                       {"fingerprint", fingerprint},
                       {"io_direct", direct}};
    };
    {
        Stack stack({"Posix"}, options("plain", "bytes:3000,2000"), Geometry{4, {3000, 2000}});
        require_block(stack, 1, {5000, 5000, 5000, 5000});
        require_block(stack, 2, {5000, 1, 0, 4096});
        require_block(stack, 3, {0, 0, 0, 0});
    }
    {
        Stack stack({"Posix"}, options("tiny", "bytes:1"), Geometry{1, {1}});
        require_block(stack, 4, {1});
    }
    if (!has_plugin("Compress")) return;
    Geometry coded{3, {8192}, UCM_DTYPE_BF16};
    Stack stack({"Compress", "Posix"}, options("coded", "bf16:8192"), coded);
    require_block(stack, 5, {8192, 8192, 8192});
    require_block(stack, 6, {8192, 2, 0});
}
