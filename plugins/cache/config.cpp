// SPDX-License-Identifier: MIT
#include "config.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "block.h"
#include "buffers.h"

namespace ucm::cache {
namespace {

constexpr double kGiB = 1073741824.0;
constexpr uint64_t kMostAutomatic = uint64_t(256) << 30;
constexpr uint64_t kUnfinishedBytes = 64u << 20;  // of their tables, not of their slots
constexpr size_t kUnfinishedBlocks = 65536;

// Bytes, from a line like "MemTotal:  16303412 kB"; 0 where there is none.
uint64_t memory_info(const char *key) {
    FILE *file = std::fopen("/proc/meminfo", "re");
    if (!file) return 0;
    char line[256];
    unsigned long long kib = 0;
    while (std::fgets(line, sizeof line, file))
        if (std::strncmp(line, key, std::strlen(key)) == 0 &&
            std::sscanf(line + std::strlen(key), ": %llu", &kib) == 1)
            break;
    std::fclose(file);
    return kib * 1024;
}

std::string gib(uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", double(bytes) / kGiB);
    return text;
}

uint64_t pool_bytes(double wanted_gb, uint64_t needed) {
    const uint64_t total = memory_info("MemTotal");
    const bool automatic = wanted_gb == 0;
    const uint64_t bytes = automatic ? std::min(memory_info("MemAvailable") / 2, kMostAutomatic)
                                     : uint64_t(wanted_gb * kGiB);
    if (!automatic && total && bytes > total)
        throw Error(UCM_INVALID, "cache_buffer_capacity_gb=" + gib(bytes) + " is more than the " +
                                     gib(total) +
                                     " GiB of memory that this machine has; make it smaller");
    if (bytes < needed)
        throw Error(UCM_INVALID, "cache_buffer_capacity_gb: " + gib(bytes) + " GiB" +
                                     (automatic ? " (half of what memory has free)" : "") +
                                     " cannot hold two blocks; at least " +
                                     gib(needed + (needed >> 16)) + " is needed");
    return bytes;
}

}  // namespace

Config::Config(const ucm_open_args &args) {
    const Values values(args);
    shards_per_block = args.layout->shards_per_block;
    capacity = args.layout->capacity;
    slot_bytes = round_up(capacity);
    const uint64_t needed = 2 * uint64_t(shards_per_block) * slot_bytes;
    const uint64_t bytes = pool_bytes(values[kCapacityGb].f, needed);
    slots = uint32_t(std::min<uint64_t>(bytes / slot_bytes, kNoSlot - 1));
    // What no store below takes over holds at most half, so that finished blocks find room.
    const bool keeps = (args.lower->capabilities & UCM_CAP_KEEPS) != 0;
    held_slots = slots - (keeps ? std::clamp<uint32_t>(slots / 16, 1, 256) : slots / 2);
    max_unfinished = std::clamp<size_t>(
        kUnfinishedBytes / (sizeof(Block) + sizeof(ShardEntry) * shards_per_block), 2,
        kUnfinishedBlocks);
    waiting_shards = uint64_t(values[kWaitingQueueDepth].i);
    waiting_bytes = uint64_t(slots) * slot_bytes;
    running_shards = uint64_t(values[kRunningQueueDepth].i);
    timeout_ms = values[kTimeoutMs].i;
}

}  // namespace ucm::cache
