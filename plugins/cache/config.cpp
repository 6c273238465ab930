// SPDX-License-Identifier: MIT
#include "config.h"

#include <sched.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "threads.h"

namespace ucm::cache {
namespace {

constexpr double kGiB = 1073741824.0;
constexpr uint64_t kMostAutomatic = uint64_t(256) << 30;

// From a line like "MemTotal:  16303412 kB" or "inactive_file 1234"; 0 where there is none.
uint64_t field_in(const char *path, const std::string &key) {
    FILE *file = std::fopen(path, "re");
    if (!file) return 0;
    char line[256];
    unsigned long long value = 0;
    while (std::fgets(line, sizeof line, file))
        if (std::strncmp(line, key.c_str(), key.size()) == 0 &&
            std::sscanf(line + key.size(), " %llu", &value) == 1)
            break;
    std::fclose(file);
    return value;
}

uint64_t memory_info(const char *key) {
    return field_in("/proc/meminfo", key) * 1024;
}

uint64_t number_in(const char *path, uint64_t otherwise) {
    FILE *file = std::fopen(path, "re");
    if (!file) return otherwise;
    unsigned long long value = 0;
    const bool got = std::fscanf(file, "%llu", &value) == 1;  // "max" is none
    std::fclose(file);
    return got ? value : otherwise;
}

// What this container may still take. What its files only keep in memory goes when room is needed.
uint64_t container_room() {
    const uint64_t most = number_in("/sys/fs/cgroup/memory.max", UINT64_MAX);
    if (most == UINT64_MAX) return most;
    const uint64_t all = number_in("/sys/fs/cgroup/memory.current", 0);
    const uint64_t used =
        all - std::min(all, field_in("/sys/fs/cgroup/memory.stat", "inactive_file"));
    return most - std::min(most, used);
}

struct Room {
    uint64_t total, free;
    const char *where;
};

Room room(bool shared) {
    struct statvfs fs{};
    if (shared && statvfs("/dev/shm", &fs) != 0) return {0, 0, "/dev/shm"};
    // A tmpfs without a limit says that it has no blocks at all.
    if (shared && fs.f_blocks)
        return {fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize, "/dev/shm"};
    return {memory_info("MemTotal:"), memory_info("MemAvailable:"), "memory"};
}

std::string gib(uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", double(bytes) / kGiB);
    return text;
}

constexpr char kLargerShm[] =
    "; make /dev/shm larger (--shm-size, or an emptyDir of medium Memory), or set "
    "share_buffer_enable: false";

// The size where none is given, what sets it, and how there would be more.
struct Automatic {
    uint64_t bytes;
    std::string why, remedy;
};

// As automatic_pool in ucm/checks.py does it: change both.
Automatic automatic_size(const Room &all, bool shared) {
    Automatic found{all.free / 2, std::string("half of what ") + all.where + " has free",
                    shared ? kLargerShm : ""};
    if (const uint64_t half = container_room() / 2; half < found.bytes)
        found = {half, "half of what this container may still take (/sys/fs/cgroup/memory.max)",
                 "; raise the memory limit of the container"};
    if (kMostAutomatic < found.bytes)
        found = {kMostAutomatic, "the most that is taken unasked", ""};
    return found;
}

uint64_t chosen_bytes(uint64_t needed, bool shared, const Logger &log) {
    const Automatic found = automatic_size(room(shared), shared);
    if (found.bytes < needed)
        throw Error(UCM_INVALID, "cache_buffer_capacity_gb: " + gib(found.bytes) + " GiB (" +
                                     found.why + ") cannot hold two blocks; at least " +
                                     gib(needed + (needed >> 16)) + " is needed" + found.remedy);
    log.write(UCM_LOG_INFO, "cache_buffer_capacity_gb: %s GiB, %s%s", gib(found.bytes).c_str(),
              found.why.c_str(), shared ? "" : "; each process has its own");
    return found.bytes;
}

uint64_t pool_bytes(double wanted_gb, uint64_t needed, bool shared, const Logger &log) {
    if (wanted_gb == 0) return chosen_bytes(needed, shared, log);
    const Room all = room(shared);
    const std::string remedy = shared ? kLargerShm : "";
    const uint64_t bytes = uint64_t(wanted_gb * kGiB);
    if (bytes > all.total && (!shared || needed > all.total))
        throw Error(UCM_INVALID, "cache_buffer_capacity_gb=" + gib(bytes) + " is more than the " +
                                     gib(all.total) + " GiB that " + all.where +
                                     " has on this machine; make it smaller" + remedy);
    if (bytes < needed)
        throw Error(UCM_INVALID, "cache_buffer_capacity_gb: " + gib(bytes) +
                                     " GiB cannot hold two blocks; at least " +
                                     gib(needed + (needed >> 16)) + " is needed");
    if (bytes > all.total)
        log.write(UCM_LOG_WARN,
                  "cache_buffer_capacity_gb=%s is more than the %s GiB of %s: the cache will be "
                  "smaller%s",
                  gib(bytes).c_str(), gib(all.total).c_str(), all.where, remedy.c_str());
    return std::min(bytes, all.total);  // the index takes room for every frame that may come
}

// "0-3,7": where the opening thread may run.
std::string allowed_cores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    std::string text;
    for (int core = 0, first; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(size_t(core), &allowed)) continue;
        first = core;
        while (core + 1 < CPU_SETSIZE && CPU_ISSET(size_t(core + 1), &allowed)) core++;
        text += (text.empty() ? "" : ",") + std::to_string(first);
        if (core > first) text += "-" + std::to_string(core);
    }
    return text;
}

// A control group may allow less than there is, and more than the opening thread is bound to: only
// the kernel knows, and of several cores it drops those that are not allowed without a word.
std::vector<int> usable_cores(const ucm_value &value) {
    const std::vector<int64_t> wanted(value.ints, value.ints + value.count);
    std::vector<int> cores;
    int error = 0;
    Threads trial;
    if (!wanted.empty())
        trial.start(1, "ucm-cache-cores", [&] {
            for (const int64_t core : wanted) {
                error = core < 0 || core >= CPU_SETSIZE ? EINVAL : use_cores({int(core)});
                if (error) return;
                cores.push_back(int(core));
            }
        });
    trial.join();
    if (error)
        throw Error(UCM_INVALID,
                    "cpu_affinity_cores: " + std::to_string(wanted[cores.size()]) +
                        " is no core that this process may use (" + std::strerror(error) +
                        "); where it runs now are " + allowed_cores(),
                    error);
    return cores;
}

}  // namespace

std::string segment_name(const ucm_open_args &args) {
    return Values(args)[kShareBuffer].i ? args.unique_id : "";
}

Shape known_shape(const ucm_open_args &args) {
    const Values values(args);
    Shape shape{};
    const std::string fingerprint = values[kFingerprint].s;
    shape.identity = std::string(values[kNamespace].s) + " " + values[kModel].s + " " + fingerprint;
    shape.any_fingerprint = fingerprint.empty() && !args.layout;
    shape.keeps = (args.lower->capabilities & UCM_CAP_KEEPS) != 0;
    shape.loads = (args.lower->capabilities & UCM_CAP_LOADS) != 0;
    if (!args.layout) return shape;
    const ucm_layout &layout = *args.layout;
    shape.shards_per_block = layout.shards_per_block;
    shape.capacity = layout.capacity;
    shape.raw_capacity = layout.raw_capacity;
    shape.slot_bytes = round_up(layout.capacity);
    shape.encoding = std::string(layout.encoding, strnlen(layout.encoding, UCM_ENCODING_BYTES));
    return shape;
}

Shape make_shape(const ucm_open_args &args, bool shared, const Logger &log) {
    Shape shape = known_shape(args);
    const double wanted_gb = Values(args)[kCapacityGb].f;
    uint64_t bytes = 2 * shape.frame_bytes();
    try {
        bytes = pool_bytes(wanted_gb, bytes, shared, log);
    } catch (const Error &error) {
        // What others have made may be joined, however little room is left now.
        if (!shared || wanted_gb != 0) throw;
        shape.refusal = error.what();
    }
    shape.frames = uint32_t(std::min<uint64_t>(bytes / shape.frame_bytes(), UINT32_MAX / 4));
    return shape;
}

Config::Config(const ucm_open_args &args, const Shape &shape) {
    const Values values(args);
    shards_per_block = shape.shards_per_block;
    capacity = shape.capacity;
    waiting_shards = uint64_t(values[kWaitingQueueDepth].i);
    running_shards = uint64_t(values[kRunningQueueDepth].i);
    timeout_ms = values[kTimeoutMs].i;
    cores = usable_cores(values[kAffinityCores]);
}

}  // namespace ucm::cache
