// SPDX-License-Identifier: MIT
//
// Posix, with a file system that can be made to misbehave: the functions below stand in front of
// the C library's, for the plugin too.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "harness.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace ucm_test;

namespace {

// Fails `times` calls after letting `skip` pass.
struct Fault {
    std::atomic<int> skip{0}, times{0}, error{0};
    void set(int error_number, int after, int count) {
        error = error_number;
        skip = after;
        times = count;
    }
    bool strikes() {
        if (times.load() == 0 || skip.fetch_sub(1) > 0) return false;
        if (times.fetch_sub(1) <= 0) return false;
        errno = error;
        return true;
    }
};

// Calls wait while it is shut.
class Gate {
  public:
    void shut() {
        std::lock_guard<std::mutex> hold(mutex_);
        shut_ = true;
    }
    void open() {
        std::lock_guard<std::mutex> hold(mutex_);
        shut_ = false;
        changed_.notify_all();
    }
    void pass() {
        std::unique_lock<std::mutex> hold(mutex_);
        if (!shut_) return;
        inside_++;
        changed_.notify_all();
        changed_.wait(hold, [&] { return !shut_; });
        inside_--;
    }
    int inside() {
        std::lock_guard<std::mutex> hold(mutex_);
        return inside_;
    }
    void await(int calls) {
        std::unique_lock<std::mutex> hold(mutex_);
        changed_.wait(hold, [&] { return inside_ >= calls; });
    }

  private:
    std::mutex mutex_;  // guards both
    std::condition_variable changed_;
    bool shut_ = false;
    int inside_ = 0;
};

struct Faults {
    Fault writes, reads, links, closes, direct, syncs;
    std::atomic<int> data_syncs{0}, folder_syncs{0};
    std::atomic<bool> old_rename{false};   // without RENAME_NOREPLACE
    std::atomic<int64_t> room{INT64_MAX};  // bytes until the disk is full
    Gate write_gate, read_gate;
    // Requests whose pieces lie in this memory.
    std::atomic<uintptr_t> watched{0}, watched_end{0};
    void watch(const iovec *pieces, int n) {
        for (int i = 0; i < n; i++) {
            const auto at = reinterpret_cast<uintptr_t>(pieces[i].iov_base);
            if (at >= watched && at < watched_end) return void(in_place++);
        }
    }
    std::atomic<int> in_place{0};
} faults;

// Undoes what a test set, also when it fails.
struct Calm {
    ~Calm() {
        for (Fault *fault : {&faults.writes, &faults.reads, &faults.links, &faults.closes,
                             &faults.direct, &faults.syncs})
            fault->set(0, 0, 0);
        faults.room = INT64_MAX;
        faults.old_rename = false;
        faults.write_gate.open();
        faults.read_gate.open();
    }
};

template <typename F>
F real(F, const char *name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pwritev64(int fd, const iovec *pieces, int n, off64_t offset) {
    static const auto next = real(&pwritev64, "pwritev64");
    faults.write_gate.pass();
    faults.watch(pieces, n);
    if (faults.writes.strikes()) return -1;
    if (faults.room == INT64_MAX) return next(fd, pieces, n, offset);
    std::vector<iovec> fitting;
    int64_t wanted = 0, left = std::max<int64_t>(faults.room, 0);
    for (int i = 0; i < n; i++) wanted += int64_t(pieces[i].iov_len);
    for (int i = 0; i < n && left > 0; i++) {
        fitting.push_back({pieces[i].iov_base, std::min(pieces[i].iov_len, size_t(left))});
        left -= int64_t(fitting.back().iov_len);
    }
    if (wanted > 0 && fitting.empty()) {
        errno = ENOSPC;
        return -1;
    }
    const ssize_t written = next(fd, fitting.data(), int(fitting.size()), offset);
    if (written > 0) faults.room -= written;
    return written;
}

ssize_t preadv64(int fd, const iovec *pieces, int n, off64_t offset) {
    static const auto next = real(&preadv64, "preadv64");
    faults.read_gate.pass();
    faults.watch(pieces, n);
    return faults.reads.strikes() ? -1 : next(fd, pieces, n, offset);
}

int link(const char *from, const char *to) noexcept {
    static const auto next =
        reinterpret_cast<int (*)(const char *, const char *)>(dlsym(RTLD_NEXT, "link"));
    return faults.links.strikes() ? -1 : next(from, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to,
              unsigned flags) noexcept {
    static const auto next =
        reinterpret_cast<int (*)(int, const char *, int, const char *, unsigned)>(
            dlsym(RTLD_NEXT, "renameat2"));
    if (faults.old_rename && flags != 0) {
        errno = EINVAL;
        return -1;
    }
    return faults.links.strikes() ? -1 : next(from_folder, from, to_folder, to, flags);
}

int fdatasync(int fd) {
    static const auto next = real(&fdatasync, "fdatasync");
    faults.data_syncs++;
    return faults.syncs.strikes() ? -1 : next(fd);
}

int fsync(int fd) {
    static const auto next = real(&fsync, "fsync");
    faults.folder_syncs++;
    return next(fd);
}

int close(int fd) {
    static const auto next = real(&close, "close");
    const int result = next(fd);
    return result == 0 && faults.closes.strikes() ? -1 : result;
}
}

namespace {

constexpr uint64_t kPage = 4096;

Options in(const TempDir &directory, Options more = {}) {
    more["storage_backends"] = directory.path();
    if (!more.count("posix_data_trans_concurrency")) more["posix_data_trans_concurrency"] = "2";
    return more;
}

bool has_engine(const std::string &name) {
    TempDir directory;
    try {
        Stack stack({"Posix"}, in(directory, {{"posix_io_engine", name}}));
        return true;
    } catch (const ucm::Error &error) {
        if (error.status() != UCM_UNAVAILABLE) throw;
        WARN(error.what());
        return false;
    }
}

// Of those that this machine has; the faults above do not reach what the others move.
std::string engine() {
    static const bool aio = has_engine("aio"), uring = has_engine("io_uring");
    const std::string name = GENERATE("psync", "aio", "io_uring");
    return (name == "aio" && !aio) || (name == "io_uring" && !uring) ? "psync" : name;
}

// By the page cache, by a buffer, or neither.
Options memory_way() {
    return GENERATE(Options{}, Options{{"io_direct", "true"}},
                    Options{{"io_direct", "true"}, {"posix_zero_copy", "true"}});
}

bool published(const ucm_result &result) {
    return (result.flags & UCM_RESULT_PUBLISHED) != 0;
}

// Of a published block, in whichever space; otherwise no file is there.
std::string block_path(const TempDir &directory, const BlockId &id) {
    const std::string name = "/" + id.hex().substr(0, 3) + "/" + id.hex();
    for (const std::string &path : directory.files())
        if (path.size() > name.size() &&
            path.compare(path.size() - name.size(), name.size(), name) == 0)
            return path;
    return directory.path() + name;
}

std::string read_all(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string &path, const std::string &bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

bool exists(const std::string &path) {
    return access(path.c_str(), F_OK) == 0;
}

// Files below the writers' folders, but for the locks, and for a ring, which a lookup makes later.
size_t temporaries(const TempDir &directory) {
    size_t n = 0;
    for (const std::string &path : directory.files())
        n += path.find("/.ucm/writers/") != std::string::npos &&
             path.find("/recent.") == std::string::npos &&
             path.compare(path.size() - 5, 5, "/lock") != 0;
    return n;
}

size_t writers(const TempDir &directory) {
    size_t n = 0;
    for (const std::string &path : directory.files())
        n += path.find("/.ucm/writers/") != std::string::npos &&
             path.compare(path.size() - 5, 5, "/lock") == 0;
    return n;
}

ucm_result dump_one(Stack &stack, const BlockId &id, uint32_t shard, uint64_t flags = 0) {
    Move move(stack, {{id, shard}});
    move.transfer.flags = flags;
    REQUIRE(move.dump() == UCM_OK);
    move.wait();
    return move.result(0);
}

ucm_status load_one(Stack &stack, const BlockId &id, uint32_t shard) {
    Move move(stack, {{id, shard}});
    REQUIRE(move.load() == UCM_OK);
    move.wait();
    if (move.result(0).status == UCM_OK) REQUIRE(move.same(0));
    return move.result(0).status;
}

std::vector<ucm_status> statuses(const std::vector<ucm_result> &results) {
    std::vector<ucm_status> list;
    for (const ucm_result &result : results) list.push_back(result.status);
    return list;
}

ucm_report drained(Stack &stack) {
    ucm_report report{};
    report.struct_size = sizeof report;
    REQUIRE(stack.drain(&report) == UCM_OK);
    return report;
}

void put64(std::string &bytes, size_t at, uint64_t value) {
    std::memcpy(&bytes[at], &value, sizeof value);
}

// As the document has it: with its own field taken as zero.
void seal_header(std::string &bytes) {
    uint32_t header_bytes;
    std::memcpy(&header_bytes, &bytes[12], sizeof header_bytes);
    put64(bytes, 248, 0);
    put64(bytes, 248, XXH3_64bits(bytes.data(), header_bytes));
}

std::string refusal(const Options &options, const Geometry &geometry = {}) {
    try {
        Stack stack({"Posix"}, options, geometry);
    } catch (const ucm::Error &error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("Posix gives back what went in, whatever the shape", "[posix][shapes]") {
    const std::string used = engine();
    struct Shape {
        uint32_t shards;
        std::vector<uint64_t> segments;
    };
    const auto shape =
        GENERATE(Shape{1, {1}}, Shape{1, {4096}}, Shape{4, {5000}}, Shape{3, {8192, 4096}},
                 Shape{2, {8192, 4096, 5001}}, Shape{64, {4095}}, Shape{64, {300, 1, 7000}},
                 Shape{5, {3, 4096}}, Shape{1, {5u << 20}}, Shape{2, {5u << 20}},
                 Shape{3, std::vector<uint64_t>(1500, 11)});
    Options way = memory_way();
    const size_t misalign = GENERATE(0, 1, 4096);
    if (used != "psync" && way.empty()) return;  // there they queue nothing
    way["posix_io_engine"] = used;
    TempDir directory;
    Geometry geometry{shape.shards, shape.segments};
    geometry.misalign = misalign;
    Stack stack({"Posix"}, in(directory, way), geometry);
    const auto ids = make_ids(geometry.capacity() > (1 << 20) ? 1 : 3);
    for (const ucm_result &result : stack.dump(ids)) {
        REQUIRE(result.status == UCM_OK);
        REQUIRE(published(result));
    }
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == ids.size());
    REQUIRE(stack.loads_back(ids));
    REQUIRE(temporaries(directory) == 0);
}

TEST_CASE("Posix keeps shards of any length, none too", "[posix][shapes]") {
    const std::string used = engine();
    const bool pages = GENERATE(false, true);
    Options way = memory_way();
    way["posix_io_engine"] = used;
    TempDir directory;
    Geometry geometry{8, {9000}};
    geometry.pages = pages;
    Stack stack({"Posix"}, in(directory, way), geometry);
    const auto shards = shards_of(make_ids(1), 8);
    const std::vector<uint64_t> lengths = {0, 1, 4095, 4096, 4097, 0, 8192, 9000};
    Move dump(stack, shards, lengths);
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(dump.wait() == UCM_OK);
    Move load(stack, shards);
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(load.wait() == UCM_OK);
    for (size_t i = 0; i < lengths.size(); i++) {
        REQUIRE(load.result(i).length == lengths[i]);
        REQUIRE(load.same(i));
    }
    REQUIRE_FALSE(load.overrun());
}

TEST_CASE("O_DIRECT takes memory as it is if it is registered, or if zero copy is wanted",
          "[posix]") {
    const std::string zero_copy = GENERATE("false", "true");
    const bool registered = GENERATE(false, true);
    TempDir directory;
    Geometry geometry{2, {8192}};
    geometry.pages = true;
    Stack stack({"Posix"}, in(directory, {{"io_direct", "true"}, {"posix_zero_copy", zero_copy}}),
                geometry);
    const auto shards = shards_of(make_ids(1), 2);
    for (const bool dump : {true, false}) {
        Move move(stack, shards);
        ucm_memory_args memory{};
        memory.struct_size = sizeof memory;
        memory.memory = UCM_MEMORY_HOST;
        memory.base = move.transfer.addresses[0];
        memory.bytes = uint64_t(static_cast<uint8_t *>(move.transfer.addresses[1]) -
                                static_cast<uint8_t *>(memory.base)) +
                       8192;
        if (registered) REQUIRE(ucm_register_memory(stack.top(), &memory, nullptr) == UCM_OK);
        faults.watched = reinterpret_cast<uintptr_t>(memory.base);
        faults.watched_end = faults.watched + memory.bytes;
        faults.in_place = 0;
        REQUIRE((dump ? move.dump() : move.load()) == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
        faults.watched = faults.watched_end = 0;
        REQUIRE((faults.in_place > 0) == (registered || zero_copy == "true"));
        if (!dump) REQUIRE((move.same(0) && move.same(1)));
        memory.release = 1;
        ucm_error error{};
        error.struct_size = sizeof error;
        REQUIRE(ucm_register_memory(stack.top(), &memory, &error) ==
                (registered ? UCM_OK : UCM_INVALID));
        REQUIRE(ucm_register_memory(stack.top(), &memory, &error) == UCM_INVALID);
    }
}

TEST_CASE("Posix files are as docs/block-format.md says", "[posix][shapes]") {
    TempDir directory;
    Geometry geometry{2, {3000}};
    geometry.raw_capacity = 4000;
    geometry.encoding = "x.1";
    Stack stack({"Posix"}, in(directory), geometry);
    const BlockId id = make_id(1);
    for (uint32_t shard : {1u, 0u}) {
        Move move(stack, {{id, shard}}, {3000 - shard}, {4000 - shard});
        const uint32_t depth = 7;
        move.transfer.depths = &depth;
        REQUIRE(move.dump() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    const std::string file = read_all(block_path(directory, id));
    REQUIRE(file.size() == 3 * kPage);
    const auto u32 = [&](size_t at) {
        uint32_t value;
        std::memcpy(&value, &file[at], 4);
        return value;
    };
    const auto u64 = [&](size_t at) {
        uint64_t value;
        std::memcpy(&value, &file[at], 8);
        return value;
    };
    REQUIRE(file.compare(0, 8, "UCMBLOCK") == 0);
    REQUIRE(u32(8) == 1);
    REQUIRE(u32(12) == kPage);
    REQUIRE(std::memcmp(&file[16], id.bytes, 16) == 0);
    REQUIRE(u32(32) == 2);
    REQUIRE(u32(36) == 0);
    REQUIRE(u64(40) == file.size());
    REQUIRE(u64(48) == 4000);
    REQUIRE(file.compare(56, 64, std::string("x.1") + std::string(61, '\0')) == 0);
    REQUIRE(u32(128) == 7);
    REQUIRE(std::all_of(&file[132], &file[136], [](char c) { return c == 0; }));
    REQUIRE(std::all_of(&file[152], &file[248], [](char c) { return c == 0; }));
    const std::string lines =
        "namespace=default\nshards_per_block=2\nraw_capacity=4000\nencoding=x.1\n";
    XXH128_canonical_t name;
    XXH128_canonicalFromHash(&name, XXH3_128bits(lines.data(), lines.size()));
    REQUIRE(std::memcmp(&file[136], name.digest, 16) == 0);
    BlockId space;
    std::memcpy(space.bytes, name.digest, 16);
    const std::string folder = directory.path() + "/default/" + space.hex();
    REQUIRE(block_path(directory, id).compare(0, folder.size() + 1, folder + "/") == 0);
    const std::string head = "ucm space 1\n" + lines + "\n";
    REQUIRE(read_all(folder + "/space").compare(0, head.size(), head) == 0);
    std::string sealed = file;
    seal_header(sealed);
    REQUIRE(sealed == file);
    for (uint32_t shard : {0u, 1u}) {
        const size_t at = 256 + 32 * shard;
        REQUIRE(u64(at) == (shard == 1 ? 1 : 2) * kPage);  // in order of arrival
        REQUIRE(u64(at + 8) == 3000 - shard);
        REQUIRE(u64(at + 16) == 4000 - shard);
        std::string seed(reinterpret_cast<const char *>(id.bytes), 16);
        seed.append(reinterpret_cast<const char *>(&shard), 4);
        seed.append(&file[at + 8], 8);
        REQUIRE(u64(at + 24) == XXH3_64bits_withSeed(&file[u64(at)], u64(at + 8),
                                                     XXH3_64bits(seed.data(), seed.size())));
    }
    const std::string format = read_all(directory.path() + "/.ucm/format");
    REQUIRE(format.size() == 50);
    REQUIRE(format.compare(0, 13, "ucm blocks 1\n") == 0);
}

TEST_CASE("Posix takes shards in any order from many threads", "[posix][threads]") {
    const std::string used = engine();
    TempDir directory;
    const uint32_t shards = 16;
    Stack stack({"Posix"},
                in(directory, {{"posix_io_engine", used}, {"posix_data_trans_concurrency", "4"}}),
                Geometry{shards, {700, 5000}});
    const auto ids = make_ids(24);
    auto all = shards_of(ids, shards);
    uint64_t seed = 7;
    for (size_t i = all.size(); i-- > 1;) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        std::swap(all[i], all[(seed >> 33) % (i + 1)]);
    }
    std::atomic<size_t> flagged{0}, failed{0};
    std::vector<std::thread> threads;
    for (size_t k = 0; k < 8; k++)
        threads.emplace_back([&, k] {
            for (size_t from = k * 48; from < (k + 1) * 48; from += 12) {
                Move move(stack, {all.begin() + from, all.begin() + from + 12});
                failed += move.dump() != UCM_OK || move.wait() != UCM_OK;
                for (const ucm_result &result : move.results()) flagged += published(result);
                stack.hits(ids, UCM_LOOKUP_ALL);
            }
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(failed == 0);
    REQUIRE(flagged >= ids.size());
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == ids.size());
    std::atomic<size_t> good{0};
    threads.clear();
    for (size_t k = 0; k < 4; k++) threads.emplace_back([&] { good += stack.loads_back(ids); });
    for (auto &thread : threads) thread.join();
    REQUIRE(good == 4);
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == all.size());
    REQUIRE(report.lost == 0);
    REQUIRE(report.unfinished == 0);
}

TEST_CASE("Posix finds everything again after close", "[posix]") {
    TempDir directory;
    const auto ids = make_ids(5);
    {
        Stack stack({"Posix"}, in(directory));
        REQUIRE(all_ok(stack.dump(ids)));
        REQUIRE(stack.close().status == UCM_OK);
        REQUIRE(writers(directory) == 0);
    }
    Stack stack({"Posix"}, in(directory));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("Posix answers the three kinds of lookup", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory));
    const auto ids = make_ids(6);
    stack.dump({ids[0], ids[1], ids[4]});
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 3);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_PREFIX) == 2);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_LAST) == 5);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({1, 1, 0, 0, 1, 0}));
}

TEST_CASE("Posix shows a block only when its last shard is there, in whatever order", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{4, {5000}});
    uint64_t number = 0;
    std::vector<uint32_t> order = {0, 1, 2, 3};
    do {
        const BlockId id = make_id(number++);
        for (size_t i = 0; i < 4; i++) {
            REQUIRE_FALSE(stack.lookup({id})[0]);
            REQUIRE(load_one(stack, id, order[0]) == UCM_NOT_FOUND);
            const ucm_result result = dump_one(stack, id, order[i]);
            REQUIRE(result.status == UCM_OK);
            REQUIRE(published(result) == (i == 3));
        }
        REQUIRE(stack.lookup({id})[0]);
        REQUIRE(stack.loads_back({id}));
    } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("Posix ignores a shard that it has, unfinished or published", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const BlockId id = make_id(1);
    REQUIRE_FALSE(published(dump_one(stack, id, 0)));
    Move shorter(stack, {{id, 0}}, {10});
    REQUIRE(shorter.dump() == UCM_OK);
    REQUIRE(shorter.wait() == UCM_OK);
    REQUIRE_FALSE(published(shorter.result(0)));
    REQUIRE(drained(stack).unfinished == 2);
    Move twice(stack, {{id, 1}, {id, 1}, {id, 0}});
    REQUIRE(twice.dump() == UCM_OK);
    REQUIRE(twice.wait() == UCM_OK);
    for (size_t i = 0; i < 3; i++) REQUIRE(published(twice.result(i)));
    Move again(stack, {{id, 1}}, {10});
    REQUIRE(again.dump() == UCM_OK);
    REQUIRE(again.wait() == UCM_OK);
    REQUIRE(published(again.result(0)));
    REQUIRE(stack.loads_back({id}));
    REQUIRE(drained(stack).unfinished == 0);
    REQUIRE(stack.metrics()["published_blocks_total"] == 1);
}

TEST_CASE("Posix abandons unfinished blocks at close and says so", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    dump_one(stack, make_id(1), 0);
    stack.dump({make_id(2)});
    REQUIRE(stack.metrics()["unfinished_blocks"] == 1);
    REQUIRE(temporaries(directory) == 1);
    const Closed closed = stack.close();
    REQUIRE(closed.status == UCM_OK);
    REQUIRE(closed.report.stored == 3);
    REQUIRE(closed.report.lost == 0);
    REQUIRE(closed.report.unfinished == 1);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(writers(directory) == 0);
}

TEST_CASE("of two writers of one block the first copy wins", "[posix]") {
    TempDir directory;
    Geometry geometry{2, {5000}};
    Stack one({"Posix"}, in(directory), geometry), two({"Posix"}, in(directory), geometry);
    const BlockId id = make_id(1);
    dump_one(one, id, 0);
    dump_one(two, id, 0);
    REQUIRE(published(dump_one(one, id, 1)));
    const std::string first = read_all(block_path(directory, id));
    REQUIRE(published(dump_one(two, id, 1)));
    REQUIRE(read_all(block_path(directory, id)) == first);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(two.metrics()["published_blocks_total"] == 0);
    REQUIRE(two.loads_back({id}));
}

TEST_CASE("Posix begins a block again whose temporary file was deleted", "[posix]") {
    const bool whole_folder = GENERATE(false, true);
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{3, {5000}});
    const BlockId id = make_id(1);
    dump_one(stack, id, 0);
    dump_one(stack, id, 1);
    for (const std::string &path : directory.files())
        if (path.find(id.hex()) != std::string::npos ||
            (whole_folder && path.find("/lock") != std::string::npos))
            unlink(path.c_str());
    REQUIRE_FALSE(published(dump_one(stack, id, 2)));
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 3);
    REQUIRE(report.lost == 2);
    REQUIRE(report.unfinished == 1);
    REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("a flipped bit anywhere in a file is found, and hurts one shard at most",
          "[posix][shapes]") {
    const std::string direct = GENERATE("false", "true");
    TempDir directory;
    Geometry geometry{3, {3000, 2000}};
    Stack stack({"Posix"}, in(directory, {{"io_direct", direct}}), geometry);
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    const std::string sound = read_all(block_path(directory, id));
    REQUIRE(sound.size() == 7 * kPage);
    std::vector<size_t> places;
    for (size_t at = 0; at < 256 + 3 * 32; at++) places.push_back(at);  // header and table
    for (size_t at : {size_t(352), size_t(2000), size_t(4095)}) places.push_back(at);
    for (size_t shard = 0; shard < 3; shard++)  // payload and padding
        for (size_t at : {0, 1, 2999, 3000, 4095, 4096, 4999, 5000, 5001, 8191})
            places.push_back(kPage + shard * 2 * kPage + at);
    for (const size_t at : places) {
        INFO("byte " << at);
        std::string bytes = sound;
        bytes[at] = char(bytes[at] ^ (1 << (at % 8)));
        write_all(block_path(directory, id), bytes);
        std::vector<ucm_status> expected(3, at < kPage ? UCM_CORRUPT : UCM_OK);
        if (at >= kPage) expected[(at - kPage) / (2 * kPage)] = UCM_CORRUPT;
        Move load(stack, shards_of({id}, 3));
        REQUIRE(load.load() == UCM_OK);
        load.wait();
        REQUIRE(statuses(load.results()) == expected);
        for (size_t i = 0; i < 3; i++)
            if (expected[i] == UCM_OK) REQUIRE(load.same(i));
        REQUIRE_FALSE(stack.lookup({id})[0]);
        for (const ucm_result &result : stack.dump({id})) REQUIRE(published(result));
        REQUIRE(stack.loads_back({id}));
    }
    const auto metrics = stack.metrics();
    REQUIRE(metrics.at("quarantined_blocks_total") == places.size());
    REQUIRE(metrics.at("corrupt_shards_total") == 3 * (256 + 96 + 3) + 30);
}

TEST_CASE("truncated, emptied, garbage and foreign files are never served", "[posix][shapes]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{3, {5000}});
    const auto ids = make_ids(2);
    REQUIRE(all_ok(stack.dump(ids)));
    const std::string path = block_path(directory, ids[0]), sound = read_all(path);
    const std::string other = read_all(block_path(directory, ids[1]));
    std::string inner = other;  // the other's payload under our header
    inner.replace(0, kPage, sound, 0, kPage);
    std::string crossed = sound;  // shards 0 and 1 change places
    crossed.replace(kPage, 2 * kPage, sound, 3 * kPage, 2 * kPage);
    crossed.replace(3 * kPage, 2 * kPage, sound, kPage, 2 * kPage);
    const std::vector<ucm_status> all(3, UCM_CORRUPT);
    const auto damaged = GENERATE_COPY(values<std::string>(
        {"", "x", sound.substr(0, 100), sound.substr(0, kPage), sound.substr(0, sound.size() - 1),
         sound.substr(0, sound.size() - kPage), sound + std::string(kPage, '\0'), sound + "x",
         std::string(sound.size(), '\0'), std::string(sound.size(), '\xff'), other, inner}));
    write_all(path, damaged);
    REQUIRE(statuses(stack.load({ids[0]})) == all);
    REQUIRE_FALSE(stack.lookup({ids[0]})[0]);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    REQUIRE(stack.loads_back(ids));

    write_all(path, crossed);
    REQUIRE(statuses(stack.load({ids[0]})) ==
            std::vector<ucm_status>({UCM_CORRUPT, UCM_CORRUPT, UCM_OK}));
}

TEST_CASE("a damaged file is repaired by a dump that comes before any load", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{3, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    write_all(block_path(directory, id), GENERATE("", "garbage"));
    REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("shards that are loaded to one place do not look corrupt", "[posix]") {
    if (kSanitizer) return;  // it is the caller's race
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"posix_data_trans_concurrency", "4"}}),
                Geometry{1, {65536}});
    const auto ids = make_ids(64);
    REQUIRE(all_ok(stack.dump(ids)));
    for (int turn = 0; turn < 5; turn++) {
        Move move(stack, shards_of(ids, 1));
        for (size_t i = 1; i < ids.size(); i++)
            const_cast<void **>(move.transfer.addresses)[i] = move.transfer.addresses[0];
        REQUIRE(move.load() == UCM_OK);
        move.wait();
        for (size_t i = 0; i < ids.size(); i++) REQUIRE(move.result(i).status == UCM_OK);
    }
    REQUIRE(stack.metrics()["quarantined_blocks_total"] == 0);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a short file does not turn O_DIRECT off", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"io_direct", "true"}}), Geometry{2, {5000}});
    const auto ids = make_ids(2);
    REQUIRE(all_ok(stack.dump(ids)));
    write_all(block_path(directory, ids[0]), std::string(100, 'x'));
    REQUIRE(all_are(stack.load({ids[0]}), UCM_CORRUPT));
    REQUIRE_FALSE(stack.host().logged("O_DIRECT;"));
    REQUIRE(all_ok(stack.dump({ids[0]})));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a deleted block is NOT_FOUND and its neighbours load", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {5000}});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump(ids)));
    unlink(block_path(directory, ids[1]).c_str());
    REQUIRE(statuses(stack.load(ids)) == std::vector<ucm_status>({UCM_OK, UCM_NOT_FOUND, UCM_OK}));
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, false, true}));
}

TEST_CASE("the quarantine keeps no more than 64 files", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {100}});
    const auto ids = make_ids(70);
    REQUIRE(all_ok(stack.dump(ids)));
    for (const BlockId &id : ids) write_all(block_path(directory, id), "bad");
    REQUIRE(all_are(stack.load(ids), UCM_CORRUPT));
    size_t kept = 0;
    for (const std::string &path : directory.files())
        kept += path.find("/.ucm/quarantine/") != std::string::npos;
    REQUIRE(kept == 64);
    for (const BlockId &id : ids) REQUIRE_FALSE(exists(block_path(directory, id)));
}

TEST_CASE("a block that was moved from another space is INCOMPATIBLE until it is dumped again",
          "[posix][shapes]") {
    TempDir directory;
    const Geometry mine{2, {5000}};
    Geometry fewer{1, {5000}}, many{200, {5000}}, larger{2, {6000}}, encoded{2, {5000}};
    encoded.encoding = "y.2";
    const auto ids = make_ids(2);
    std::string foreign;
    {
        const int which = GENERATE(0, 1, 2, 3, 4);
        Stack stack({"Posix"}, in(directory, {{"model", which == 4 ? "other" : ""}}),
                    which == 0   ? fewer
                    : which == 1 ? many
                    : which == 2 ? larger
                    : which == 3 ? encoded
                                 : mine);
        REQUIRE(all_ok(stack.dump({ids[0]})));
        foreign = block_path(directory, ids[0]);
    }
    Stack stack({"Posix"}, in(directory), mine);
    REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
    REQUIRE(all_ok(stack.dump({ids[1]})));
    REQUIRE(exists(foreign));
    const std::string own = block_path(directory, ids[1]);
    const std::string space = own.substr(0, own.size() - 36);
    const std::string folder = space + ids[0].hex().substr(0, 3);
    mkdir(folder.c_str(), 0700);
    write_all(folder + "/" + ids[0].hex(), read_all(foreign));
    REQUIRE(unlink(foreign.c_str()) == 0);
    REQUIRE(all_are(stack.load({ids[0]}), UCM_INCOMPATIBLE));
    REQUIRE(exists(block_path(directory, ids[0])));
    REQUIRE_FALSE(published(dump_one(stack, ids[0], 1)));
    REQUIRE(all_are(stack.load({ids[0]}), UCM_INCOMPATIBLE));
    REQUIRE(published(dump_one(stack, ids[0], 0)));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a shard that is longer than the layout allows is INCOMPATIBLE, never cut",
          "[posix][shapes]") {
    TempDir directory;
    Geometry geometry{1, {6000}};
    geometry.raw_capacity = 9000;
    const auto shards = shards_of(make_ids(2), 1);
    {
        Stack stack({"Posix"}, in(directory), geometry);
        Move move(stack, shards, {6000, 5000}, {9000, 9000});
        REQUIRE(move.dump() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    geometry.segments = {5000};
    Stack stack({"Posix"}, in(directory), geometry);
    REQUIRE(statuses(stack.load(make_ids(2))) ==
            std::vector<ucm_status>({UCM_INCOMPATIBLE, UCM_OK}));
    Move again(stack, shards, {5000, 5000}, {9000, 9000});
    REQUIRE(again.dump() == UCM_OK);
    REQUIRE(again.wait() == UCM_OK);
    REQUIRE(all_ok(stack.load(make_ids(2))));
}

TEST_CASE("a sound block of another version is INCOMPATIBLE", "[posix][shapes]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    std::string bytes = read_all(block_path(directory, id));
    bytes[size_t(GENERATE(8, 36))] = 2;  // version, flags
    seal_header(bytes);
    write_all(block_path(directory, id), bytes);
    REQUIRE(all_are(stack.load({id}), UCM_INCOMPATIBLE));
    REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("a sealed header that lies is CORRUPT", "[posix][shapes]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    std::string bytes = read_all(block_path(directory, id));
    const size_t field = size_t(GENERATE(32, 40, 256, 264));
    const uint64_t value = GENERATE(0u, 1u, 8192u * 1000, UINT64_MAX, UINT64_MAX - 4095);
    if (field == 32)
        std::memcpy(&bytes[field], &value, 4);
    else
        put64(bytes, field, value);
    seal_header(bytes);
    write_all(block_path(directory, id), bytes);
    const ucm_status status = load_one(stack, id, 0);
    REQUIRE((status == UCM_CORRUPT || status == UCM_INCOMPATIBLE));
    REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("REPLACE makes a new copy that takes the place of the old one when whole", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    struct stat before{}, after{};
    REQUIRE(stat(block_path(directory, id).c_str(), &before) == 0);
    REQUIRE_FALSE(published(dump_one(stack, id, 1, UCM_TRANSFER_REPLACE)));
    REQUIRE(stack.loads_back({id}));
    REQUIRE(published(dump_one(stack, id, 0)));
    REQUIRE(stat(block_path(directory, id).c_str(), &after) == 0);
    REQUIRE(before.st_ino != after.st_ino);
    REQUIRE(stack.loads_back({id}));
    REQUIRE(temporaries(directory) == 0);
}

TEST_CASE("a full disk fails the shards that do not fit, and them alone", "[posix]") {
    const std::string direct = GENERATE("false", "true");
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"io_direct", direct}}), Geometry{4, {5000}});
    const BlockId id = make_id(1);
    faults.room = int64_t(kPage + 2 * kPage + 2 * kPage + 100);  // the header comes first
    const auto results = stack.dump({id});
    REQUIRE(statuses(results) ==
            std::vector<ucm_status>({UCM_OK, UCM_OK, UCM_NO_SPACE, UCM_NO_SPACE}));
    REQUIRE(results[3].os_errno == ENOSPC);
    REQUIRE_FALSE(stack.lookup({id})[0]);
    faults.room = INT64_MAX;
    REQUIRE_FALSE(published(dump_one(stack, id, 3)));
    REQUIRE(published(dump_one(stack, id, 2)));
    REQUIRE(stack.loads_back({id}));
    REQUIRE(read_all(block_path(directory, id)).size() == 9 * kPage);
}

TEST_CASE("a block of which nothing fits gives its space back at once", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {50000}});
    faults.room = 5000;
    REQUIRE(all_are(stack.dump({make_id(1)}), UCM_NO_SPACE));
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(stack.metrics()["unfinished_blocks"] == 0);
    faults.room = INT64_MAX;
    REQUIRE(all_ok(stack.dump({make_id(1)})));
    REQUIRE(stack.loads_back({make_id(1)}));
}

TEST_CASE("where rename replaces always, the first copy wins by link", "[posix]") {
    Calm calm;
    TempDir directory;
    faults.old_rename = true;
    Stack one({"Posix"}, in(directory), Geometry{2, {4096}});
    Stack other({"Posix"}, in(directory), Geometry{2, {4096}});
    const BlockId id = make_id(1);
    for (Stack *stack : {&one, &other}) REQUIRE(dump_one(*stack, id, 0).status == UCM_OK);
    REQUIRE(published(dump_one(one, id, 1)));
    const std::string first = read_all(block_path(directory, id));
    REQUIRE(published(dump_one(other, id, 1)));
    REQUIRE(read_all(block_path(directory, id)) == first);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(other.loads_back({id}));
}

TEST_CASE("a block that cannot be published is abandoned with all its shards", "[posix]") {
    const bool at_link = GENERATE(false, true);
    Calm calm;
    faults.old_rename = GENERATE(false, true);
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {4096}});
    const BlockId id = make_id(1);
    REQUIRE(dump_one(stack, id, 0).status == UCM_OK);
    if (at_link)
        faults.links.set(EDQUOT, 0, 1);
    else
        faults.room = 4096;  // the shard, but no header
    REQUIRE(dump_one(stack, id, 1).status == UCM_NO_SPACE);
    faults.room = INT64_MAX;
    REQUIRE_FALSE(stack.lookup({id})[0]);
    REQUIRE(temporaries(directory) == 0);
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 1);
    REQUIRE(report.lost == 1);
    REQUIRE(report.unfinished == 0);
    REQUIRE(stack.metrics()["abandoned_blocks_total"] == 1);
    REQUIRE(stack.host().logged("abandoned"));
    REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("posix_durability says what is synced before a block is published", "[posix]") {
    Calm calm;
    TempDir directory;
    const std::string word = GENERATE("none", "data", "full");
    Stack stack({"Posix"}, in(directory, {{"posix_durability", word}}), Geometry{2, {5000}});
    const BlockId first = make_id(1);
    REQUIRE(dump_one(stack, first, 0).status == UCM_OK);
    faults.data_syncs = faults.folder_syncs = 0;
    REQUIRE(published(dump_one(stack, first, 1)));
    REQUIRE(faults.data_syncs == (word == "none" ? 0 : 1));
    // Its folder is new, and so is what that is in.
    REQUIRE(faults.folder_syncs == (word == "full" ? 4 : 0));
    // A block that is there may be of a writer who promised less.
    REQUIRE(published(dump_one(stack, first, 1)));
    REQUIRE(faults.data_syncs == (word == "none" ? 0 : 2));
    REQUIRE(faults.folder_syncs == (word == "full" ? 5 : 0));
}

TEST_CASE("a block that cannot be synced is abandoned, and the sync is not tried again",
          "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"posix_durability", "data"}}), Geometry{1, {5000}});
    const BlockId id = make_id(1);
    faults.syncs.set(EIO, 0, 1);
    faults.data_syncs = 0;
    REQUIRE(dump_one(stack, id, 0).status == UCM_IO);
    REQUIRE(faults.data_syncs == 1);
    REQUIRE_FALSE(stack.lookup({id})[0]);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(published(dump_one(stack, id, 0)));
}

TEST_CASE("an engine that this build or machine lacks is one clear error, and auto goes on",
          "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"posix_io_engine", "auto"}, {"io_direct", "true"}}));
    REQUIRE(all_ok(stack.dump(make_ids(3))));
    REQUIRE(stack.host().logged("posix_io_engine: "));
    REQUIRE(refusal(in(directory, {{"posix_verify", "false"}})).find("posix_verify: ") == 0);
}

TEST_CASE("a write that fails in the middle of a run fails one shard", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{3, {3u << 20}});  // each a run of its own
    const BlockId id = make_id(1);
    faults.writes.set(EIO, 1, 1);
    const auto results = stack.dump({id});
    REQUIRE(statuses(results) == std::vector<ucm_status>({UCM_OK, UCM_IO, UCM_OK}));
    REQUIRE(results[1].os_errno == EIO);
    REQUIRE(published(dump_one(stack, id, 1)));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("an error that comes with close is not lost", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(dump_one(stack, make_id(2), 0).status == UCM_OK);  // what all blocks need is there
    faults.closes.set(EDQUOT, 0, 1);
    REQUIRE(dump_one(stack, id, 0).status == UCM_NO_SPACE);
    REQUIRE(dump_one(stack, id, 1).status == UCM_OK);
    REQUIRE(published(dump_one(stack, id, 0)));
    REQUIRE(stack.loads_back({id}));
}

TEST_CASE("a read that fails is tried again shard by shard", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{4, {5000}});
    const BlockId id = make_id(1);
    REQUIRE(all_ok(stack.dump({id})));
    faults.reads.set(EIO, 0, 1);  // header and payload, which are one request
    REQUIRE(stack.loads_back({id}));
    faults.reads.set(EIO, 0, 3);  // the same, the header alone, then the run
    REQUIRE(all_are(stack.load({id}), UCM_IO));
    faults.reads.set(ESTALE, 0, 2);
    REQUIRE(all_are(stack.load({id}), UCM_NOT_FOUND));
    REQUIRE(stack.loads_back({id}));

    // Shards that came in another order are read after the header.
    const BlockId other = make_id(2);
    for (uint32_t shard : {3u, 2u, 1u, 0u}) REQUIRE(dump_one(stack, other, shard).status == UCM_OK);
    faults.reads.set(EIO, 1, 2);  // the run, then its first shard
    const auto results = stack.load({other});
    REQUIRE(statuses(results) == std::vector<ucm_status>({UCM_OK, UCM_OK, UCM_OK, UCM_IO}));
    REQUIRE(results[3].os_errno == EIO);
    REQUIRE(stack.loads_back({other}));
}

TEST_CASE("without O_DIRECT in the file system Posix goes on, and warns once", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"io_direct", "true"}}), Geometry{2, {5000}});
    faults.writes.set(EINVAL, 0, 1);
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    const auto lines = stack.host().lines();
    REQUIRE(std::count_if(lines.begin(), lines.end(), [](const LogLine &line) {
                return line.level == UCM_LOG_WARN &&
                       line.message.find("O_DIRECT") != std::string::npos;
            }) == 1);
}

TEST_CASE("shards that wait too long or are cancelled do not start", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"posix_data_trans_concurrency", "1"}}),
                Geometry{1, {5000}});
    faults.write_gate.shut();
    Move running(stack, {{make_id(1), 0}}), cancelled(stack, {{make_id(2), 0}}),
        late(stack, {{make_id(3), 0}}), good(stack, {{make_id(4), 0}});
    REQUIRE(running.dump() == UCM_OK);
    faults.write_gate.await(1);
    late.transfer.deadline_ns = 1;
    for (Move *move : {&cancelled, &late, &good}) REQUIRE(move->dump() == UCM_OK);
    REQUIRE(ucm_cancel(stack.top(), running.task, nullptr) == UCM_OK);
    REQUIRE(ucm_cancel(stack.top(), cancelled.task, nullptr) == UCM_OK);
    ucm_report report{};
    report.struct_size = sizeof report;
    REQUIRE(stack.drain(&report, 0) == UCM_PENDING);
    REQUIRE(report.pending == 4);
    faults.write_gate.open();
    REQUIRE(running.wait() == UCM_OK);
    REQUIRE(cancelled.wait() == UCM_CANCELLED);
    REQUIRE(late.wait() == UCM_TIMEOUT);
    REQUIRE(good.wait() == UCM_OK);
    REQUIRE(stack.hits({make_id(1), make_id(2), make_id(3), make_id(4)}, UCM_LOOKUP_ALL) == 2);
    REQUIRE(drained(stack).stored == 2);
}

TEST_CASE("timeout_ms bounds the wait of every shard", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"},
                in(directory, {{"posix_data_trans_concurrency", "1"}, {"timeout_ms", "1"}}),
                Geometry{1, {5000}});
    faults.write_gate.shut();
    std::vector<std::unique_ptr<Move>> running;  // until one begins in time
    while (faults.write_gate.inside() == 0) {
        running.push_back(std::make_unique<Move>(stack, shards_of({make_id(1)}, 1)));
        REQUIRE(running.back()->dump() == UCM_OK);
        while (!running.back()->finished() && faults.write_gate.inside() == 0)
            std::this_thread::yield();
    }
    Move late(stack, {{make_id(2), 0}});
    REQUIRE(late.dump() == UCM_OK);
    const int64_t until = ucm::monotonic_ns() + 2000000;
    while (ucm::monotonic_ns() < until) std::this_thread::yield();
    faults.write_gate.open();
    REQUIRE(late.wait() == UCM_TIMEOUT);
}

TEST_CASE("a full queue is BUSY, and closing with work in flight is PENDING, then finishes",
          "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {64}});
    const auto ids = make_ids(65536);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    faults.read_gate.shut();
    Move large(stack, std::vector<Shard>(65536, {ids[0], 0})), small(stack, {{ids[0], 0}});
    REQUIRE(large.load() == UCM_OK);
    REQUIRE(small.load() == UCM_BUSY);
    REQUIRE(stack.close(0).status == UCM_PENDING);
    REQUIRE(small.load() == UCM_CLOSED);
    faults.read_gate.open();
    REQUIRE(stack.close().status == UCM_OK);
    REQUIRE(large.wait() == UCM_OK);
}

TEST_CASE("removed blocks are absent, finished or not", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    dump_one(stack, ids[1], 0);
    REQUIRE(stack.remove(ids) == UCM_OK);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(all_are(stack.load({ids[0]}), UCM_NOT_FOUND));
    REQUIRE_FALSE(published(dump_one(stack, ids[1], 1)));
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("remove cancels dumps that run or wait, and they do not come back", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, {{"posix_data_trans_concurrency", "1"}}),
                Geometry{1, {5000}});
    faults.write_gate.shut();
    Move running(stack, {{make_id(1), 0}}), waiting(stack, {{make_id(1), 0}}),
        other(stack, {{make_id(2), 0}});
    REQUIRE(running.dump() == UCM_OK);
    faults.write_gate.await(1);
    REQUIRE(waiting.dump() == UCM_OK);
    REQUIRE(other.dump() == UCM_OK);
    std::thread remover([&] { stack.remove(make_ids(2, 1)); });
    REQUIRE(waiting.wait() == UCM_CANCELLED);
    REQUIRE(other.wait() == UCM_CANCELLED);
    faults.write_gate.open();
    remover.join();
    REQUIRE(running.wait() == UCM_CANCELLED);
    REQUIRE(stack.hits(make_ids(2, 1), UCM_LOOKUP_ALL) == 0);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(all_ok(stack.dump(make_ids(2, 1))));
}

TEST_CASE("blocks spread over several directories", "[posix]") {
    TempDir one, two, three;
    const std::string both = one.path() + ":" + two.path();
    const auto ids = make_ids(64);
    {
        Stack stack({"Posix"}, {{"storage_backends", both}}, Geometry{1, {100}});
        REQUIRE(all_ok(stack.dump(ids)));
    }
    size_t here[2] = {0, 0};
    for (const BlockId &id : ids) {
        here[0] += exists(block_path(one, id));
        here[1] += exists(block_path(two, id));
    }
    REQUIRE(here[0] + here[1] == 64);
    REQUIRE(here[0] > 10);
    REQUIRE(here[1] > 10);
    Stack stack({"Posix"}, {{"storage_backends", two.path() + ":" + one.path()}},
                Geometry{1, {100}});
    REQUIRE(stack.loads_back(ids));  // their order does not matter
    Stack more({"Posix"}, {{"storage_backends", both + ":" + three.path()}}, Geometry{1, {100}});
    const size_t still = more.hits(ids, UCM_LOOKUP_ALL);
    REQUIRE(still > 25);  // about two thirds stay where they are
    REQUIRE(still < 60);
}

TEST_CASE("a directory that cannot be used is one clear error", "[posix]") {
    TempDir directory;
    const std::string missing = directory.path() + "/missing", file = directory.path() + "/file";
    write_all(file, "x");
    const std::string told = refusal({{"storage_backends", missing}});
    REQUIRE(told.find(missing) != std::string::npos);
    REQUIRE(told.find("mkdir -p " + missing) != std::string::npos);
    REQUIRE_FALSE(exists(missing));
    REQUIRE(refusal({{"storage_backends", file}}).find("not a directory") != std::string::npos);
    REQUIRE(refusal({{"storage_backends", ""}}).find("no directory") != std::string::npos);
    REQUIRE(refusal({{"storage_backends", directory.path() + ":" + directory.path()}})
                .find("name it once") != std::string::npos);
    REQUIRE(refusal({{"storage_backends", "/proc"}}).find("cannot write in /proc") !=
            std::string::npos);
}

// As UCM's uc-manager lays it out.
void lay_out_older(const std::string &path, const std::string &kind) {
    if (kind == "config") return write_all(path + "/.ucm_gc.config", "{}");
    std::string top = path;
    if (kind != "folders") std::filesystem::create_directory(top += "/data");
    if (kind == "flat") return write_all(top + "/" + std::string(32, 'f'), "raw");
    char name[4];
    for (unsigned i = 0; i < 4096; i++) {
        snprintf(name, sizeof name, "%03x", i);
        std::filesystem::create_directory(top + "/" + name);
    }
}

TEST_CASE("a directory of uc-manager is refused and left as it is", "[posix]") {
    const std::string kind = GENERATE("config", "folders", "data", "flat");
    Geometry geometry;
    geometry.lookup_only = GENERATE(false, true);
    TempDir directory;
    lay_out_older(directory.path(), kind);
    const std::string told = refusal(in(directory), geometry);
    REQUIRE(told.find(directory.path() + " holds blocks of UCM's uc-manager") != std::string::npos);
    REQUIRE(told.find("name another directory") != std::string::npos);
    REQUIRE_FALSE(exists(directory.path() + "/.ucm"));
    // What is ours stays ours.
    const std::string inner = directory.path() + "/inner";
    std::filesystem::create_directory(inner);
    {
        Stack stack({"Posix"}, {{"storage_backends", inner}});
    }
    lay_out_older(inner, kind);
    Stack stack({"Posix"}, {{"storage_backends", inner}});
}

TEST_CASE("a directory of a few similar names is no uc-manager's", "[posix]") {
    TempDir directory;
    for (const char *name : {"/000", "/555", "/data", "/data/fff"})
        std::filesystem::create_directory(directory.path() + name);
    write_all(directory.path() + "/data/README", "mine");
    write_all(directory.path() + "/data/" + std::string(32, 'f'), "mine too");
    Stack stack({"Posix"}, in(directory));
}

TEST_CASE("a copy of a directory is not taken for a second one", "[posix]") {
    TempDir one, two;
    {
        Stack stack({"Posix"}, in(one));
    }
    {
        Stack stack({"Posix"}, in(two));
    }
    write_all(two.path() + "/.ucm/format", read_all(one.path() + "/.ucm/format"));
    REQUIRE(refusal({{"storage_backends", one.path() + ":" + two.path()}}).find("copies") !=
            std::string::npos);
    write_all(one.path() + "/.ucm/format", "ucm blocks 2\n");
    REQUIRE(refusal(in(one)).find("/.ucm/format") != std::string::npos);
}

TEST_CASE("who looks only writes nothing, and may come first", "[posix]") {
    TempDir directory;
    Geometry geometry;
    geometry.lookup_only = true;
    Stack looker({"Posix"}, in(directory), geometry);
    const auto ids = make_ids(2);
    REQUIRE(looker.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(directory.files().empty());
    Stack stack({"Posix"}, in(directory));
    REQUIRE(all_ok(stack.dump(ids)));
    while (looker.hits(ids, UCM_LOOKUP_ALL) != 2) usleep(1000);
    REQUIRE(looker.remove({ids[0]}) == UCM_OK);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 1);
    REQUIRE(looker.close().status == UCM_OK);
}

TEST_CASE("a writer that is to be killed", "[.posix-writer]") {
    const char *path = getenv("UCM_TEST_DIRECTORY");
    REQUIRE(path);
    Stack stack({"Posix"}, {{"storage_backends", path}}, Geometry{2, {5000}});
    dump_one(stack, make_id(1), 0);
    stack.dump({make_id(2)});
    REQUIRE(write(STDOUT_FILENO, "!", 1) == 1);
    for (;;) pause();
}

TEST_CASE("what a killed writer left is swept by the next one, never that of a living", "[posix]") {
    TempDir directory;
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        setenv("UCM_TEST_DIRECTORY", directory.path().c_str(), 1);
        dup2(ends[1], STDOUT_FILENO);
        execl("/proc/self/exe", "native_tests", "[.posix-writer]", nullptr);
        _exit(127);
    }
    close(ends[1]);
    char byte = 0;
    while (read(ends[0], &byte, 1) == 1 && byte != '!') {
    }
    close(ends[0]);
    REQUIRE(byte == '!');
    {
        Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
        REQUIRE(writers(directory) == 2);
        REQUIRE(temporaries(directory) == 1);
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    REQUIRE(temporaries(directory) == 1);
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    REQUIRE(writers(directory) == 1);
    REQUIRE(temporaries(directory) == 0);
    REQUIRE(stack.lookup(make_ids(2, 1)) == std::vector<bool>({false, true}));
    REQUIRE(stack.loads_back({make_id(2)}));
}

TEST_CASE("a forked child holds nothing of the store", "[posix]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    faults.write_gate.shut();
    Move move(stack, {{make_id(1), 0}});
    REQUIRE(move.dump() == UCM_OK);
    faults.write_gate.await(1);  // with a temporary file open
    const pid_t child = fork();
    if (child == 0) {
        int held = 0;
        for (int fd = 3; fd < 1024; fd++) {
            char name[64], target[4096];
            snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
            const ssize_t n = readlink(name, target, sizeof target - 1);
            if (n <= 0) continue;
            target[n] = 0;
            held += strstr(target, directory.path().c_str()) != nullptr;
        }
        ucm_error error{};
        error.struct_size = sizeof error;
        const ucm_wait_args wait{sizeof wait, 0, 0};
        const bool refused = ucm_drain(stack.top(), &wait, nullptr, &error) == UCM_INVALID;
        _exit(held == 0 && refused ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    REQUIRE(status == 0);
    faults.write_gate.open();
    REQUIRE(move.wait() == UCM_OK);
}

TEST_CASE("Posix logs its tasks and counts bytes", "[posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    REQUIRE(all_ok(stack.dump({make_id(1)})));
    REQUIRE(stack.loads_back({make_id(1)}));
    const auto metrics = stack.metrics();
    REQUIRE(metrics.at("dump_shards_total") == 2);
    REQUIRE(metrics.at("dump_bytes_total") == 10000);
    REQUIRE(metrics.at("dump_out_bytes_total") == 5 * kPage);
    REQUIRE(metrics.at("load_bytes_total") == 10000);
    REQUIRE(metrics.at("load_in_bytes_total") == 5 * kPage);
    REQUIRE(metrics.at("failed_shards_total") == 0);
    auto host = &stack.host();
    stack.close();
    REQUIRE(host->logged("Posix task(1,Cache2Backend,2,10000) dispatching."));
    REQUIRE(host->logged("Posix task(1,Cache2Backend,2,10000) finished, cost "));
    REQUIRE(host->logged("Posix task(2,Backend2Cache,2,10000) dispatching."));
    REQUIRE(host->logged("Posix task(2,Backend2Cache,2,10000) finished, cost "));
}
