// SPDX-License-Identifier: MIT
//
// Spaces in a storage directory: made by many at once, damaged, removed beside a running writer.
#include "space.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "harness.h"

using namespace ucm_test;
using ucm::Access;
using ucm::Space;
using ucm::SpaceIdentity;
using ucm::WriterFolder;

namespace {

const SpaceIdentity kIdentity{"default", "llama", "bf16:4096x2", 2, 8192, "ucmz.3"};
const std::string kHex = "ee160f82260e42d5003e234cd816368d";

std::string read_all(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string &path, const std::string &bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

bool exists(const std::string &path) {
    struct stat st{};
    return lstat(path.c_str(), &st) == 0;
}

// Of the only space there, as a path.
std::string only_space(const TempDir &directory) {
    std::string found;
    for (const std::string &path : directory.files())
        if (path.size() > 6 && path.compare(path.size() - 6, 6, "/space") == 0) {
            REQUIRE(found.empty());
            found = path.substr(0, path.size() - 6);
        }
    REQUIRE_FALSE(found.empty());
    return found;
}

Options in(const TempDir &directory) {
    return {{"storage_backends", directory.path()}, {"posix_data_trans_concurrency", "2"}};
}

std::string to_trash(const TempDir &directory, const std::string &space) {
    const std::string trash = directory.path() + "/.ucm/trash";
    mkdir(trash.c_str(), 0700);
    const std::string target = trash + "/default." + space.substr(space.size() - 32) + ".0";
    REQUIRE(rename(space.c_str(), target.c_str()) == 0);
    return target;
}

}  // namespace

TEST_CASE("the name of a space is the hash of its lines, and stays", "[space]") {
    REQUIRE(kIdentity.lines() ==
            "namespace=default\nmodel=llama\nfingerprint=bf16:4096x2\nshards_per_block=2\n"
            "raw_capacity=8192\nencoding=ucmz.3\n");
    REQUIRE(Space("/d", kIdentity).path() == "/d/default/" + kHex);
    SpaceIdentity plain = kIdentity;
    plain.model = plain.encoding = "";
    REQUIRE(plain.lines() ==
            "namespace=default\nfingerprint=bf16:4096x2\nshards_per_block=2\nraw_capacity=8192\n");
}

TEST_CASE("a name that would leave its folder or its line is refused", "[space]") {
    for (const char *bad : {"", ".", "..", ".ucm", "-x", "a/b", "a b", "\xc3\xa9"}) {
        SpaceIdentity identity = kIdentity;
        identity.label = bad;
        REQUIRE_THROWS_WITH(identity.check(), Catch::Contains("namespace"));
    }
    SpaceIdentity identity = kIdentity;
    identity.model = "a\nraw_capacity=1";
    REQUIRE_THROWS_WITH(identity.check(), Catch::Contains("model"));
    REQUIRE_NOTHROW(kIdentity.check());
}

TEST_CASE("of many who make one space at once each finds it whole", "[space][threads]") {
    TempDir directory;
    std::atomic<int> ready{0}, whole{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++)
        threads.emplace_back([&] {
            WriterFolder writer(directory.path(), Access());
            const Space space(directory.path(), kIdentity);
            ready++;
            while (ready < 8) std::this_thread::yield();
            try {
                space.ensure(writer, Access(), "test");
                whole += space.there();
            } catch (const ucm::Error &) {
            }
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(whole == 8);
    REQUIRE(directory.files() ==
            std::vector<std::string>{directory.path() + "/default/" + kHex + "/space"});
}

TEST_CASE("a torn or missing manifest is replaced, and the blocks stay", "[space]") {
    TempDir directory;
    WriterFolder writer(directory.path(), Access());
    const Space space(directory.path(), kIdentity);
    space.ensure(writer, Access(), "test");
    const std::string manifest = space.path() + "/space", sound = read_all(manifest);
    write_all(space.path() + "/block", "x");
    const size_t head = sound.find("\n\n") + 2;
    for (size_t bytes = 0; bytes < head; bytes++) {
        write_all(manifest, sound.substr(0, bytes));
        REQUIRE_FALSE(space.there());
        space.ensure(writer, Access(), "test");
        REQUIRE(read_all(manifest).compare(0, head, sound, 0, head) == 0);
    }
    REQUIRE(unlink(manifest.c_str()) == 0);
    space.ensure(writer, Access(), "test");
    REQUIRE(space.there());
    REQUIRE(exists(space.path() + "/block"));
}

TEST_CASE("another's manifest is refused, and both are named", "[space]") {
    TempDir directory;
    WriterFolder writer(directory.path(), Access());
    const Space space(directory.path(), kIdentity);
    space.ensure(writer, Access(), "test");
    SpaceIdentity other = kIdentity;
    other.model = "qwen";
    write_all(space.path() + "/space", "ucm space 1\n" + other.lines() + "\n");
    REQUIRE_THROWS_WITH(space.there(), Catch::Contains("model 'qwen' there and 'llama' here"));
    REQUIRE_THROWS_AS(space.ensure(writer, Access(), "test"), ucm::Error);
    write_all(space.path() + "/space", "ucm space 2\nwhatever\n\n");
    REQUIRE_THROWS_WITH(space.there(), Catch::Contains("ucm space 2"));
}

TEST_CASE("a writer's folder goes with what was on its way to its place", "[space]") {
    TempDir directory;
    {
        WriterFolder writer(directory.path(), Access());
        mkdir((writer.path() + "/space.7").c_str(), 0700);
        write_all(writer.path() + "/space.7/space", "ucm");
        mkdir((writer.path() + "/folder.8").c_str(), 0700);
    }
    REQUIRE(directory.files().empty());
    REQUIRE(rmdir((directory.path() + "/.ucm/writers").c_str()) == 0);
}

TEST_CASE("the trash is emptied of blocks, of nothing else, and not at once", "[space]") {
    TempDir directory, elsewhere;
    write_all(elsewhere.path() + "/" + std::string(32, 'a'), "precious");
    {
        Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
        REQUIRE(all_ok(stack.dump(make_ids(3))));
    }
    const std::string gone = to_trash(directory, only_space(directory));
    const auto before = directory.files();
    ucm::sweep_trash(directory.path());
    REQUIRE(directory.files() == before);
    REQUIRE(symlink(elsewhere.path().c_str(), (gone + "/abc").c_str()) == 0);
    write_all(gone + "/notes", "mine");
    ucm::sweep_trash(directory.path(), 0);
    REQUIRE(directory.files() == std::vector<std::string>{directory.path() + "/.ucm/format",
                                                          directory.path() + "/.ucm/ledger",
                                                          gone + "/notes"});
    REQUIRE(elsewhere.files().size() == 1);
    unlink((gone + "/notes").c_str());
    unlink((gone + "/abc").c_str());
    ucm::sweep_trash(directory.path(), 0);
    REQUIRE_FALSE(exists(gone));
}

TEST_CASE("a running writer makes its space again after it was removed", "[space]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{2, {5000}});
    const auto ids = make_ids(4);
    REQUIRE(all_ok(stack.dump({ids[0], ids[1]})));
    Move half(stack, {{ids[2], 0}});
    REQUIRE(half.dump() == UCM_OK);
    REQUIRE(half.wait() == UCM_OK);
    to_trash(directory, only_space(directory));
    if (GENERATE(false, true)) REQUIRE(rmdir((directory.path() + "/default").c_str()) == 0);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(all_are(stack.load({ids[0]}), UCM_NOT_FOUND));
    Move rest(stack, {{ids[2], 1}});
    REQUIRE(rest.dump() == UCM_OK);
    REQUIRE(rest.wait() == UCM_OK);
    REQUIRE(all_ok(stack.dump({ids[0], ids[3]})));
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, false, true, true}));
    REQUIRE(stack.loads_back({ids[0], ids[2], ids[3]}));
}

TEST_CASE("a directory that is not what it was is not filled", "[space]") {
    TempDir directory;
    Stack stack({"Posix"}, in(directory), Geometry{1, {5000}});
    const std::string format = directory.path() + "/.ucm/format", mark = read_all(format);
    const std::string space = only_space(directory);
    std::string other = mark;
    other[13] = other[13] == '1' ? '2' : '1';
    write_all(format, other);
    REQUIRE(unlink((space + "/space").c_str()) == 0);
    REQUIRE(rmdir(space.c_str()) == 0);
    const auto results = stack.dump({make_id(1)});
    REQUIRE(results[0].status != UCM_OK);
    REQUIRE(stack.host().logged("is not the directory that was opened"));
    REQUIRE_FALSE(exists(space));
    write_all(format, mark);
    REQUIRE(all_ok(stack.dump({make_id(1)})));
    REQUIRE(stack.loads_back({make_id(1)}));
}

TEST_CASE("blocks of another model, namespace, layout or encoding are missed", "[space]") {
    TempDir directory;
    Geometry mine{2, {5000}};
    const auto ids = make_ids(2);
    {
        Stack stack({"Posix"}, in(directory), mine);
        REQUIRE(all_ok(stack.dump(ids)));
    }
    Options options = in(directory);
    Geometry other = mine;
    switch (GENERATE(0, 1, 2, 3, 4, 5)) {
        case 0:
            options["model"] = "other";
            break;
        case 1:
            options["namespace"] = "other";
            break;
        case 2:
            options["fingerprint"] = "other";
            break;
        case 3:
            other.shards = 1;
            break;
        case 4:
            other.segments = {6000};
            break;
        default:
            other.encoding = "x.1";
    }
    Stack stack({"Posix"}, options, other);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    Stack again({"Posix"}, in(directory), mine);
    REQUIRE(again.loads_back(ids));
}

TEST_CASE("who looks with a layout finds what its writer stored", "[space]") {
    TempDir directory;
    Geometry mine{2, {5000}}, other{1, {5000}};
    const auto ids = make_ids(2);
    {
        Stack one({"Posix"}, in(directory), mine), two({"Posix"}, in(directory), other);
        REQUIRE(all_ok(one.dump({ids[0]})));
        REQUIRE(all_ok(two.dump({ids[1]})));
    }
    mine.lookup_only = other.lookup_only = mine.lookup_layout = other.lookup_layout = true;
    Stack one({"Posix"}, in(directory), mine), two({"Posix"}, in(directory), other);
    REQUIRE(one.lookup(ids) == std::vector<bool>({true, false}));
    REQUIRE(two.lookup(ids) == std::vector<bool>({false, true}));
    other.lookup_layout = false;
    Stack none({"Posix"}, in(directory), other);
    REQUIRE(none.hits(ids, UCM_LOOKUP_ALL) == 0);
    REQUIRE(none.host().logged("give the sizes"));
}
