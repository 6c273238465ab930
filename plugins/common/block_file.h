// SPDX-License-Identifier: MIT
//
// The block file of docs/block-format.md: names, header, and which directory a block lives in. No
// I/O on block files happens here.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "access.h"
#include "task.h"
#include "ucm/store_v1.hpp"

namespace ucm {

constexpr uint64_t kMaxHeaderBytes = 1u << 20;
constexpr uint64_t kUnknownBytes = UINT64_MAX;  // of a file: what its header says is believed
constexpr size_t kDepthAt = 128;                // of the depth, in the header

struct ShardEntry {
    uint64_t offset = 0, length = 0, raw_length = 0, checksum = 0;
};

using Encoding = std::array<char, UCM_ENCODING_BYTES>;
using SpaceId = std::array<uint8_t, 16>;  // see space.h

struct BlockHeader {
    BlockId id{};
    uint64_t file_bytes = 0;
    uint64_t raw_capacity = 0;
    Encoding encoding{};
    uint64_t published_ns = 0;
    uint32_t depth = kUnknownDepth;
    SpaceId space{};
    std::vector<ShardEntry> table;  // by shard index
};

// What a store expects of a block, from its layout.
struct BlockShape {
    uint32_t shard_count = 0;
    uint64_t capacity = 0;
    uint64_t raw_capacity = 0;
    Encoding encoding{};
    SpaceId space{};

    BlockShape() = default;
    BlockShape(const ucm_layout &layout, const SpaceId &space);
    bool fits(const BlockHeader &header) const;
};

uint64_t block_header_bytes(uint32_t shard_count);
// Of the file of a block whose shards are as long as they can be.
uint64_t whole_block_bytes(uint32_t shard_count, uint64_t capacity);

// Writes block_header_bytes(table.size()) bytes.
void encode_block_header(const BlockHeader &header, uint8_t *out);

enum class HeaderState {
    kSound,
    kMore,  // *need bytes of the file are needed to tell
    kCorrupt,
    kIncompatible,  // sound, but of a version or with flags that this reader does not know
};

// Judges the first `have` bytes of a file of file_bytes that is named after `id`.
HeaderState decode_block_header(const uint8_t *data, uint64_t have, uint64_t file_bytes,
                                const BlockId &id, BlockHeader &out, uint64_t *need);

// "abc/abcdef..." under a space, and its folder "abc".
std::string block_name(const BlockId &id);
std::string block_folder(const BlockId &id);

std::string errno_text(int error);
// What a failed system call is to a caller; `absent` is for a missing file.
ucm_status status_of_errno(int error, ucm_status absent = UCM_IO);
// Is it not there, or no longer?
inline bool absent(int error) {
    return status_of_errno(error, UCM_NOT_FOUND) == UCM_NOT_FOUND;
}

using DirectoryId = std::array<uint8_t, 16>;

// False: the directory has none yet. Throws where the file is not understood.
bool read_directory_id(const std::string &directory, DirectoryId &out);
// Reads it or makes it. `aside` is a folder in the same file system for a temporary file.
DirectoryId make_directory_id(const std::string &directory, const std::string &aside,
                              const Access &access);
// The index of the directory where a block lives; ids is not empty.
size_t place_block(const std::vector<DirectoryId> &ids, const BlockId &block);

}  // namespace ucm
