// SPDX-License-Identifier: MIT
//
// The quota of Posix, its collector and write admission, with a clock and an unlink(2) that can be
// made to misbehave: the functions below stand in front of the C library's, for the plugin too.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <set>
#include <thread>

#include "harness.h"
#include "write_filter.h"

using namespace ucm_test;

namespace {

struct Nature {
    std::atomic<int64_t> clock_shift_s{0};
    std::atomic<int> unlink_error{0};  // of published blocks
    std::atomic<int> unlinks_refused{0};
} nature;

struct Calm {
    ~Calm() {
        nature.clock_shift_s = 0;
        nature.unlink_error = 0;
        nature.unlinks_refused = 0;
    }
};

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec *out) noexcept {
    static const auto next =
        reinterpret_cast<int (*)(clockid_t, timespec *)>(dlsym(RTLD_NEXT, "clock_gettime"));
    const int failed = next(clock, out);
    if (clock == CLOCK_REALTIME) out->tv_sec += nature.clock_shift_s;
    return failed;
}

int unlink(const char *path) noexcept {
    static const auto next = reinterpret_cast<int (*)(const char *)>(dlsym(RTLD_NEXT, "unlink"));
    if (nature.unlink_error && std::string(path).find("/default/") != std::string::npos) {
        nature.unlinks_refused++;
        errno = nature.unlink_error;
        return -1;
    }
    return next(path);
}
}

namespace {

constexpr uint64_t kKiB = 1024, kFile = 5 * 4096;
const Geometry kFour{4, {4096}};

Options in(const TempDir &directory, uint64_t capacity, Options more = {}) {
    more["storage_backends"] = directory.path();
    more["posix_capacity_gb"] = std::to_string(double(capacity) / double(1 << 30) + 1e-9);
    if (!more.count("posix_data_trans_concurrency")) more["posix_data_trans_concurrency"] = "2";
    return more;
}

// Waits for what another thread does.
template <typename Happened>
void until(Happened happened) {
    for (int i = 0; i < 30000 && !happened(); i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    REQUIRE(happened());
}

uint64_t taken(const TempDir &directory) {
    uint64_t bytes = 0;
    std::set<ino_t> seen;
    for (const std::string &path : directory.files()) {
        struct stat st{};
        if (::stat(path.c_str(), &st) == 0 && seen.insert(st.st_ino).second)
            bytes += std::max<uint64_t>(uint64_t(st.st_blocks) * 512, uint64_t(st.st_size));
    }
    return bytes;
}

std::string block_path(const TempDir &directory, const BlockId &id) {
    const std::string name = "/" + id.hex().substr(0, 3) + "/" + id.hex();
    for (const std::string &path : directory.files())
        if (path.size() > name.size() &&
            path.compare(path.size() - name.size(), name.size(), name) == 0)
            return path;
    return "";
}

int64_t stamp_of(const TempDir &directory, const BlockId &id) {
    struct stat st{};
    if (::stat(block_path(directory, id).c_str(), &st) != 0) return 0;
    return int64_t(st.st_mtim.tv_sec) * 1000000000 + st.st_mtim.tv_nsec;
}

void dump_with_depth(Stack &stack, const BlockId &id, uint32_t depth) {
    Move move(stack, shards_of({id}, 4));
    const std::vector<uint32_t> depths(4, depth);
    move.transfer.depths = depths.data();
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
}

// Makes all stamps equal, and old.
void age(const TempDir &directory, const std::vector<BlockId> &ids, time_t seconds) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= seconds;
    const timespec times[2] = {now, now};
    for (const BlockId &id : ids)
        REQUIRE(utimensat(AT_FDCWD, block_path(directory, id).c_str(), times, 0) == 0);
}

}  // namespace

TEST_CASE("of equally cold blocks the ends of prefixes go first", "[quota]") {
    TempDir directory;
    const auto ids = make_ids(20), more = make_ids(12, 100);
    {
        Stack stack({"Posix"}, in(directory, 1 << 20), kFour);
        for (uint32_t i = 0; i < 20; i++) dump_with_depth(stack, ids[i], 19 - i);
        age(directory, ids, 1000);
        REQUIRE(stack.close().status == UCM_OK);
    }
    Stack stack({"Posix"}, in(directory, 30 * kFile), kFour);
    for (const BlockId &id : more) REQUIRE(all_ok(stack.dump({id})));
    until([&] { return stack.metrics()["evicted_blocks_total"] > 0; });
    const auto found = stack.lookup(ids);
    // The deepest were dumped first, and are gone: a row of absent ones, then only present ones.
    REQUIRE_FALSE(found[0]);
    REQUIRE(found[19]);
    REQUIRE(std::is_sorted(found.begin(), found.end()));
}

TEST_CASE("a head that nobody used for long goes before a tail that was used", "[quota]") {
    TempDir directory;
    const auto ids = make_ids(20), more = make_ids(12, 100);
    Stack stack({"Posix"}, in(directory, 30 * kFile), kFour);
    for (uint32_t i = 0; i < 20; i++) dump_with_depth(stack, ids[i], i);
    const std::vector<BlockId> heads(ids.begin(), ids.begin() + 4);
    age(directory, heads, 100000);
    for (const BlockId &id : more) REQUIRE(all_ok(stack.dump({id})));
    until([&] { return stack.metrics()["evicted_blocks_total"] >= 4; });
    const auto found = stack.lookup(ids);
    REQUIRE(std::count(found.begin(), found.begin() + 4, true) == 0);
}

TEST_CASE("a clock that is set back does not turn hot and cold around", "[quota]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, 40 * kFile), kFour);
    const auto older = make_ids(16), newer = make_ids(16, 100), last = make_ids(10, 200);
    for (const BlockId &id : older) REQUIRE(all_ok(stack.dump({id})));
    const int64_t latest = stamp_of(directory, older.back());
    nature.clock_shift_s = -3600;
    // Files take their time from the kernel, whose clock cannot be set here: what the store stamps
    // tells. It does so as soon as it sees the clock behind the ledger's, which is written now and
    // then.
    for (const BlockId &id : newer) REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(stamp_of(directory, newer.front()) >= latest - 1000000000);
    REQUIRE(stamp_of(directory, newer.back()) > stamp_of(directory, newer.front()));
    for (const BlockId &id : last) REQUIRE(all_ok(stack.dump({id})));
    until([&] { return stack.metrics()["evicted_blocks_total"] > 0; });
    const auto cold = stack.lookup(older), hot = stack.lookup(newer);
    REQUIRE(std::count(cold.begin(), cold.end(), true) < 16);
    REQUIRE(std::count(hot.begin(), hot.end(), true) == 16);
    REQUIRE(taken(directory) <= 41 * kFile);
}

TEST_CASE("stamps from far in the future do not stay for ever", "[quota]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory, 30 * kFile), kFour);
    const auto ids = make_ids(10), more = make_ids(40, 100);
    for (const BlockId &id : ids) REQUIRE(all_ok(stack.dump({id})));
    age(directory, ids, -10 * 86400);
    for (const BlockId &id : more) REQUIRE(all_ok(stack.dump({id})));
    until([&] { return stack.hits(ids, UCM_LOOKUP_ALL) == 0; });
}

TEST_CASE("what cannot be deleted is told once, and does not make the collector spin", "[quota]") {
    Calm calm;
    TempDir directory;
    Stack stack({"Posix"}, in(directory, 20 * kFile, {{"timeout_ms", "300"}}), kFour);
    nature.unlink_error = EACCES;
    const auto ids = make_ids(30);
    size_t full = 0;
    for (const BlockId &id : ids) full += all_are(stack.dump({id}), UCM_NO_SPACE);
    REQUIRE(full >= 10);
    REQUIRE(taken(directory) <= 21 * kFile);
    REQUIRE(stack.host().logged("cannot evict"));
    REQUIRE(stack.host().logged("posix_capacity_gb: "));
    // A round looks at every block once; it was not repeated for every dump that failed.
    REQUIRE(nature.unlinks_refused <= 3 * 20);
    nature.unlink_error = 0;
    REQUIRE(stack.remove({ids[0], ids[1]}) == UCM_OK);
    size_t complaints = 0;
    for (const LogLine &line : stack.host().lines()) complaints += line.level >= UCM_LOG_WARN;
    REQUIRE(complaints < 10);
}

TEST_CASE("touch and load make a block hot, and lookup does not", "[quota]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory, 40 * kFile), kFour);
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump(ids)));
    age(directory, ids, 1000);
    const int64_t before = stamp_of(directory, ids[0]);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 3);
    REQUIRE(stack.touch({ids[1]}) == UCM_OK);
    REQUIRE(stack.loads_back({ids[2]}));
    until([&] { return stamp_of(directory, ids[1]) > before + 900 * 1000000000ll; });
    until([&] { return stamp_of(directory, ids[2]) > before + 900 * 1000000000ll; });
    REQUIRE(stamp_of(directory, ids[0]) == before);
}

TEST_CASE("a block that is larger than the limit of another is refused at once", "[quota]") {
    TempDir directory;
    const Geometry small{1, {4096}};
    Stack strict({"Posix"}, in(directory, 8 * 8192), small);
    REQUIRE(all_ok(strict.dump(make_ids(1, 500))));
    Stack stack({"Posix"}, in(directory, 1 << 30), Geometry{1, {128 * kKiB}});
    REQUIRE(all_are(stack.dump(make_ids(1)), UCM_NO_SPACE));
    REQUIRE(stack.host().logged("does not fit"));
}

TEST_CASE("writers in threads of one process share a limit", "[quota]") {
    TempDir directory;
    std::vector<std::unique_ptr<Stack>> stacks;
    for (int i = 0; i < 3; i++)
        stacks.push_back(std::make_unique<Stack>(std::vector<std::string>{"Posix"},
                                                 in(directory, 40 * kFile), kFour));
    std::vector<std::thread> threads;
    std::atomic<int> left{3};
    std::atomic<size_t> failed{0};
    for (int i = 0; i < 3; i++)
        threads.emplace_back([&, i] {
            for (const BlockId &id : make_ids(kSanitizer ? 40 : 100, uint64_t(1000 * i)))
                failed += !all_ok(stacks[size_t(i)]->dump({id}));
            left--;
        });
    while (left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (auto &thread : threads) thread.join();
    REQUIRE(failed == 0);
    REQUIRE(taken(directory) <= 43 * kFile);
    for (auto &stack : stacks) REQUIRE(stack->close().status == UCM_OK);
}

TEST_CASE("a thousand ids are remembered, and others are not taken for them", "[quota]") {
    ucm::SeenIds seen;
    const auto ids = make_ids(1000), others = make_ids(1000, 5000);
    for (const BlockId &id : ids) REQUIRE_FALSE(seen.meet(id));
    for (const BlockId &id : ids) REQUIRE(seen.meet(id));
    size_t wrong = 0;
    for (const BlockId &id : others) wrong += seen.meet(id);
    REQUIRE(wrong <= 2);
}

TEST_CASE("a rate lets a burst through and then declines", "[quota]") {
    ucm::WriteFilterOptions options;
    options.bytes_per_s = 1000;
    ucm::WriteFilter filter(options);
    const auto ids = make_ids(3);
    REQUIRE(filter.admits(ids[0], {0}, 2, 1));
    filter.wrote(1000000, 1);
    REQUIRE_FALSE(filter.admits(ids[1], {0}, 2, 1));
    REQUIRE_FALSE(filter.admits(ids[1], {1}, 2, 1));
    REQUIRE_FALSE(filter.admits(ids[2], {0, 1}, 2, 1));
}
