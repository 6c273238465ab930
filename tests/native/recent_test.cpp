// SPDX-License-Identifier: MIT
//
// The ring by which processes tell each other what they store, and the index that hears it. Two
// objects of either class are to each other what two processes are.
#include "recent.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "block_index.h"
#include "harness.h"
#include "space.h"

using namespace ucm_test;
using ucm::Access;
using ucm::BlockIndex;
using ucm::Change;
using ucm::HashTable;
using ucm::Maker;
using ucm::Recent;
using ucm::WriterFolder;
using Answer = ucm::BlockIndex::Answer;
using News = ucm::Recent::News;

namespace {

thread_local size_t calls = 0;  // of this thread, to the file system

template <typename F>
F real(F, const char *name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int stat64(const char *path, struct stat64 *st) noexcept {
    static const auto next =
        reinterpret_cast<int (*)(const char *, struct stat64 *)>(dlsym(RTLD_NEXT, "stat64"));
    calls++;
    return next(path, st);
}

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *st) noexcept {
    static const auto next =
        reinterpret_cast<int (*)(int, const char *, int, unsigned, struct statx *)>(
            dlsym(RTLD_NEXT, "statx"));
    calls++;
    return next(folder, path, flags, mask, st);
}

ssize_t pread64(int fd, void *to, size_t bytes, off64_t offset) {
    static const auto next = real(&pread64, "pread64");
    calls++;
    return next(fd, to, bytes, offset);
}

DIR *opendir(const char *path) {
    static const auto next = real(&opendir, "opendir");
    calls++;
    return next(path);
}
}

namespace {

constexpr uint32_t kSlots = 8;
const ucm::FileSystem kLocal{true, ""}, kNetwork{false, ""};

// A folder that is a space to these, and a writer who makes files.
struct Place {
    Place() { REQUIRE(mkdir(space.c_str(), 0700) == 0); }

    std::string file() const { return space + "/recent"; }
    void put(const BlockId &id) const {
        mkdir((space + "/" + ucm::block_folder(id)).c_str(), 0700);
        std::ofstream(path(id)) << std::string(4096, 'x');
    }
    std::string path(const BlockId &id) const { return space + "/" + ucm::block_name(id); }

    TempDir directory;
    const std::string space = directory.path() + "/space";
    Access access;
    WriterFolder writer{directory.path(), access};
    Maker maker{writer, access};
};

void flush(Recent &ring, const Place &place) {
    while (!ring.flush(&place.maker)) usleep(1000);
}

void tell(Recent &ring, const Place &place, std::vector<BlockId> ids,
          Change::What what = Change::kPublished) {
    for (const BlockId &id : ids) ring.note(id, what);
    flush(ring, place);
}

std::vector<BlockId> heard(Recent &ring, News expected = News::kSame) {
    std::vector<Change> changes;
    REQUIRE(ring.read(changes) == expected);
    std::vector<BlockId> ids;
    for (const Change &change : changes) ids.push_back(change.id);
    return ids;
}

void spoil(const std::string &path, off_t offset) {
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    char byte = 0;
    REQUIRE(pread(fd, &byte, 1, offset) == 1);
    byte = char(byte ^ 1);
    REQUIRE(pwrite(fd, &byte, 1, offset) == 1);
    close(fd);
}

// A ring, and one who has heard all of it so far.
struct Pair {
    explicit Pair(uint32_t slots = kSlots, bool local = true)
        : ours(place.space, local, slots), theirs(place.space, local, slots) {
        REQUIRE(ours.make(place.maker));
        heard(theirs, News::kLost);
    }
    Place place;
    Recent ours, theirs;
};

void walk(BlockIndex &index, const Place &place) {
    static const std::atomic<bool> stop{false};
    static Host host;
    index.hear();
    while (index.walk(stop, &place.maker, ucm::Logger(host.c(), "test")) == 0) {
    }
}

struct Indexes {
    explicit Indexes(const ucm::FileSystem &file_system = kLocal, uint32_t slots = 4096)
        : ours(place.space, file_system, slots), theirs(place.space, file_system, slots) {
        walk(ours, place);
        walk(theirs, place);
        REQUIRE(theirs.listed() == BlockIndex::kFolders);
    }
    void publish(const BlockId &id) {
        place.put(id);
        ours.published(id, true, &place.maker);
        ours.tell(&place.maker);
    }
    void remove(const BlockId &id) {
        REQUIRE(unlink(place.path(id).c_str()) == 0);
        ours.removed(id, &place.maker);
    }
    Place place;
    BlockIndex ours, theirs;
};

Answer asked(BlockIndex &index, const BlockId &id) {
    index.hear();
    return index.find(id);
}

// Over a network it is the thread in the background that hears.
Answer asked(BlockIndex &index, const BlockId &id, const Place &place) {
    walk(index, place);
    return index.find(id);
}

Options in(const TempDir &directory) {
    return {{"storage_backends", directory.path()}, {"posix_data_trans_concurrency", "2"}};
}

void await_index(Stack &stack) {
    while (stack.metrics().at("index_listed") < 100) {
        stack.lookup({make_id(0)});
        usleep(1000);
    }
}

std::string space_of(const TempDir &directory) {
    for (const std::string &path : directory.files())
        if (path.size() > 6 && path.compare(path.size() - 6, 6, "/space") == 0)
            return path.substr(0, path.size() - 6);
    return "";
}

}  // namespace

TEST_CASE("what one process tells the others hear once, in order, and it does not", "[ring]") {
    Pair pair(kSlots, GENERATE(true, false));
    heard(pair.ours, News::kLost);
    const auto ids = make_ids(100);
    std::vector<BlockId> all;
    for (size_t i = 0; i < ids.size(); i += 3) {
        const std::vector<BlockId> some(ids.begin() + long(i),
                                        ids.begin() + long(std::min(i + 3, ids.size())));
        tell(pair.ours, pair.place, some);
        REQUIRE(heard(pair.theirs) == some);
        REQUIRE(heard(pair.theirs).empty());
        REQUIRE(heard(pair.ours).empty());
    }
    tell(pair.theirs, pair.place, {ids[5]}, Change::kRemoved);
    REQUIRE(heard(pair.ours) == std::vector<BlockId>{ids[5]});
    struct stat st{};
    REQUIRE(stat(pair.place.file().c_str(), &st) == 0);
    REQUIRE(st.st_size == 4096 + kSlots * 32);
}

TEST_CASE("who is as far behind as there are slots has missed something, and goes on", "[ring]") {
    Pair pair;
    const auto ids = make_ids(100);
    const size_t n = GENERATE(6, 7, 8, 9, 40);
    for (size_t i = 0; i < n; i++) tell(pair.ours, pair.place, {ids[i]});
    REQUIRE(heard(pair.theirs, n < kSlots ? News::kSame : News::kLost).size() ==
            (n < kSlots ? n : 0));
    tell(pair.ours, pair.place, {ids[99]});
    REQUIRE(heard(pair.theirs) == std::vector<BlockId>{ids[99]});
}

TEST_CASE("a torn header says nothing until the next writer replaces the file", "[ring]") {
    Pair pair;
    spoil(pair.place.file(), GENERATE(0, 8, 12, 16, 32, 40, 56));
    REQUIRE(heard(pair.theirs).empty());
    Recent late(pair.place.space, true, kSlots);
    heard(late, News::kGone);
    tell(pair.ours, pair.place, make_ids(2));
    heard(pair.theirs, News::kLost);
    heard(late, News::kLost);
    tell(pair.ours, pair.place, {make_id(7)});
    REQUIRE(heard(pair.theirs) == std::vector<BlockId>{make_id(7)});
    REQUIRE(heard(late) == std::vector<BlockId>{make_id(7)});
}

TEST_CASE("a torn record is no news, but something was missed", "[ring]") {
    Pair pair;
    tell(pair.ours, pair.place, {make_id(1)});
    REQUIRE(heard(pair.theirs).size() == 1);
    tell(pair.ours, pair.place, make_ids(3, 2));
    spoil(pair.place.file(), 4096 + 32 * GENERATE(0, 1, 2, 3) + GENERATE(0, 8, 24, 28));
    heard(pair.theirs, News::kLost);
    tell(pair.ours, pair.place, {make_id(7)});
    REQUIRE(heard(pair.theirs) == std::vector<BlockId>{make_id(7)});
}

TEST_CASE("a file that is replaced, deleted or an older copy is noticed", "[ring]") {
    Pair pair(kSlots, GENERATE(true, false));
    const std::string file = pair.place.file(), copy = pair.place.directory.path() + "/copy";
    tell(pair.ours, pair.place, {make_id(1)});
    const std::string before = [&] {
        std::ifstream in(file, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(in), {});
    }();
    tell(pair.ours, pair.place, {make_id(2)});
    REQUIRE(heard(pair.theirs).size() == 2);
    SECTION("deleted") {
        REQUIRE(unlink(file.c_str()) == 0);
        heard(pair.theirs, News::kGone);
        heard(pair.theirs, News::kGone);
    }
    SECTION("replaced by an older copy") {
        std::ofstream(copy, std::ios::binary) << before;
        REQUIRE(rename(copy.c_str(), file.c_str()) == 0);
    }
    SECTION("an older copy in place") {
        std::ofstream(file, std::ios::binary) << before;
        heard(pair.theirs, News::kLost);
        tell(pair.ours, pair.place, {make_id(3)});
        REQUIRE(heard(pair.theirs) == std::vector<BlockId>{make_id(3)});
        return;
    }
    SECTION("cut") {
        REQUIRE(truncate(file.c_str(), 0) == 0);
        REQUIRE(heard(pair.theirs).empty());
    }
    tell(pair.ours, pair.place, {make_id(4)});
    heard(pair.theirs, News::kLost);
    tell(pair.ours, pair.place, {make_id(5)});
    REQUIRE(heard(pair.theirs) == std::vector<BlockId>{make_id(5)});
}

TEST_CASE("a ring of a later version is left alone", "[ring]") {
    Place place;
    Recent ring(place.space, true, kSlots);
    const auto build = [&](uint32_t version) {
        std::string page(4096 + kSlots * 32, '\0');
        page.replace(0, 8, "UCMRECNT");
        page[8] = char(version);
        std::ofstream(place.file(), std::ios::binary) << page;
    };
    build(1);  // its check is wrong, so it is only torn
    tell(ring, place, {make_id(1)});
    heard(ring, News::kLost);
}

TEST_CASE("where another holds the lock nobody waits, and nothing is lost", "[ring]") {
    Pair pair(kSlots, GENERATE(true, false));
    const int fd = open(pair.place.file().c_str(), O_RDWR | O_CLOEXEC);
    struct flock lock{};
    lock.l_type = F_WRLCK;
    REQUIRE(fcntl(fd, F_OFD_SETLK, &lock) == 0);
    pair.ours.note(make_id(1), Change::kPublished);
    REQUIRE_FALSE(pair.ours.flush(&pair.place.maker));
    pair.ours.note(make_id(2), Change::kPublished);
    REQUIRE_FALSE(pair.ours.flush(&pair.place.maker));
    REQUIRE(heard(pair.theirs).empty());
    close(fd);
    flush(pair.ours, pair.place);
    REQUIRE(heard(pair.theirs) == make_ids(2, 1));
}

TEST_CASE("more than can wait makes all others look again", "[ring]") {
    Pair pair(65536);
    const int fd = open(pair.place.file().c_str(), O_RDWR | O_CLOEXEC);
    struct flock lock{};
    lock.l_type = F_WRLCK;
    REQUIRE(fcntl(fd, F_OFD_SETLK, &lock) == 0);
    for (const BlockId &id : make_ids(5000)) pair.ours.note(id, Change::kPublished);
    REQUIRE_FALSE(pair.ours.flush(&pair.place.maker));
    close(fd);
    flush(pair.ours, pair.place);
    heard(pair.theirs, News::kLost);
}

TEST_CASE("who cannot make files makes none, and needs none", "[ring]") {
    Place place;
    Recent ring(place.space, true, kSlots);
    ring.note(make_id(1), Change::kRemoved);
    REQUIRE(ring.flush(nullptr));
    heard(ring, News::kGone);
    REQUIRE(access(place.file().c_str(), F_OK) != 0);
}

TEST_CASE("a space that is gone takes no ring", "[ring]") {
    Place place;
    Recent ring(place.space, true, kSlots);
    REQUIRE(rmdir(place.space.c_str()) == 0);
    ring.note(make_id(1), Change::kPublished);
    REQUIRE(ring.flush(&place.maker));
    heard(ring, News::kGone);
    for (const std::string &path : place.directory.files())
        REQUIRE(path.find("recent") == std::string::npos);
}

TEST_CASE("many append at once, and each is heard in its order", "[ring][threads]") {
    constexpr size_t kWriters = 4, kEach = kSanitizer ? 100 : 400;
    Place place;
    Recent reader(place.space, true);
    REQUIRE(reader.make(place.maker));
    heard(reader, News::kLost);
    std::atomic<size_t> running{kWriters};
    std::vector<std::thread> threads;
    for (size_t w = 0; w < kWriters; w++)
        threads.emplace_back([&, w] {
            WriterFolder writer(place.directory.path(), Access());
            const Maker maker{writer, place.access};
            Recent ring(place.space, true);
            for (size_t i = 0; i < kEach; i++) {
                ring.note(make_id(w * 10000 + i), Change::kPublished);
                while (!ring.flush(&maker)) std::this_thread::yield();
            }
            running--;
        });
    std::vector<Change> changes;
    bool whole = true;
    for (bool last = false; !last;) {
        last = running == 0;
        whole = reader.read(changes) == News::kSame && whole;
    }
    for (auto &thread : threads) thread.join();
    REQUIRE(whole);
    REQUIRE(changes.size() == kWriters * kEach);
    std::vector<size_t> next(kWriters, 0);
    for (const Change &change : changes) {
        size_t w = 0;
        while (w < kWriters && !(change.id == make_id(w * 10000 + next[w]))) w++;
        REQUIRE(w < kWriters);
        next[w]++;
    }
}

TEST_CASE("a table of hashes holds what a set would, in little memory", "[index]") {
    std::mt19937_64 random(3);
    HashTable table;
    std::set<uint64_t> set;
    for (int i = 0; i < 20000; i++) {
        // Few, so that they meet; and crowded, so that runs go around the end.
        const uint64_t hash = 1 + (random() % 500) * (random() % 2 ? 1 : 0xffffffffffffff);
        if (random() % 3 > 0)
            REQUIRE(table.insert(hash) == set.insert(hash).second);
        else
            REQUIRE(table.erase(hash) == (set.erase(hash) > 0));
        REQUIRE(table.size() == set.size());
    }
    for (uint64_t i = 0; i < 500; i++)
        for (const uint64_t hash : {1 + i, 1 + i * 0xffffffffffffff})
            REQUIRE(table.has(hash) == (set.count(hash) > 0));
    HashTable large;
    for (int i = 0; i < 100000; i++) large.insert(random());
    REQUIRE(double(large.bytes()) / 100000 < 13.5);
    HashTable listed;
    listed.reserve(1000);
    for (int i = 0; i < 1000; i++) listed.insert(random());
    REQUIRE(double(listed.bytes()) / 1000 < 11);
}

TEST_CASE("an index is unsure until the folders were listed", "[index]") {
    Place place;
    const auto ids = make_ids(50);
    for (size_t i = 0; i < 25; i++) place.put(ids[i]);
    std::ofstream(place.space + "/" + ucm::block_folder(ids[0]) + "/notes") << "foreign";
    std::ofstream(place.space + "/" + ucm::block_folder(ids[0]) + "/" + ids[30].hex()) << "astray";
    std::ofstream(place.space + "/000000") << "foreign";
    BlockIndex index(place.space, kLocal);
    for (const BlockId &id : ids) REQUIRE(asked(index, id) == Answer::kUnsure);
    REQUIRE(index.look(ids[0]));
    REQUIRE_FALSE(index.look(ids[40]));
    walk(index, place);
    for (size_t i = 0; i < 50; i++)
        REQUIRE(asked(index, ids[i]) == (i < 25 ? Answer::kPresent : Answer::kAbsent));
    REQUIRE(index.blocks() == 25);
    REQUIRE(index.listed() == BlockIndex::kFolders);
}

TEST_CASE("who may make nothing asks the files until a writer has come", "[index]") {
    Place place;
    place.put(make_id(1));
    BlockIndex looker(place.space, kLocal), writer(place.space, kLocal);
    static const std::atomic<bool> stop{false};
    Host host;
    looker.hear();
    looker.walk(stop, nullptr, ucm::Logger(host.c(), "test"));
    REQUIRE(asked(looker, make_id(1)) == Answer::kUnsure);
    place.put(make_id(2));
    writer.published(make_id(2), true, &place.maker);
    writer.tell(&place.maker);
    walk(looker, place);
    REQUIRE(asked(looker, make_id(1)) == Answer::kPresent);
    REQUIRE(asked(looker, make_id(2)) == Answer::kPresent);
}

TEST_CASE("what is published and removed is known here at once, and there when it is asked",
          "[index]") {
    Indexes indexes;
    const BlockId id = make_id(1);
    REQUIRE(asked(indexes.theirs, id) == Answer::kAbsent);
    indexes.publish(id);
    REQUIRE(indexes.ours.find(id) == Answer::kPresent);
    REQUIRE(asked(indexes.theirs, id) == Answer::kPresent);
    indexes.remove(id);
    REQUIRE(indexes.ours.find(id) != Answer::kPresent);
    REQUIRE(asked(indexes.theirs, id) == Answer::kUnsure);
    REQUIRE_FALSE(indexes.theirs.look(id));
    walk(indexes.theirs, indexes.place);
    REQUIRE(asked(indexes.theirs, id) == Answer::kAbsent);
}

TEST_CASE("what is published is told by sixteen, when it is time, or when a transfer ends",
          "[index]") {
    Indexes indexes;
    Maker *maker = &indexes.place.maker;
    const auto ids = make_ids(19);
    for (const BlockId &id : ids) indexes.place.put(id);
    REQUIRE(asked(indexes.theirs, ids[0]) == Answer::kAbsent);
    for (size_t i = 0; i < 15; i++) indexes.ours.published(ids[i], true, maker);
    REQUIRE(indexes.ours.find(ids[0]) == Answer::kPresent);
    REQUIRE(asked(indexes.theirs, ids[0]) == Answer::kAbsent);
    indexes.ours.published(ids[15], true, maker);
    for (size_t i = 0; i < 16; i++) REQUIRE(asked(indexes.theirs, ids[i]) == Answer::kPresent);
    indexes.ours.published(ids[16], true, maker);
    REQUIRE(asked(indexes.theirs, ids[16]) == Answer::kAbsent);
    indexes.ours.tidy(maker);
    REQUIRE(asked(indexes.theirs, ids[16]) == Answer::kPresent);
    indexes.ours.published(ids[17], true, maker);
    indexes.ours.tell(maker);
    REQUIRE(asked(indexes.theirs, ids[17]) == Answer::kPresent);
    indexes.ours.published(ids[18], true, maker);
    indexes.ours.removed(ids[0], maker);  // takes along what waits
    REQUIRE(asked(indexes.theirs, ids[18]) == Answer::kPresent);
}

TEST_CASE("over a network what was done is told a little later", "[index]") {
    Indexes indexes(kNetwork);
    const BlockId id = make_id(1);
    indexes.publish(id);
    REQUIRE(indexes.ours.find(id) == Answer::kPresent);
    indexes.ours.tidy(&indexes.place.maker);
    while (asked(indexes.theirs, id, indexes.place) != Answer::kPresent) usleep(1000);
    indexes.remove(id);
    REQUIRE(indexes.ours.find(id) == Answer::kUnsure);
    while (asked(indexes.theirs, id, indexes.place) == Answer::kPresent) {
        indexes.ours.tidy(&indexes.place.maker);
        usleep(1000);
    }
    REQUIRE_FALSE(indexes.theirs.look(id));
}

TEST_CASE("over a network an index that hears nothing is unsure", "[index]") {
    Indexes indexes(kNetwork);
    const BlockId id = make_id(1);
    REQUIRE(indexes.ours.find(id) == Answer::kAbsent);
    usleep(200000);  // nobody walks, as when the mount hangs
    REQUIRE(indexes.ours.hear());
    indexes.ours.await_news();
    REQUIRE(indexes.ours.find(id) == Answer::kUnsure);
    REQUIRE(asked(indexes.ours, id, indexes.place) == Answer::kAbsent);
}

TEST_CASE("a removal that is told after the block came back does not hide it", "[index]") {
    Indexes indexes;
    const BlockId id = make_id(1);
    indexes.publish(id);
    indexes.place.put(id);  // by a third one, after the removal and before it was told
    indexes.ours.removed(id, &indexes.place.maker);
    for (BlockIndex *index : {&indexes.ours, &indexes.theirs}) {
        REQUIRE(asked(*index, id) == Answer::kUnsure);
        walk(*index, indexes.place);
        REQUIRE(asked(*index, id) == Answer::kPresent);
    }
}

TEST_CASE("a publishing that is told after the block was removed here is not believed", "[index]") {
    Indexes indexes;
    const BlockId id = make_id(1);
    indexes.publish(id);
    REQUIRE(unlink(indexes.place.path(id).c_str()) == 0);
    indexes.theirs.removed(id, &indexes.place.maker);
    REQUIRE(asked(indexes.theirs, id) == Answer::kUnsure);
    walk(indexes.theirs, indexes.place);
    REQUIRE(asked(indexes.theirs, id) == Answer::kAbsent);
}

TEST_CASE("a block that is found to be there is told only by who did not know", "[index]") {
    Indexes indexes;
    Recent ear(indexes.place.space, true, 4096);
    heard(ear, News::kLost);
    const BlockId id = make_id(1);
    indexes.place.put(id);  // by a publisher that was killed before it told
    REQUIRE(asked(indexes.theirs, id) == Answer::kAbsent);
    indexes.ours.published(id, false, &indexes.place.maker);
    indexes.ours.tell(&indexes.place.maker);
    REQUIRE(asked(indexes.theirs, id) == Answer::kPresent);
    REQUIRE(heard(ear).size() == 1);
    indexes.ours.published(id, false, &indexes.place.maker);
    indexes.ours.tell(&indexes.place.maker);
    REQUIRE(heard(ear).empty());
    indexes.ours.published(id, true, &indexes.place.maker);
    indexes.ours.tell(&indexes.place.maker);
    REQUIRE(heard(ear).size() == 1);
}

TEST_CASE("after something was missed the files are asked, and the folders listed again",
          "[index]") {
    Indexes indexes;
    const auto ids = make_ids(3);
    indexes.publish(ids[0]);
    indexes.publish(ids[1]);
    REQUIRE(asked(indexes.theirs, ids[0]) == Answer::kPresent);
    REQUIRE(unlink(indexes.place.path(ids[0]).c_str()) == 0);  // by a foreign hand
    indexes.place.put(ids[2]);
    REQUIRE(asked(indexes.theirs, ids[0]) == Answer::kPresent);
    REQUIRE(asked(indexes.theirs, ids[2]) == Answer::kAbsent);
    REQUIRE(unlink(indexes.place.file().c_str()) == 0);
    for (const BlockId &id : ids) REQUIRE(asked(indexes.theirs, id) == Answer::kUnsure);
    walk(indexes.theirs, indexes.place);
    REQUIRE(asked(indexes.theirs, ids[0]) == Answer::kAbsent);
    REQUIRE(asked(indexes.theirs, ids[1]) == Answer::kPresent);
    REQUIRE(asked(indexes.theirs, ids[2]) == Answer::kPresent);
}

TEST_CASE("a load that finds no file heals the index", "[index]") {
    Indexes indexes;
    const BlockId id = make_id(1);
    indexes.publish(id);
    REQUIRE(unlink(indexes.place.path(id).c_str()) == 0);
    REQUIRE(indexes.ours.find(id) == Answer::kPresent);
    indexes.ours.missed(id);
    REQUIRE_FALSE(indexes.ours.look(id));
    walk(indexes.ours, indexes.place);
    REQUIRE(indexes.ours.find(id) == Answer::kAbsent);
}

TEST_CASE("where locks do not reach the others there is no index", "[index]") {
    Place place;
    BlockIndex index(place.space, {false, "nolock"});
    Host host;
    static const std::atomic<bool> stop{false};
    index.hear();
    index.walk(stop, &place.maker, ucm::Logger(host.c(), "test"));
    index.published(make_id(1), true, &place.maker);
    REQUIRE(asked(index, make_id(1)) == Answer::kUnsure);
    REQUIRE(access(place.file().c_str(), F_OK) != 0);
    REQUIRE(host.logged("'nolock'"));
}

TEST_CASE("a file that is there is never said to be absent, however often it is doubted",
          "[index][threads]") {
    Indexes indexes(kLocal, 64);
    BlockIndex &index = indexes.ours;
    const BlockId id = make_id(1);
    indexes.place.put(id);
    index.published(id, true, &indexes.place.maker);
    std::atomic<bool> stop{false};
    std::thread doubter([&] {
        while (!stop) index.missed(id);
    });
    std::thread walker([&] {
        while (!stop) walk(index, indexes.place);
    });
    int absent = 0;
    for (int i = 0; i < (kSanitizer ? 30000 : 300000); i++)
        absent += index.find(id) == Answer::kAbsent;
    stop = true;
    doubter.join();
    walker.join();
    CHECK(absent == 0);
}

TEST_CASE("whatever happens at once, in the end the index is what the folders hold",
          "[index][threads]") {
    constexpr uint64_t kBlocks = 64, kTurns = kSanitizer ? 300 : 1500;
    Indexes indexes(kLocal, 64);  // small, so that it is lapped
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    std::vector<std::unique_ptr<std::mutex>> one_at_a_time;
    for (uint64_t i = 0; i < kBlocks; i++) one_at_a_time.push_back(std::make_unique<std::mutex>());
    for (BlockIndex *index : {&indexes.ours, &indexes.theirs})
        threads.emplace_back([&, index] {
            std::mt19937_64 random(uint64_t(index == &indexes.ours));
            for (uint64_t i = 0; i < kTurns; i++) {
                const uint64_t number = random() % kBlocks;
                const BlockId id = make_id(number);
                std::lock_guard<std::mutex> hold(*one_at_a_time[number]);
                if (access(indexes.place.path(id).c_str(), F_OK) != 0) {
                    indexes.place.put(id);
                    index->published(id, true, &indexes.place.maker);
                    if (asked(*index, id) == Answer::kAbsent) abort();
                } else {
                    unlink(indexes.place.path(id).c_str());
                    index->removed(id, &indexes.place.maker);
                }
            }
        });
    for (BlockIndex *index : {&indexes.ours, &indexes.theirs})
        for (int k = 0; k < 2; k++)
            threads.emplace_back([&, index, k] {
                while (!stop) {
                    if (k == 0) walk(*index, indexes.place);
                    for (const BlockId &id : make_ids(kBlocks))
                        if (asked(*index, id) == Answer::kUnsure) index->look(id);
                    index->tidy(&indexes.place.maker);
                }
            });
    threads[0].join();
    threads[1].join();
    stop = true;
    for (size_t i = 2; i < threads.size(); i++) threads[i].join();
    for (BlockIndex *index : {&indexes.ours, &indexes.theirs}) index->tidy(&indexes.place.maker);
    for (const bool missed : {false, true}) {
        if (missed) REQUIRE(unlink(indexes.place.file().c_str()) == 0);
        for (BlockIndex *index : {&indexes.ours, &indexes.theirs}) {
            walk(*index, indexes.place);
            for (const BlockId &id : make_ids(kBlocks)) {
                const bool there = access(indexes.place.path(id).c_str(), F_OK) == 0;
                const Answer answer = asked(*index, id);
                if (there) REQUIRE(answer != Answer::kAbsent);
                if (missed) REQUIRE((answer == Answer::kPresent) == there);
            }
        }
    }
}

TEST_CASE("a warm lookup of any length is a handful of system calls", "[index][posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {100}});
    const auto ids = make_ids(1000), others = make_ids(1000, 5000);
    REQUIRE(all_ok(stack.dump(ids)));
    await_index(stack);
    const uint64_t before = stack.metrics().at("lookup_stats_total");
    const int32_t mode =
        GENERATE(as<int32_t>{}, UCM_LOOKUP_ALL, UCM_LOOKUP_PREFIX, UCM_LOOKUP_LAST);
    calls = 0;
    REQUIRE(stack.hits(ids, mode) == 1000);
    REQUIRE(calls <= 4);
    calls = 0;
    REQUIRE(stack.hits(others, mode) == 0);
    REQUIRE(calls <= 4);
    REQUIRE(stack.metrics().at("lookup_stats_total") - before <= 1);
    REQUIRE(stack.metrics().at("index_blocks") == 1000);
}

TEST_CASE("a publisher that was killed before it told is found by a prefix lookup",
          "[index][posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {100}});
    const auto ids = make_ids(4);
    REQUIRE(all_ok(stack.dump(ids)));
    await_index(stack);
    const BlockId late = make_id(9);
    const std::string space = space_of(directory);
    mkdir((space + "/" + ucm::block_folder(late)).c_str(), 0700);
    REQUIRE(link((space + "/" + ucm::block_name(ids[0])).c_str(),
                 (space + "/" + ucm::block_name(late)).c_str()) == 0);
    REQUIRE(stack.hits({ids[0], late, ids[1], ids[2]}, UCM_LOOKUP_PREFIX) == 4);
    REQUIRE(stack.hits({late}, UCM_LOOKUP_ALL) == 1);
}

TEST_CASE("a reader with a warm index hears of a store in another process", "[index][posix]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {100}});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    BlockIndex other(space_of(directory), kLocal);
    static const std::atomic<bool> stop{false};
    other.hear();
    while (other.walk(stop, nullptr, ucm::Logger(nullptr, "test")) == 0) {
    }
    REQUIRE(asked(other, ids[0]) == Answer::kPresent);
    REQUIRE(asked(other, ids[1]) == Answer::kAbsent);
    REQUIRE(all_ok(stack.dump(ids)));
    for (const BlockId &id : ids) REQUIRE(asked(other, id) == Answer::kPresent);
    REQUIRE(stack.remove({ids[0]}) == UCM_OK);
    REQUIRE(asked(other, ids[0]) == Answer::kUnsure);
}

TEST_CASE("a space that is removed beside a reader is empty to it, and fills again",
          "[index][posix]") {
    TempDir directory;
    Stack writer({"Posix"}, in(directory), Geometry{1, {100}});
    Geometry looking{1, {100}};
    looking.lookup_only = true;
    looking.lookup_layout = GENERATE(false, true);
    Stack reader({"Posix"}, in(directory), looking);
    const auto ids = make_ids(8);
    REQUIRE(all_ok(writer.dump(ids)));
    await_index(writer);
    while (reader.hits(ids, UCM_LOOKUP_ALL) != 8) usleep(1000);
    const std::string space = space_of(directory), trash = directory.path() + "/.ucm/trash";
    mkdir(trash.c_str(), 0700);
    REQUIRE(rename(space.c_str(), (trash + "/default.x.0").c_str()) == 0);
    REQUIRE(reader.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(writer.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(all_ok(writer.dump({ids[0], ids[1]})));
    REQUIRE(writer.hits(ids, UCM_LOOKUP_ALL) == 2);
    while (reader.hits(ids, UCM_LOOKUP_ALL) != 2) usleep(1000);
    ucm::sweep_trash(directory.path(), 0);
    REQUIRE(access((trash + "/default.x.0").c_str(), F_OK) != 0);
    await_index(writer);
    REQUIRE(writer.loads_back({ids[0], ids[1]}));
}
