// SPDX-License-Identifier: MIT
//
// Devices of Cache: slots to and from host memory, and CUDA memory over a stand-in for its driver.
#include "../../plugins/cache/device.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "../../plugins/cache/host_copy.h"
#include "fake_cuda.h"
#include "harness.h"

using namespace ucm_test;
using ucm::cache::Device;
using ucm::cache::make_device;
using ucm::cache::Piece;

namespace {

using Bytes = std::vector<uint8_t>;

Bytes bytes_of(uint64_t number, size_t n) {
    return contents(make_id(number), 0, n);
}

struct DeviceLayout : Layout {
    DeviceLayout(std::vector<uint64_t> segments, int32_t memory, int32_t device = -1)
        : Layout(Geometry{1, std::move(segments)}) {
        c.memory = memory;
        c.device = device;
    }
};

std::string refusal(const ucm_layout &layout, ucm_status status) {
    const Host host;
    try {
        make_device(layout, ucm::Logger(host.c(), "Cache"));
    } catch (const ucm::Error &error) {
        REQUIRE(error.status() == status);
        return error.what();
    }
    FAIL("it was opened");
    return "";
}

#define NEEDED(name, ...) CUresult (*name)(__VA_ARGS__);
// The stand-in as the engine of the test uses it: a context, memory, streams and events.
struct Cuda {
    UCM_CUDA_FUNCTIONS(NEEDED)
    FAKE_CUDA_FUNCTIONS(NEEDED)
#undef NEEDED
    const fake_cuda *control;
    CUcontext context = nullptr;

    Cuda() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        const auto entry = library ? dlsym(library, "fake_cuda_control") : nullptr;
        if (!entry) throw ucm::Error(UCM_INVALID, "run it with meson test, which sets its driver");
        control = reinterpret_cast<const fake_cuda *(*)()>(entry)();
#define FIND(name, ...) name = reinterpret_cast<decltype(name)>(dlsym(library, #name));
        UCM_CUDA_FUNCTIONS(FIND)
        FAKE_CUDA_FUNCTIONS(FIND)
#undef FIND
        control->reset();
        cuInit(0);
        cuDevicePrimaryCtxRetain(&context, 0);
        cuCtxPushCurrent_v2(context);
    }
    ~Cuda() { control->reset(); }

    // What the stand-in found wrong; "" when all is well.
    std::string wrong() const { return control->violations() ? control->violation(0) : ""; }
    void fail(const char *function, int result, size_t times = 1, size_t skip = 0) const {
        control->fail(function, skip, times, result);
    }
    Bytes peek(CUdeviceptr from, size_t n) const {
        Bytes bytes(n);
        control->peek(bytes.data(), from, n);
        return bytes;
    }
    void poke(CUdeviceptr to, const Bytes &bytes) const {
        control->poke(to, bytes.data(), bytes.size());
    }
    CUstream stream() const {
        CUstream made = nullptr;
        cuStreamCreate(&made, 1);
        return made;
    }
    CUevent record(CUstream stream) const {
        CUevent made = nullptr;
        cuEventCreate(&made, 0);
        if (stream) cuEventRecord(made, stream);
        return made;
    }
};

uint64_t handle(CUevent event) {
    return uint64_t(reinterpret_cast<uintptr_t>(event));
}

// A device with slots, and as many rows of device memory.
struct Rig {
    static constexpr size_t kRows = 8;
    Cuda cuda;
    Host host;
    DeviceLayout layout{{3000, 100}, UCM_MEMORY_CUDA, 0};
    ucm::Mapping memory{kRows * 4096};
    std::unique_ptr<Device> device = open();
    CUdeviceptr rows = 0;
    void *addresses[kRows][2];

    explicit Rig(bool pin = true) {
        cuda.cuMemAlloc_v2(&rows, kRows * 4096);
        for (size_t i = 0; i < kRows; i++)
            for (size_t k = 0; k < 2; k++)
                addresses[i][k] = reinterpret_cast<void *>(uintptr_t(rows + i * 4096 + k * 3500));
        if (pin) device->pin(memory.base(), kRows * 4096);
    }
    std::unique_ptr<Device> open() const {
        return make_device(layout.c, ucm::Logger(host.c(), "Cache"));
    }
    uint8_t *slot(size_t i) const { return memory.base() + i * 4096; }
    CUdeviceptr segment(size_t i, size_t k) const { return rows + i * 4096 + k * 3500; }
    Piece piece(size_t i, uint64_t length = 3100) const { return {slot(i), addresses[i], length}; }
    Bytes in_slot(size_t i, size_t n = 3100) const { return {slot(i), slot(i) + n}; }
    Bytes on_device(size_t i) const {
        Bytes row = cuda.peek(segment(i, 0), 3000);
        const Bytes second = cuda.peek(segment(i, 1), 100);
        row.insert(row.end(), second.begin(), second.end());
        return row;
    }
    void put_on_device(size_t i, const Bytes &bytes) const {
        cuda.poke(segment(i, 0), {bytes.begin(), bytes.begin() + 3000});
        cuda.poke(segment(i, 1), {bytes.begin() + 3000, bytes.end()});
    }
    void put_in_slot(size_t i, const Bytes &bytes) const {
        std::copy(bytes.begin(), bytes.end(), slot(i));
    }
    // Everything but what the test itself made is released.
    bool released() const { return cuda.control->live() == 2 && cuda.control->depth() == 1; }
};

// Cache over device memory: block i, of one shard, to and from row i of it.
struct DeviceStack {
    static constexpr size_t kRows = 16, kBytes = 3000;
    Cuda cuda;
    std::shared_ptr<Memory> memory = std::make_shared<Memory>();
    Geometry geometry{1, {kBytes}};
    std::unique_ptr<Stack> stack;
    CUdeviceptr rows = 0;
    void *addresses[kRows];
    const CUstream engine = cuda.stream();
    std::vector<std::unique_ptr<Move>> moves;  // whose ends wait for the engine

    explicit DeviceStack(const std::vector<BlockId> &below) {
        REQUIRE(all_ok(Stack({"Memory"}, {}, geometry, memory).dump(below)));
        cuda.cuMemAlloc_v2(&rows, kRows * 4096);
        for (size_t i = 0; i < kRows; i++)
            addresses[i] = reinterpret_cast<void *>(uintptr_t(row(i)));
        geometry.memory = UCM_MEMORY_CUDA;
        geometry.device = 0;
        const std::string room = std::to_string(64 * 4096 / 1073741824.0);
        stack =
            std::make_unique<Stack>(std::vector<std::string>{"Cache", "Memory"},
                                    Options{{"cache_buffer_capacity_gb", room}}, geometry, memory);
    }
    ~DeviceStack() { cuda.control->stall(engine, 0); }

    CUdeviceptr row(size_t i) const { return rows + i * 4096; }
    Bytes expected(size_t i) const { return contents(make_id(i), 0, kBytes); }
    // An event that is late while the engine's stream is stalled. Before it the row gets `bytes`.
    CUevent computed(size_t i, const Bytes &bytes) const {
        cuda.control->compute(engine, row(i), bytes.data(), bytes.size());
        return cuda.record(engine);
    }
    Move &move(size_t i, CUevent event = nullptr) {
        moves.push_back(std::make_unique<Move>(*stack, std::vector<Shard>{{make_id(i), 0}}));
        ucm_transfer &transfer = moves.back()->transfer;
        transfer.addresses = &addresses[i];
        transfer.flags = event ? uint64_t(UCM_TRANSFER_EVENT) : 0;
        transfer.event = handle(event);
        return *moves.back();
    }
    Move &dump(size_t i, CUevent event = nullptr) {
        if (!event) cuda.poke(row(i), expected(i));
        Move &made = move(i, event);
        REQUIRE(made.dump() == UCM_OK);
        return made;
    }
    Move &load(size_t i, CUevent event = nullptr) {
        Move &made = move(i, event);
        REQUIRE(made.load() == UCM_OK);
        return made;
    }
};

}  // namespace

TEST_CASE("copies are exact at every size and alignment, around the caches or not", "[device]") {
    const size_t sizes[] = {0,     1,     63,    4097,  24575, 24576,  24577,  24639,
                            25087, 25088, 25089, 65535, 70001, 131135, 1 << 20};
    Bytes target((1 << 20) + 512);
    const Bytes source = bytes_of(1, target.size());
    for (const bool streaming : {false, true})
        for (const size_t size : sizes)
            for (const size_t shift : {0, 1, 15, 63, 64}) {
                std::fill(target.begin(), target.end(), 0xEE);
                ucm::cache::copy_bytes(&target[64 + shift], &source[shift * 3], size, streaming);
                CAPTURE(streaming, size, shift);
                REQUIRE(
                    std::equal(&source[shift * 3], &source[shift * 3] + size, &target[64 + shift]));
                REQUIRE(target[63 + shift] == 0xEE);
                REQUIRE(target[64 + shift + size] == 0xEE);
            }
}

TEST_CASE("every kind of copy around the caches leaves less than 512 bytes", "[device]") {
    const Bytes source = bytes_of(1, 40000);
    alignas(64) static uint8_t target[40000];
    for (const auto stream : ucm::cache::streams())
        for (const size_t size : {0, 63, 511, 512, 513, 1023, 24576, 25087, 39000})
            for (const size_t shift : {0, 1, 31, 64}) {
                std::fill_n(target, sizeof target, uint8_t(0xEE));
                const size_t copied = stream(target, &source[shift], size);
                CAPTURE(size, shift);
                REQUIRE(copied <= size);
                REQUIRE(size - copied < 512);
                REQUIRE(std::equal(target, target + copied, &source[shift]));
                REQUIRE(std::all_of(target + copied, target + sizeof target,
                                    [](uint8_t byte) { return byte == 0xEE; }));
            }
}

TEST_CASE("host memory: a length counts across the segments in order", "[device]") {
    const uint64_t length = GENERATE(0, 1, 2999, 3000, 3001, 3100);
    const DeviceLayout layout({3000, 100}, UCM_MEMORY_HOST);
    const Host host;
    const auto device = make_device(layout.c, ucm::Logger(host.c(), "Cache"));
    Bytes first = bytes_of(1, 3000), second = bytes_of(2, 100), slot(3100, 0xEE);
    void *const row[] = {first.data(), second.data()};
    const Piece piece{slot.data(), row, length};
    REQUIRE(device->gather(&piece, 1, 0) == UCM_OK);
    Bytes expected = first;
    expected.insert(expected.end(), second.begin(), second.end());
    std::fill(expected.begin() + int64_t(length), expected.end(), 0xEE);
    REQUIRE(slot == expected);
    std::fill(first.begin(), first.end(), 0xEE);
    std::fill(second.begin(), second.end(), 0xEE);
    REQUIRE(device->scatter(&piece, 1, 0) == UCM_OK);
    first.insert(first.end(), second.begin(), second.end());
    REQUIRE(first == expected);
}

TEST_CASE("host memory: a large batch is copied whole", "[device]") {
    constexpr size_t kShards = 40, kShard = 65537 * 2;
    const DeviceLayout layout({65537, 65537}, UCM_MEMORY_HOST);
    const Host host;
    const auto device = make_device(layout.c, ucm::Logger(host.c(), "Cache"));
    Bytes caller = bytes_of(1, kShards * kShard), slots(caller.size());
    const Bytes original = caller;
    std::vector<void *> rows;
    for (size_t i = 0; i < 2 * kShards; i++) rows.push_back(&caller[i * 65537]);
    std::vector<Piece> pieces;
    for (size_t i = 0; i < kShards; i++)
        pieces.push_back({&slots[i * kShard], &rows[2 * i], kShard});
    REQUIRE(device->gather(pieces.data(), kShards, 0) == UCM_OK);
    REQUIRE(slots == original);
    std::fill(caller.begin(), caller.end(), 0);
    REQUIRE(device->scatter(pieces.data(), kShards, 0) == UCM_OK);
    REQUIRE(caller == original);
}

TEST_CASE("host memory has no events", "[device]") {
    const DeviceLayout layout({8}, UCM_MEMORY_HOST);
    const Host host;
    const auto device = make_device(layout.c, ucm::Logger(host.c(), "Cache"));
    REQUIRE_FALSE(device->events());
    REQUIRE(device->gather(nullptr, 0, 7) == UCM_UNSUPPORTED);
    REQUIRE(device->scatter(nullptr, 0, 7) == UCM_UNSUPPORTED);
}

TEST_CASE("host memory: a slot may change while it is read, which its reader finds out",
          "[device]") {
    const DeviceLayout layout({4096}, UCM_MEMORY_HOST);
    const Host host;
    const auto device = make_device(layout.c, ucm::Logger(host.c(), "Cache"));
    Bytes slot(4096), zeros(4096), out(4096);
    std::atomic<uint64_t> generation{0};
    std::atomic<bool> stop{false};
    std::thread writer([&] {
        void *const row[] = {zeros.data()};
        const Piece piece{slot.data(), row, 4096};
        while (!stop) {
            generation.fetch_add(1, std::memory_order_acq_rel);
            std::fill(zeros.begin(), zeros.end(), uint8_t(generation.load() / 2));
            device->gather(&piece, 1, 0);
            generation.fetch_add(1, std::memory_order_release);
        }
    });
    void *const row[] = {out.data()};
    const Piece piece{slot.data(), row, 4096};
    int whole = 0, torn = 0;
    for (int i = 0; i < 200000 && whole < 100; i++) {
        const uint64_t before = generation.load(std::memory_order_acquire);
        if (before % 2) continue;
        device->scatter(&piece, 1, 0);
        // Not a fence, which ThreadSanitizer does not know.
        if (generation.fetch_add(0, std::memory_order_acq_rel) != before) continue;
        whole++;
        for (uint8_t byte : out) torn += byte != out[0];
    }
    stop = true;
    writer.join();
    REQUIRE(torn == 0);
}

TEST_CASE("a kind of memory that is not known is refused", "[device]") {
    const DeviceLayout layout({8}, 77);
    REQUIRE(refusal(layout.c, UCM_UNSUPPORTED).find("kind 77") != std::string::npos);
}

TEST_CASE("CUDA: what is gathered comes back when it is scattered", "[device][cuda]") {
    Rig rig;
    REQUIRE(rig.device->events());
    std::vector<Piece> pieces;
    for (size_t i = 0; i < Rig::kRows; i++) {
        rig.put_on_device(i, bytes_of(i, 3100));
        pieces.push_back(rig.piece(i));
    }
    REQUIRE(rig.device->gather(pieces.data(), pieces.size(), 0) == UCM_OK);
    for (size_t i = 0; i < Rig::kRows; i++) {
        REQUIRE(rig.in_slot(i) == bytes_of(i, 3100));
        rig.put_in_slot(i, bytes_of(100 + i, 3100));
    }
    REQUIRE(rig.device->scatter(pieces.data(), pieces.size(), 0) == UCM_OK);
    for (size_t i = 0; i < Rig::kRows; i++) REQUIRE(rig.on_device(i) == bytes_of(100 + i, 3100));
    REQUIRE(rig.cuda.wrong() == "");
    REQUIRE(rig.cuda.control->pinned_bytes() == Rig::kRows * 4096);
    REQUIRE(rig.cuda.control->depth() == 1);  // the caller's own context is current again
    rig.device.reset();
    REQUIRE(rig.released());
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: short shards leave the rest alone", "[device][cuda]") {
    Rig rig;
    const uint64_t length = GENERATE(0, 1, 3000, 3001);
    rig.put_on_device(0, bytes_of(1, 3100));
    rig.put_in_slot(0, Bytes(3100, 0xEE));
    const Piece piece = rig.piece(0, length);
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_OK);
    Bytes expected = bytes_of(1, 3100);
    std::fill(expected.begin() + int64_t(length), expected.end(), 0xEE);
    REQUIRE(rig.in_slot(0) == expected);
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: a dump waits for its event, and reads what was computed before it",
          "[device][cuda]") {
    Rig rig;
    const CUstream engine = rig.cuda.stream();
    rig.put_on_device(0, Bytes(3100, 0));
    const Bytes computed = bytes_of(9, 3000);
    rig.cuda.control->compute(engine, rig.segment(0, 0), computed.data(), 3000);
    const CUevent event = rig.cuda.record(engine);
    const Piece piece = rig.piece(0, 3000);
    SECTION("with the event") {
        REQUIRE(rig.device->gather(&piece, 1, handle(event)) == UCM_OK);
        REQUIRE(rig.in_slot(0, 3000) == computed);
        REQUIRE(rig.cuda.wrong() == "");
    }
    SECTION("without it the stand-in sees the race, which is what it is for") {
        REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_OK);
        REQUIRE(rig.in_slot(0, 3000) != computed);
        REQUIRE(rig.cuda.wrong().find("not awaited") != std::string::npos);
    }
}

TEST_CASE("CUDA: a load waits for its event before it writes", "[device][cuda]") {
    Rig rig;
    const CUstream engine = rig.cuda.stream();
    const Bytes computed(3000, 1), loaded = bytes_of(9, 3000);
    rig.cuda.control->compute(engine, rig.segment(0, 0), computed.data(), 3000);
    rig.put_in_slot(0, loaded);
    const Piece piece = rig.piece(0, 3000);
    REQUIRE(rig.device->scatter(&piece, 1, handle(rig.cuda.record(engine))) == UCM_OK);
    REQUIRE(rig.cuda.peek(rig.segment(0, 0), 3000) == loaded);
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: a handle that is no event of the device is INVALID, and nothing is copied",
          "[device][cuda]") {
    Rig rig;
    rig.put_on_device(0, bytes_of(1, 3100));
    rig.put_in_slot(0, Bytes(3100, 0xEE));
    const Piece piece = rig.piece(0);
    const CUevent gone = rig.cuda.record(rig.cuda.stream());
    rig.cuda.cuEventDestroy_v2(gone);
    REQUIRE(rig.device->gather(&piece, 1, handle(gone)) == UCM_INVALID);
    REQUIRE(rig.in_slot(0) == Bytes(3100, 0xEE));
    REQUIRE(rig.host.logged("prerequisite_handle"));
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_OK);  // the stream is as good as before
    REQUIRE(rig.in_slot(0) == bytes_of(1, 3100));
}

TEST_CASE("CUDA: threads copy at once over a bounded number of streams", "[device][cuda]") {
    Rig rig;
    std::atomic<int> bad{0};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < Rig::kRows; i++)
        threads.emplace_back([&rig, &bad, i] {
            const Piece piece = rig.piece(i);
            for (uint64_t k = 0; k < 50; k++) {
                const Bytes bytes = bytes_of(i * 100 + k, 3100);
                rig.put_in_slot(i, bytes);
                if (rig.device->scatter(&piece, 1, 0) != UCM_OK) bad++;
                rig.put_in_slot(i, Bytes(3100, 0));
                if (rig.device->gather(&piece, 1, 0) != UCM_OK) bad++;
                if (rig.in_slot(i) != bytes) bad++;
            }
            if (rig.cuda.control->depth()) bad++;  // these threads had no context of their own
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(bad == 0);
    REQUIRE(rig.cuda.control->streams() <= 8);
    REQUIRE(rig.cuda.wrong() == "");
    rig.device.reset();
    REQUIRE(rig.released());
}

TEST_CASE("CUDA: the same slot is read by several loads at once", "[device][cuda]") {
    Rig rig;
    const Bytes bytes = bytes_of(5, 3100);
    rig.put_in_slot(0, bytes);
    std::atomic<int> bad{0};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < Rig::kRows; i++)
        threads.emplace_back([&rig, &bad, i] {
            const Piece piece{rig.slot(0), rig.addresses[i], 3100};
            for (int k = 0; k < 50; k++) bad += rig.device->scatter(&piece, 1, 0) != UCM_OK;
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(bad == 0);
    for (size_t i = 0; i < Rig::kRows; i++) REQUIRE(rig.on_device(i) == bytes);
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: two stores of one process share the device", "[device][cuda]") {
    Rig rig;
    auto other = rig.open();
    rig.device.reset();
    other->pin(rig.memory.base(), 4096);
    rig.put_on_device(0, bytes_of(3, 3100));
    const Piece piece = rig.piece(0);
    REQUIRE(other->gather(&piece, 1, 0) == UCM_OK);
    REQUIRE(rig.in_slot(0) == bytes_of(3, 3100));
    other.reset();
    REQUIRE(rig.released());
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: slots are pinned range by range, and unpinned at the end", "[device][cuda]") {
    Rig rig(false);
    rig.device->pin(rig.slot(0), 4096);
    rig.device->pin(rig.slot(1), 3 * 4096);
    REQUIRE(rig.cuda.control->pinned_bytes() == 4 * 4096);
    rig.device->unpin(rig.slot(0), 4096);
    REQUIRE(rig.cuda.control->pinned_bytes() == 3 * 4096);
    rig.device->unpin(rig.slot(5), 4096);  // never pinned
    rig.device.reset();
    REQUIRE(rig.released());
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: where pinning fails copies work, and that is said once", "[device][cuda]") {
    Rig rig(false);
    rig.cuda.fail("cuMemHostRegister_v2", 304, 2);
    rig.device->pin(rig.slot(0), 4096);
    rig.device->pin(rig.slot(1), 4096);
    REQUIRE(rig.host.logged("CUDA_ERROR_OPERATING_SYSTEM"));
    REQUIRE(rig.host.lines().size() == 1);
    rig.put_on_device(0, bytes_of(1, 3100));
    const Piece piece = rig.piece(0);
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_OK);
    REQUIRE(rig.in_slot(0) == bytes_of(1, 3100));
    rig.device->unpin(rig.slot(0), 4096);
    rig.device.reset();
    REQUIRE(rig.released());
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: memory that others have pinned stays theirs", "[device][cuda]") {
    Rig rig(false);
    rig.cuda.cuMemHostRegister_v2(rig.memory.base(), Rig::kRows * 4096, 1);
    rig.device->pin(rig.slot(0), 4096);
    REQUIRE(rig.host.lines().empty());
    rig.device->unpin(rig.slot(0), 4096);
    rig.device.reset();
    REQUIRE(rig.cuda.control->pinned_bytes() == Rig::kRows * 4096);
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: after a failed copy nothing runs, and the next one works", "[device][cuda]") {
    Rig rig;
    std::vector<Piece> pieces;
    for (size_t i = 0; i < Rig::kRows; i++) {
        rig.put_on_device(i, bytes_of(i, 3100));
        pieces.push_back(rig.piece(i));
    }
    const auto [function, skip, status] = GENERATE(table<const char *, size_t, ucm_status>({
        {"cuMemcpyDtoHAsync_v2", 0, UCM_IO},
        {"cuMemcpyDtoHAsync_v2", 5, UCM_IO},
        {"cuStreamSynchronize", 0, UCM_IO},
        {"cuCtxPushCurrent_v2", 0, UCM_IO},
        {"cuStreamCreate", 0, UCM_IO},
    }));
    for (int k = 0; k < 2; k++) {
        rig.cuda.fail(function, 700, 1, skip);
        REQUIRE(rig.device->gather(pieces.data(), pieces.size(), 0) == status);
    }
    REQUIRE(rig.host.logged("CUDA_ERROR_ILLEGAL_ADDRESS"));
    REQUIRE(rig.host.lines().size() == 1);
    // The slots may be used for something else at once.
    for (size_t i = 0; i < Rig::kRows; i++) rig.put_in_slot(i, Bytes(3100, 0xEE));
    REQUIRE(rig.device->gather(pieces.data(), pieces.size(), 0) == UCM_OK);
    for (size_t i = 0; i < Rig::kRows; i++) REQUIRE(rig.in_slot(i) == bytes_of(i, 3100));
    REQUIRE(rig.cuda.wrong() == "");
    rig.device.reset();
    REQUIRE(rig.released());
}

TEST_CASE("CUDA: no memory for a stream is UNAVAILABLE", "[device][cuda]") {
    Rig rig;
    rig.cuda.fail("cuStreamCreate", 2);
    const Piece piece = rig.piece(0);
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_UNAVAILABLE);
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_OK);
}

TEST_CASE("CUDA: a copy whose end cannot be seen is PENDING, and none comes after it",
          "[device][cuda]") {
    Rig rig;
    const Piece piece = rig.piece(0);
    rig.cuda.fail("cuStreamSynchronize", 700, 2);
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_PENDING);
    REQUIRE(rig.host.logged("restart this process"));
    const size_t copies = rig.cuda.control->calls("cuMemcpyDtoHAsync_v2");
    REQUIRE(rig.device->gather(&piece, 1, 0) == UCM_UNAVAILABLE);
    REQUIRE(rig.device->scatter(&piece, 1, 0) == UCM_UNAVAILABLE);
    REQUIRE(rig.cuda.control->calls("cuMemcpyDtoHAsync_v2") == copies);
    SECTION("what the copy needs stays, also after the end") {
        rig.device->unpin(rig.memory.base(), Rig::kRows * 4096);
        rig.device.reset();
        REQUIRE(rig.cuda.control->pinned_bytes() == Rig::kRows * 4096);
        REQUIRE(rig.cuda.wrong() == "");
    }
}

TEST_CASE("CUDA: a device that cannot be had is refused by what is missing", "[device][cuda]") {
    Rig rig;
    SECTION("there are not so many") {
        rig.layout.c.device = GENERATE(-1, 2);
        const std::string said = refusal(rig.layout.c, UCM_UNAVAILABLE);
        REQUIRE(said.find("device_id: " + std::to_string(rig.layout.c.device)) !=
                std::string::npos);
        REQUIRE(said.find("2 CUDA devices") != std::string::npos);
    }
    SECTION("the driver says no") {
        const char *function =
            GENERATE("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDevicePrimaryCtxRetain");
        rig.cuda.fail(function, 100);
        const std::string said = refusal(rig.layout.c, UCM_UNAVAILABLE);
        REQUIRE(said.find(function) != std::string::npos);
        REQUIRE(said.find("CUDA_ERROR_NO_DEVICE") != std::string::npos);
        REQUIRE(said.find("nvidia-smi") != std::string::npos);
    }
    rig.device.reset();
    REQUIRE(rig.released());
}

TEST_CASE("the stand-in finds what a correct program never does", "[device][cuda]") {
    Rig rig;
    const Cuda &cuda = rig.cuda;
    const CUstream stream = cuda.stream();
    CUcontext other;
    cuda.cuDevicePrimaryCtxRetain(&other, 1);
    const auto to_host = [&] {
        return cuda.cuMemcpyDtoHAsync_v2(rig.slot(0), rig.rows, 100, stream);
    };
    const auto to_device = [&] {
        return cuda.cuMemcpyHtoDAsync_v2(rig.rows, rig.slot(0), 100, stream);
    };
    const auto wait = [&] { cuda.cuStreamSynchronize(stream); };
    struct Wrong {
        const char *said;
        std::function<void()> does;
    };
    const Wrong wrongs[] = {
        {"before cuInit", [&] { cuda.control->reset(), cuda.cuDevicePrimaryCtxRetain(&other, 0); }},
        {"no current context", [&] { cuda.cuCtxPopCurrent_v2(&other), to_host(); }},
        {"another context", [&] { cuda.cuCtxPushCurrent_v2(other), to_host(); }},
        {"no such context", [&] { cuda.cuCtxPushCurrent_v2(nullptr); }},
        {"no such stream", [&] { cuda.cuStreamDestroy_v2(stream), to_host(); }},
        {"blocks others",
         [&] {
             CUstream made;
             cuda.cuStreamCreate(&made, 0);
         }},
        {"not device memory",
         [&] { cuda.cuMemcpyHtoDAsync_v2(rig.rows + 32760, rig.slot(0), 9, stream); }},
        {"not pinned", [&] { cuda.cuMemcpyDtoHAsync_v2(&other, rig.rows, 8, stream); }},
        {"it is not pinned", [&] { cuda.cuMemHostUnregister(rig.slot(1)); }},
        {"not been waited for", [&] { to_host(), cuda.cuMemHostUnregister(rig.slot(0)); }},
        {"cuMemFree: a copy", [&] { to_host(), cuda.cuMemFree_v2(rig.rows); }},
        {"not been waited for", [&] { to_host(), cuda.cuStreamDestroy_v2(stream); }},
        {"another copy of this host memory", [&] { to_host(), to_device(); }},
        {"written before the copy", [&] { to_host(), rig.slot(0)[5] = 1, wait(); }},
        {"changed before the copy", [&] { to_device(), rig.slot(0)[5] ^= 1, wait(); }},
        {"peek", [&] { to_device(), cuda.peek(rig.rows, 1); }},
        {"never recorded",
         [&] { cuda.cuStreamWaitEvent(stream, cuda.record(nullptr), 0), wait(); }},
        {"a stream of it is left",
         [&] {
             rig.device.reset();
             cuda.cuCtxPopCurrent_v2(&other);
             cuda.cuDevicePrimaryCtxRelease_v2(0);
         }},
    };
    const size_t i = GENERATE(range(size_t(0), size_t(18)));
    REQUIRE(std::size(wrongs) == 18);
    wrongs[i].does();
    CAPTURE(wrongs[i].said);
    REQUIRE(cuda.wrong().find(wrongs[i].said) != std::string::npos);
    REQUIRE(cuda.control->violations() == 1);
    cuda.control->reset();  // before the device, which is one of a driver that is gone
}

TEST_CASE("CUDA: a task whose event is late holds nobody else up", "[device][cuda]") {
    DeviceStack rig(make_ids(4));
    REQUIRE(rig.dump(4).wait() == UCM_OK);
    std::vector<Move *> late;
    rig.cuda.control->stall(rig.engine, 1);
    for (const size_t i : {0, 1, 4})  // two that are below, one that is here
        late.push_back(&rig.load(i, rig.computed(i, Bytes(rig.kBytes, 0xEE))));
    for (const size_t i : {5, 6}) late.push_back(&rig.dump(i, rig.computed(i, rig.expected(i))));

    // Others are not late, and not wrong: a copy before its event is a race, which the stand-in
    // sees.
    REQUIRE(rig.dump(7).wait(30000) == UCM_OK);
    for (const size_t i : {2, 7}) {
        REQUIRE(rig.load(i).wait(30000) == UCM_OK);
        REQUIRE(rig.cuda.peek(rig.row(i), rig.kBytes) == rig.expected(i));
    }
    ucm_report report{};
    REQUIRE(rig.stack->drain(&report, 0) == UCM_PENDING);
    REQUIRE(report.pending >= 2);
    for (Move *move : late) REQUIRE_FALSE(move->finished());

    rig.cuda.control->stall(rig.engine, 0);
    for (Move *move : late) REQUIRE(move->wait() == UCM_OK);
    for (const size_t i : {0, 1, 4})
        REQUIRE(rig.cuda.peek(rig.row(i), rig.kBytes) == rig.expected(i));
    REQUIRE(rig.stack->drain() == UCM_OK);
    for (const size_t i : {5, 6}) REQUIRE(rig.memory->stored(make_id(i), 0) == rig.expected(i));
    rig.stack.reset();
    REQUIRE(rig.cuda.wrong() == "");
}

TEST_CASE("CUDA: a deadline, a cancel and a remove do not wait for an event", "[device][cuda]") {
    DeviceStack rig(make_ids(4));
    rig.cuda.control->stall(rig.engine, 1);
    const CUevent event = rig.computed(8, Bytes(rig.kBytes, 0xEE));
    for (const bool dump : {false, true}) {
        const auto start = [&](size_t i, int64_t deadline_ns) {
            Move &move = rig.move(i, event);
            move.transfer.deadline_ns = deadline_ns;
            REQUIRE((dump ? move.dump() : move.load()) == UCM_OK);
            return &move;
        };
        REQUIRE(start(0, ucm::monotonic_ns() + 20000000)->wait(30000) == UCM_TIMEOUT);
        Move *const stopped = start(1, 0);
        REQUIRE(ucm_cancel(rig.stack->top(), stopped->task, nullptr) == UCM_OK);
        REQUIRE(stopped->wait(30000) == UCM_CANCELLED);
    }
    Move &removed = rig.dump(5, event), &kept = rig.dump(6, event);
    REQUIRE(rig.stack->remove({make_id(5)}) == UCM_OK);
    REQUIRE(removed.wait(30000) == UCM_CANCELLED);
    REQUIRE_FALSE(kept.finished());
    rig.cuda.control->stall(rig.engine, 0);
    REQUIRE(kept.wait() == UCM_OK);
    ucm_report report{};
    REQUIRE(rig.stack->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(rig.stack->lookup({make_id(5), make_id(6)}) == std::vector<bool>({false, true}));
    rig.stack.reset();
    REQUIRE(rig.cuda.wrong() == "");
}

// Run by the next one, with another driver.
TEST_CASE("what is said without a driver", "[.][without_driver]") {
    const DeviceLayout layout({8}, UCM_MEMORY_CUDA, 0);
    printf("%s\n", refusal(layout.c, UCM_UNAVAILABLE).c_str());
}

TEST_CASE("CUDA: a driver that is missing or too old is named", "[device][cuda]") {
    TempDir directory;
    const std::string library = directory.path() + "/libcuda.so.1";
    const char *expected = nullptr;
    SECTION("it cannot be opened") {
        std::ofstream(library) << "no library";
        expected = "install the NVIDIA driver";
    }
    SECTION("it lacks a function") {
        std::filesystem::copy(plugin_path("Empty"), library);
        expected = "libcuda.so.1 has no cu";
    }
    const std::string self = std::filesystem::read_symlink("/proc/self/exe");
    const std::string command =
        "LD_LIBRARY_PATH='" + directory.path() + "' '" + self + "' '[without_driver]' 2>&1";
    FILE *child = popen(command.c_str(), "r");
    std::string said;
    char line[4096];
    while (fgets(line, sizeof line, child)) said += line;
    CAPTURE(said);
    REQUIRE(pclose(child) == 0);
    REQUIRE(said.find("libcuda.so.1") != std::string::npos);
    REQUIRE(said.find(expected) != std::string::npos);
}
