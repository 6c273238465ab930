// SPDX-License-Identifier: MIT
//
// Named places where a test build (-Dfailpoints=true) can be made to die or to dawdle; nothing
// otherwise. UCM_FAILPOINTS="posix.before_publish=crash@3;cache.filled=delay:50" kills the process
// with SIGKILL at the third passage, and waits 50 ms at every passage; "delay:50@2" at the second.
#pragma once

#ifndef UCM_FAILPOINTS_COMPILED_IN
#define UCM_FAILPOINT(name) static_cast<void>(0)
#else

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <string>
#include <string_view>

// The literal has a head, so that names can be found in a library.
#define UCM_FAILPOINT(name)                                                          \
    do {                                                                             \
        static_assert(::ucm::failpoint::known(name), name " is not in failpoint.h"); \
        ::ucm::failpoint::pass("failpoint " name);                                   \
    } while (false)

namespace ucm::failpoint {

constexpr std::string_view kNames[] = {
    "posix.writer_made",        // its folder is locked
    "posix.temporary_made",     // empty
    "posix.payload_written",    // of some shards
    "posix.before_header",      // all payload is there
    "posix.header_written",     //
    "posix.before_publish",     // closed
    "posix.published",          // in its place
    "posix.ring_made",          // the file `recent`, beside its place
    "posix.ring_records",       // of changes, not counted yet
    "posix.ring_appended",      // locked still
    "posix.before_discard",     // of a temporary file, whatever became of it
    "posix.before_quarantine",  //
    "posix.quarantined",        //
    "posix.before_remove",      // of a published block
    "posix.removed",            //
    "ledger.locked",            //
    "ledger.changed",           // in memory
    "ledger.page_written",      // the account is not
    "ledger.before_leave",      //
    "gc.locked",                // nobody else collects
    "gc.walked",                // not yet written down
    "gc.counted",               //
    "gc.before_evict",          // of each block
    "gc.evicted",               // not yet subtracted
    "compress.framed",          // the frames of a dump
    "compress.before_decode",   // of a frame that was read
    "cache.reserved",           // a slot for a dump
    "cache.filled",             // that slot
    "cache.started",            // a record is in the index, with nothing in it
    "cache.published",          // a block is whole and visible
    "cache.before_write_back",  //
    "cache.handed_down",        // the store below has accepted it
    "cache.stored",             // the store below has it
    "cache.settled",            // clean, in no queue yet
    "cache.before_fill",        // slots are reserved for a load
    "cache.arrived",            // a shard from below
    "cache.kept",               // that shard
    "cache.detached",           // a record is a zombie
    "cache.released",           // a record is free, in no list yet
    "cache.spilled",            // an unfinished block is there twice
    "cache.unspilled",          // so it is here
    "cache.adopted",            // a block of the dead
    "segment.made",             // an empty file
    "segment.before_ready",     // all but that it says so
    "segment.grown",            // memory for frames that nobody knows of
    "segment.moved",            // the mutex is another namespace's no more, and nobody's yet
    "segment.left",             // a member has gone, its lock has not
    "segment.before_unlink",    // it says that it is removed
};

constexpr bool known(std::string_view name) {
    for (std::string_view each : kNames)
        if (each == name) return true;
    return false;
}

struct Point {
    std::string name;
    bool crash = false;
    long delay_ms = 0;
    unsigned long at = 0;  // 0: every passage
    std::atomic<unsigned long> passed{0};

    explicit Point(const std::string &text) : name(text.substr(0, text.find('='))) {
        const std::string action = text.substr(std::min(name.size() + 1, text.size()));
        char tail = 0;
        crash = action == "crash" || sscanf(action.c_str(), "crash@%lu%c", &at, &tail) == 1;
        if (crash && at == 0) at = 1;
        if (crash || sscanf(action.c_str(), "delay:%ld@%lu%c", &delay_ms, &at, &tail) == 2 ||
            sscanf(action.c_str(), "delay:%ld%c", &delay_ms, &tail) == 1)
            return;
        fprintf(stderr, "UCM_FAILPOINTS: \"%s\": write NAME=crash@K or NAME=delay:MS\n",
                text.c_str());
        abort();
    }

    void pass() {
        const unsigned long now = ++passed;
        if (at && now != at) return;
        if (crash) kill(getpid(), SIGKILL);
        const timespec time{delay_ms / 1000, delay_ms % 1000 * 1000000};
        nanosleep(&time, nullptr);
    }
};

inline std::list<Point> read_points() {
    std::list<Point> points;
    const char *text = getenv("UCM_FAILPOINTS");
    const std::string all = text ? text : "";
    for (size_t at = 0; at < all.size();) {
        const size_t end = std::min(all.find(';', at), all.size());
        if (end > at) points.emplace_back(all.substr(at, end - at));
        at = end + 1;
    }
    return points;
}

inline void pass(std::string_view literal) {
    static auto *points = new std::list<Point>(read_points());  // threads may outlive statics
    for (Point &point : *points)
        if (literal.substr(literal.find(' ') + 1) == point.name) point.pass();
}

}  // namespace ucm::failpoint

#endif
