// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "files/medium.h"

namespace ucm::ds3fs {

// What it counts, after those of every store of block files.
enum MediumMetric {
    kRequests,
    kRunning,
    kStuck,
    kGivenUp,
    kSubmits,
    kBufferedBytes,
    kRegistrations,
    kRegistered,
    kMediumMetrics
};

struct Settings {
    std::string library;
    size_t requests = 1;      // under way at once, of loads and of dumps
    size_t ring_entries = 1;  // requests of one thread
    int numa = -1;
    int64_t request_ms = 0;
    bool zero_copy = false;
};

// Files of one mount of 3FS, through its daemon.
class UsrbioMedium final : public files::Medium {
  public:
    // Throws where there is no library, or a directory is on no mount of 3FS.
    UsrbioMedium(const Settings &settings, const ucm_value &directories, const Logger &log);

    std::string start(bool direct, uint64_t header_bytes) override;
    size_t load_threads() const override { return threads_; }
    size_t dump_threads() const override { return threads_; }
    std::unique_ptr<files::Engine> engine(bool loads) override;

    int open(const std::string &path, int flags, ForkClosed &fd) override {
        return shared_.descriptors.open(path, flags, fd);
    }
    int close(ForkClosed &fd) override { return shared_.descriptors.close(fd); }
    void deleted(const std::string &path) override { shared_.descriptors.drop_idle(path); }
    void full() override { shared_.descriptors.drop_idle(); }
    bool sizes_lag() const override { return true; }
    bool take_memory(void *base, uint64_t bytes) override {
        return settings_.zero_copy &&
               shared_.memory.add(shared_.mount_point, base, bytes, shared_.log);
    }
    void release_memory(void *base, uint64_t bytes) override { shared_.memory.remove(base, bytes); }
    void tidy() override {
        shared_.links.look();
        shared_.descriptors.tidy();
    }
    void count(uint64_t *values, size_t most) const override;

  private:
    void find_mount(const ucm_value &directories);

    const Settings settings_;
    Shared shared_;
    size_t threads_ = 0;
    uint64_t slot_bytes_ = 0;
};

// Of a store for lookup only: it moves nothing, and needs no library.
class NoMedium final : public files::Medium {
  public:
    std::string start(bool, uint64_t) override { return ""; }
    size_t load_threads() const override { return 0; }
    size_t dump_threads() const override { return 0; }
    std::unique_ptr<files::Engine> engine(bool) override { return nullptr; }
    bool sizes_lag() const override { return true; }
};

}  // namespace ucm::ds3fs
