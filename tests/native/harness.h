// SPDX-License-Identifier: MIT
//
// Opens pipelines the way a host does, without Python, and moves random blocks through them.
//
//     TempDir directory;
//     Stack stack({"Compress", "Posix"}, {{"storage_backends", directory.path()}},
//                 Geometry{4, {5000, 300}});
//     const auto ids = make_ids(8);
//     REQUIRE(all_ok(stack.dump(ids)));         // all shards of these blocks, known contents
//     REQUIRE(stack.lookup(ids) == std::vector<bool>(8, true));
//     REQUIRE(stack.loads_back(ids));           // statuses, lengths and bytes
//     Move move(stack, {{ids[0], 1}, {ids[3], 0}});   // any shards; see Move
//     REQUIRE(move.load() == UCM_OK);
//     REQUIRE(move.wait() == UCM_OK);
//     REQUIRE(move.same(0));
//
// A layer named "Memory" is the store of memory_store.h, which the test controls by stack.memory().
// Nothing here asserts, so that threads may use it: what goes wrong throws ucm::Error.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "buffers.h"
#include "memory_store.h"
#include "ucm/store_v1.hpp"
#include "ucm/task_v1.h"

namespace ucm_test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitizer = true;  // keeps freed memory, and is slow
#else
constexpr bool kSanitizer = false;
#endif

// False: it did not come to hold in half a minute.
template <typename F>
bool eventually(F holds) {
    const int64_t until_ns = ucm::monotonic_ns() + 30ll * 1000000000;
    while (!holds() && ucm::monotonic_ns() < until_ns) usleep(1000);
    return holds();
}

// Keys as a user writes them: "timeout_ms" goes to every layer that takes it, "Posix.timeout_ms" to
// one. Lists: STRINGS are separated by ':', INTS by ','.
using Options = std::map<std::string, std::string>;

struct Geometry {
    uint32_t shards = 4;                      // of a block
    std::vector<uint64_t> segments = {5000};  // bytes
    int32_t dtype = UCM_DTYPE_BYTES;          // else one plane of it a segment, K and V in turn
    bool lookup_only = false;
    bool lookup_layout = false;  // with lookup_only: the layout is given all the same
    bool pages = false;          // UCM_LAYOUT_PAGES
    uint64_t raw_capacity = 0;   // 0: the sum of segments
    std::string encoding = "";
    size_t misalign = 0;  // how far from a page every segment of a Move begins
    // Of the top layer. Addresses of another kind than host a test puts into Move::transfer.
    int32_t memory = UCM_MEMORY_HOST, device = -1;

    uint64_t capacity() const;
};

// A layout with its arrays.
struct Layout {
    explicit Layout(const Geometry &geometry);
    Layout(const Layout &) = delete;
    ucm_layout c{};
    std::vector<uint64_t> segments;
    std::vector<ucm_plane> planes;
};

// The same number gives the same id. Ids of different numbers share no beginning.
BlockId make_id(uint64_t number);
std::vector<BlockId> make_ids(size_t n, uint64_t first = 0);
// The bytes of that shard; always the same, and different for every shard. dtype BYTES: random;
// else numbers of that kind, which compress.
std::vector<uint8_t> contents(const BlockId &id, uint32_t shard, uint64_t length,
                              int32_t dtype = UCM_DTYPE_BYTES);

bool all_ok(const std::vector<ucm_result> &results);
bool all_are(const std::vector<ucm_result> &results, ucm_status status);

// A directory that is gone with the object. TMPDIR or /tmp.
class TempDir {
  public:
    TempDir();
    ~TempDir();
    TempDir(const TempDir &) = delete;
    const std::string &path() const { return path_; }
    std::vector<std::string> files() const;  // regular files below, full paths, sorted

  private:
    std::string path_;
};

struct LogLine {
    int32_t level;
    std::string plugin, message;
};

// A host whose log can be read.
class Host {
  public:
    Host();
    Host(const Host &) = delete;
    const ucm_host *c() const { return &c_; }
    std::vector<LogLine> lines() const;
    bool logged(const std::string &part) const;  // does a message contain it?

  private:
    ucm_host c_{};
    mutable std::mutex mutex_;   // guards lines_
    std::deque<LogLine> lines_;  // the last ones
};

// The descriptor of a built layer ("Posix" is posix.so in a folder of UCM_TEST_PLUGINS, which are
// separated by ':'). Checked; stays open.
const ucm_plugin *plugin(const std::string &name);
bool has_plugin(const std::string &name);
std::string plugin_path(const std::string &name);

// The text of every option of that plugin made into values, checked against type and range.
class ParsedOptions {
  public:
    ParsedOptions(const ucm_plugin *plugin, const Options &options);
    ParsedOptions(const ParsedOptions &) = delete;
    const std::vector<ucm_value> &values() const { return values_; }

  private:
    void parse(const ucm_option &option, const std::string &text, ucm_value &value);
    std::vector<ucm_value> values_;
    std::deque<std::string> strings_;
    std::deque<std::vector<const char *>> string_lists_;
    std::deque<std::vector<int64_t>> int_lists_;
};

struct Closed {
    ucm_status status = UCM_OK;
    ucm_report report{};
    std::string error;
};

// A pipeline, top first. Opens in the constructor (throws ucm::Error with the plugin's message) and
// closes in the destructor, unless close() was called.
class Stack {
  public:
    explicit Stack(std::vector<std::string> layers, Options options = {}, Geometry geometry = {},
                   std::shared_ptr<Memory> memory = std::make_shared<Memory>(),
                   std::string unique_id = "");
    ~Stack();
    Stack(const Stack &) = delete;

    ucm_store *top() const { return stores_.front(); }
    ucm_store *store(size_t depth) const { return stores_[depth]; }  // 0: top
    const ucm_layout &layout(size_t depth) const { return layouts_[depth]->c; }
    const Geometry &geometry() const { return geometry_; }
    // Of the top, also once it is closed.
    bool can(uint64_t capability) const { return (capabilities_ & capability) == capability; }
    Memory &memory() const { return *memory_; }
    Host &host() const { return *host_; }

    // All shards of these blocks in one transfer; BUSY is tried again. Results by block, then
    // shard.
    std::vector<ucm_result> dump(const std::vector<BlockId> &ids, uint64_t flags = 0);
    std::vector<ucm_result> load(const std::vector<BlockId> &ids);
    // Does every shard come back as it was dumped?
    bool loads_back(const std::vector<BlockId> &ids);

    std::vector<bool> lookup(const std::vector<BlockId> &ids);
    std::vector<uint8_t> tiers(const std::vector<BlockId> &ids);
    size_t hits(const std::vector<BlockId> &ids, int32_t mode);
    ucm_status remove(const std::vector<BlockId> &ids);
    ucm_status touch(const std::vector<BlockId> &ids);
    ucm_status prefetch(const std::vector<BlockId> &ids);
    ucm_status drain(ucm_report *report = nullptr, int64_t timeout_ms = 60000);
    // Counters and gauges by name; of a histogram "name" is its count and "name.sum" its sum.
    std::map<std::string, uint64_t> metrics(size_t depth = 0) const;

    // Top down; reports summed. PENDING: stops there and leaves the rest open; may be called again.
    Closed close(int64_t timeout_ms = 60000);

  private:
    void open(const Options &options, const std::string &unique_id);
    void open_layer(size_t depth, const std::string &unique_id);
    void check_lower(const std::string &name, const ucm_layout &upper,
                     const ucm_layout &lower) const;
    std::vector<ucm_result> run(const std::vector<BlockId> &ids, bool dump, uint64_t flags);

    std::vector<std::string> names_;
    Geometry geometry_;
    std::shared_ptr<Memory> memory_;
    std::shared_ptr<Host> host_;
    std::vector<const ucm_plugin *> plugins_;  // NULL for Memory
    std::vector<std::unique_ptr<ParsedOptions>> options_;
    std::vector<std::unique_ptr<Layout>> layouts_;
    std::vector<ucm_store *> stores_;  // NULL once closed
    uint64_t capabilities_ = 0;
    Closed closed_;
};

struct Shard {
    BlockId id;
    uint32_t index;
};

// All shards of these blocks, block by block.
std::vector<Shard> shards_of(const std::vector<BlockId> &ids, uint32_t shards_per_block);

// One transfer with memory of its own. The destructor waits for its end.
class Move {
  public:
    // lengths: of a dump; empty: NULL goes down.
    Move(Stack &stack, std::vector<Shard> shards, std::vector<uint64_t> lengths = {},
         std::vector<uint64_t> raw_lengths = {});
    ~Move();
    Move(const Move &) = delete;

    ucm_transfer transfer{};  // to be changed before dump or load: flags, deadline_ns, tag, depths
    ucm_task task = 0;
    ucm_error error{};

    // Start. dump fills the memory with contents() first. UCM_BUSY: may be called again.
    ucm_status dump();
    ucm_status load();
    // The same, again until it is not BUSY.
    ucm_status dump_patiently();
    ucm_status load_patiently();

    ucm_status wait(int64_t timeout_ms = 120000);  // as ucm_waiter_wait
    bool finished();
    size_t n() const { return shards_.size(); }
    const ucm_result &result(size_t i) const { return waiter_->results[i]; }
    std::vector<ucm_result> results() const;
    std::vector<uint8_t> bytes(size_t i) const;  // of the whole shard, segments in order
    // Are the bytes of shard i, as far as it was loaded, its contents()?
    bool same(size_t i) const;
    // Did the store write where it must not: between the segments?
    bool overrun() const;

  private:
    uint8_t *segment(size_t i, size_t k) const;
    void fill(uint8_t byte);

    const Stack &stack_;
    std::vector<Shard> shards_;
    std::vector<uint64_t> lengths_, raw_lengths_;
    std::vector<uint8_t> ids_;
    std::vector<uint32_t> indexes_;
    std::vector<void *> addresses_;
    std::unique_ptr<ucm::Mapping> memory_;
    std::vector<uint64_t> offsets_;  // of the segments of one shard
    uint64_t stride_ = 0;            // from shard to shard
    ucm_waiter *waiter_;
    bool running_ = false;
};

}  // namespace ucm_test
