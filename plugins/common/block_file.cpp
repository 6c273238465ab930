// SPDX-License-Identifier: MIT
#include "block_file.h"

#include <endian.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cctype>
#include <system_error>

#include "buffers.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

constexpr char kBlockMagic[] = "UCMBLOCK";
constexpr uint32_t kBlockVersion = 1;
constexpr uint64_t kFixedBytes = 256, kEntryBytes = 32;
constexpr char kFormatLine[] = "ucm blocks 1\n";

// Offsets in the header.
enum : size_t {
    kAtVersion = 8,
    kAtHeaderBytes = 12,
    kAtId = 16,
    kAtShardCount = 32,
    kAtFlags = 36,
    kAtFileBytes = 40,
    kAtRawCapacity = 48,
    kAtEncoding = 56,
    kAtPublished = 120,
    kAtDepth = kDepthAt,
    kAtSpace = 136,
    kAtChecksum = 248,
};

void put32(uint8_t *at, uint32_t value) {
    value = htole32(value);
    std::memcpy(at, &value, sizeof value);
}
void put64(uint8_t *at, uint64_t value) {
    value = htole64(value);
    std::memcpy(at, &value, sizeof value);
}
uint32_t get32(const uint8_t *at) {
    uint32_t value;
    std::memcpy(&value, at, sizeof value);
    return le32toh(value);
}
uint64_t get64(const uint8_t *at) {
    uint64_t value;
    std::memcpy(&value, at, sizeof value);
    return le64toh(value);
}

// As if the field of the checksum itself were zero.
uint64_t header_checksum(const uint8_t *header, uint64_t bytes) {
    static const uint8_t zero[8] = {};
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, header, kAtChecksum);
    XXH3_64bits_update(&state, zero, sizeof zero);
    XXH3_64bits_update(&state, header + kAtChecksum + 8, bytes - kAtChecksum - 8);
    return XXH3_64bits_digest(&state);
}

bool entry_sound(const ShardEntry &entry, uint64_t header_bytes, uint64_t file_bytes) {
    if (entry.length == 0) return entry.offset == 0;
    if (entry.offset % UCM_ALIGNMENT || entry.offset < header_bytes || entry.offset > file_bytes)
        return false;
    return entry.length <= file_bytes && round_up(entry.length) <= file_bytes - entry.offset;
}

std::string format_path(const std::string &directory) {
    return directory + "/.ucm/format";
}

std::string uuid_text(const DirectoryId &id) {
    char text[37];
    size_t at = 0;
    for (size_t i = 0; i < id.size(); i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text[at++] = '-';
        at += size_t(snprintf(text + at, sizeof text - at, "%02x", id[i]));
    }
    return std::string(text, at);
}

bool parse_uuid(const std::string &text, DirectoryId &out) {
    std::string digits;
    for (char c : text) {
        if (c == '-') continue;
        if (!isxdigit(static_cast<unsigned char>(c))) return false;
        digits += c;
    }
    if (digits.size() != 2 * out.size()) return false;
    for (size_t i = 0; i < out.size(); i++)
        out[i] = uint8_t(std::stoul(digits.substr(2 * i, 2), nullptr, 16));
    return uuid_text(out) == text;
}

}  // namespace

BlockShape::BlockShape(const ucm_layout &layout, const SpaceId &id)
    : shard_count(layout.shards_per_block),
      capacity(layout.capacity),
      raw_capacity(layout.raw_capacity),
      space(id) {
    std::memcpy(encoding.data(), layout.encoding, encoding.size());
}

bool BlockShape::fits(const BlockHeader &header) const {
    if (header.table.size() != shard_count || header.raw_capacity != raw_capacity ||
        header.encoding != encoding || header.space != space)
        return false;
    for (const ShardEntry &entry : header.table)
        if (entry.length > capacity) return false;
    return true;
}

uint64_t block_header_bytes(uint32_t shard_count) {
    return round_up(kFixedBytes + kEntryBytes * shard_count);
}

uint64_t whole_block_bytes(uint32_t shard_count, uint64_t capacity) {
    return block_header_bytes(shard_count) + shard_count * round_up(capacity);
}

void encode_block_header(const BlockHeader &header, uint8_t *out) {
    const uint64_t bytes = block_header_bytes(uint32_t(header.table.size()));
    std::memset(out, 0, bytes);
    std::memcpy(out, kBlockMagic, 8);
    put32(out + kAtVersion, kBlockVersion);
    put32(out + kAtHeaderBytes, uint32_t(bytes));
    std::memcpy(out + kAtId, header.id.bytes, sizeof header.id.bytes);
    put32(out + kAtShardCount, uint32_t(header.table.size()));
    put64(out + kAtFileBytes, header.file_bytes);
    put64(out + kAtRawCapacity, header.raw_capacity);
    std::memcpy(out + kAtEncoding, header.encoding.data(), header.encoding.size());
    put64(out + kAtPublished, header.published_ns);
    put32(out + kAtDepth, header.depth);
    std::memcpy(out + kAtSpace, header.space.data(), header.space.size());
    uint8_t *at = out + kFixedBytes;
    for (const ShardEntry &entry : header.table) {
        put64(at, entry.offset);
        put64(at + 8, entry.length);
        put64(at + 16, entry.raw_length);
        put64(at + 24, entry.checksum);
        at += kEntryBytes;
    }
    put64(out + kAtChecksum, header_checksum(out, bytes));
}

HeaderState decode_block_header(const uint8_t *data, uint64_t have, uint64_t file_bytes,
                                const BlockId &id, BlockHeader &out, uint64_t *need) {
    if (file_bytes < UCM_ALIGNMENT) return HeaderState::kCorrupt;
    if (have < UCM_ALIGNMENT) {
        *need = UCM_ALIGNMENT;
        return HeaderState::kMore;
    }
    const uint64_t bytes = get32(data + kAtHeaderBytes);
    if (std::memcmp(data, kBlockMagic, 8) != 0 || bytes == 0 || bytes % UCM_ALIGNMENT ||
        bytes > kMaxHeaderBytes || bytes > file_bytes)
        return HeaderState::kCorrupt;
    if (have < bytes) {
        *need = bytes;
        return HeaderState::kMore;
    }
    if (get64(data + kAtChecksum) != header_checksum(data, bytes)) return HeaderState::kCorrupt;
    if (get32(data + kAtVersion) != kBlockVersion || get32(data + kAtFlags) != 0)
        return HeaderState::kIncompatible;

    const uint32_t shards = get32(data + kAtShardCount);
    out.file_bytes = get64(data + kAtFileBytes);
    if (shards == 0 || shards > UCM_MAX_SHARDS || block_header_bytes(shards) != bytes ||
        std::memcmp(data + kAtId, id.bytes, sizeof id.bytes) != 0 ||
        (out.file_bytes != file_bytes && file_bytes != kUnknownBytes))
        return HeaderState::kCorrupt;
    out.id = id;
    out.raw_capacity = get64(data + kAtRawCapacity);
    std::memcpy(out.encoding.data(), data + kAtEncoding, out.encoding.size());
    out.published_ns = get64(data + kAtPublished);
    out.depth = get32(data + kAtDepth);
    std::memcpy(out.space.data(), data + kAtSpace, out.space.size());
    out.table.resize(shards);
    const uint8_t *at = data + kFixedBytes;
    for (ShardEntry &entry : out.table) {
        entry = {get64(at), get64(at + 8), get64(at + 16), get64(at + 24)};
        if (!entry_sound(entry, bytes, out.file_bytes)) return HeaderState::kCorrupt;
        at += kEntryBytes;
    }
    return HeaderState::kSound;
}

std::string block_folder(const BlockId &id) {
    return id.hex().substr(0, 3);
}

std::string block_name(const BlockId &id) {
    const std::string hex = id.hex();
    return hex.substr(0, 3) + "/" + hex;
}

std::string errno_text(int error) {
    return std::system_category().message(error);
}

ucm_status status_of_errno(int error, ucm_status absent) {
    switch (error) {
        case ENOENT:
        case ENOTDIR:
        case ESTALE:
            return absent;
        case ENOSPC:
        case EDQUOT:
            return UCM_NO_SPACE;
        case ENOMEM:
        case EMFILE:
        case ENFILE:
        case EBUSY:  // a lock, or a count that must end first
        case ENOLCK:
        case ENOTCONN:  // nobody serves a file system of FUSE any more
            return UCM_UNAVAILABLE;
        case ETIME:  // given up before the end
            return UCM_TIMEOUT;
        default:
            return UCM_IO;
    }
}

bool read_directory_id(const std::string &directory, DirectoryId &out) {
    const std::string path = format_path(directory);
    std::string all;
    if (const int error = read_file(path, 128, all); error != 0) {
        if (error == ENOENT) return false;
        throw Error(UCM_UNAVAILABLE,
                    "cannot read " + path + ": " + errno_text(error) + who_owns(path, error),
                    error);
    }
    const size_t line = sizeof kFormatLine - 1;
    if (all.compare(0, line, kFormatLine) != 0 || all.size() != line + 37 || all.back() != '\n' ||
        !parse_uuid(all.substr(line, 36), out))
        throw Error(UCM_INCOMPATIBLE,
                    path +
                        " is not the mark of a storage directory that this version "
                        "reads; use another directory");
    return true;
}

DirectoryId make_directory_id(const std::string &directory, const std::string &aside,
                              const Access &access) {
    DirectoryId id{};
    if (read_directory_id(directory, id)) return id;
    if (getrandom(id.data(), id.size(), 0) != ssize_t(id.size()))
        throw Error(UCM_UNAVAILABLE, "cannot get random bytes", errno);
    id[6] = uint8_t((id[6] & 0x0f) | 0x40);  // a random UUID, version 4
    id[8] = uint8_t((id[8] & 0x3f) | 0x80);
    const std::string mine = aside + "/format", path = format_path(directory);
    // Once in a directory's life; torn by a power cut, it would be refused for ever.
    access.write_file(mine, kFormatLine + uuid_text(id) + "\n", true);
    const int error = ::link(mine.c_str(), path.c_str()) == 0 ? 0 : errno;
    ::unlink(mine.c_str());
    if (error == 0) sync_folder(directory + "/.ucm");
    if (error != 0 && error != EEXIST)
        throw Error(UCM_UNAVAILABLE, "cannot make " + path + ": " + errno_text(error), error);
    if (!read_directory_id(directory, id))
        throw Error(UCM_UNAVAILABLE, path + " vanished; is something deleting in it?");
    return id;
}

size_t place_block(const std::vector<DirectoryId> &ids, const BlockId &block) {
    if (ids.size() == 1) return 0;
    size_t best = 0;
    uint64_t best_score = 0;
    for (size_t i = 0; i < ids.size(); i++) {
        uint8_t both[sizeof(DirectoryId) + UCM_BLOCK_ID_BYTES];
        std::memcpy(both, ids[i].data(), sizeof(DirectoryId));
        std::memcpy(both + sizeof(DirectoryId), block.bytes, sizeof block.bytes);
        const uint64_t score = XXH3_64bits(both, sizeof both);
        if (i == 0 || score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

}  // namespace ucm
