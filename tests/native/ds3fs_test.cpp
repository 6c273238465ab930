// SPDX-License-Identifier: MIT
//
// Ds3fs over the library that stands in for 3FS's: its threads, rings and buffers, for sanitizers.
// What it does for users is tested in tests/layers/test_ds3fs.py.
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "../../plugins/ds3fs/usrbio.h"
#include "harness.h"

using namespace ucm_test;

namespace {

// A folder that the stand-in takes for a mount, and what goes wrong there.
class Mount {
  public:
    explicit Mount(const std::string &plan) {
        std::filesystem::create_directories(root_.path() + "/3fs-virt/iovs");
        std::filesystem::create_directory(blocks());
        setenv("HF3FS_STANDIN", plan.c_str(), 1);
        setenv("HF3FS_STANDIN_HUNG", hung_.c_str(), 1);
        setenv("HF3FS_STANDIN_DEAD", dead_.c_str(), 1);
    }
    std::string blocks() const { return root_.path() + "/kv"; }
    Options options(const std::string &requests, const std::string &entries,
                    const std::string &timeout_ms = "300") const {
        return {{"storage_backends", blocks()},
                {"ds3fs_library", UCM_TEST_HF3FS},
                {"stream_number", requests},
                {"ior_entries", entries},
                {"ds3fs_request_timeout_ms", timeout_ms}};
    }
    void hang() const { std::ofstream(hung_) << "now"; }
    void go_on() const { std::filesystem::remove(hung_); }
    void die() const { std::ofstream(dead_) << "now"; }
    void come_back() const { std::filesystem::remove(dead_); }

  private:
    TempDir root_, aside_;
    const std::string hung_ = aside_.path() + "/hung", dead_ = aside_.path() + "/dead";
};

template <typename True>
bool soon(True is) {
    for (int i = 0; i < 6000; i++) {
        if (is()) return true;
        usleep(5000);
    }
    return false;
}

// Without a word of those that were refused.
bool come_back(Stack &stack, const std::vector<BlockId> &ids) {
    try {
        return stack.loads_back(ids);
    } catch (const ucm::Error &) {
        return false;
    }
}

}  // namespace

TEST_CASE("Threads dump and load at once, in any order") {
    const Mount mount("seed=7 random_us=500");
    Stack stack({"Ds3fs"}, mount.options("8", "3", "60000"));
    std::vector<std::thread> threads;
    std::atomic<int> good{0};
    for (int k = 0; k < 4; k++)
        threads.emplace_back([&, k] {
            const auto ids = make_ids(12, uint64_t(100 + k));
            for (int turn = 0; turn < 2; turn++)
                good += all_ok(stack.dump(ids)) && stack.loads_back(ids);
        });
    for (auto &thread : threads) thread.join();
    CHECK(good == 8);
}

TEST_CASE("Late completions find no request of another life, and closing waits for none") {
    const Mount mount("seed=3 random_us=200 read_never=9 write_never=20");
    Stack stack({"Ds3fs"}, mount.options("4", "2"));
    const auto ids = make_ids(10, 1), later = make_ids(10, 2);
    REQUIRE(all_ok(stack.dump(ids)));
    mount.hang();
    CHECK(!come_back(stack, {ids[0], ids[1]}));
    mount.go_on();
    CHECK(soon([&] { return come_back(stack, {ids[0]}); }));
    for (int turn = 0; turn < 3; turn++) come_back(stack, ids);
    Move dump(stack, shards_of(later, 4));
    if (dump.dump_patiently() == UCM_OK) dump.wait();
    CHECK(soon([&] { return come_back(stack, {ids[0], ids[1]}); }));
    const Closed closed = stack.close();
    CHECK(closed.status == UCM_OK);
}

TEST_CASE("Threads turn to another daemon, whatever they were at") {
    const Mount mount("seed=5 random_us=3000");
    Stack stack({"Ds3fs"}, mount.options("6", "2"));
    const auto ids = make_ids(12, 1);
    REQUIRE(all_ok(stack.dump(ids)));
    for (int turn = 0; turn < 3; turn++) {
        std::atomic<bool> over{false};
        std::thread loads([&] {
            while (!over) come_back(stack, ids);
        });
        usleep(20000);
        mount.die();
        usleep(useconds_t(turn) * 200000);
        mount.come_back();
        usleep(100000);
        over = true;
        loads.join();
        CHECK(soon([&] { return come_back(stack, ids); }));
    }
    CHECK(stack.close().status == UCM_OK);
}

TEST_CASE("A limit of open files that the library cannot take is refused before it is opened") {
    using ucm::ds3fs::Library;
    CHECK(Library::refusal(1u << 20).empty());
    CHECK(Library::refusal(1u << 24).empty());
    CHECK(Library::refusal(1000000000).find("1000000000") != std::string::npos);
    CHECK(Library::refusal(UINT64_MAX).find("unlimited") != std::string::npos);
}
