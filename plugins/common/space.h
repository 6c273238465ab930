// SPDX-License-Identifier: MIT
//
// Spaces: the blocks in a storage directory that may share. A store uses one of them, so that
// blocks of another model, layout or encoding are not even seen. See docs/block-format.md.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "access.h"
#include "block_file.h"
#include "log.h"
#include "writer_lock.h"

namespace ucm {

// What tells one space from another.
struct SpaceIdentity {
    std::string label, model, fingerprint;  // label: the option namespace
    uint32_t shards_per_block = 0;          // 0: known for lookup only, without a layout
    uint64_t raw_capacity = 0;
    std::string encoding;

    // Throws where a name cannot stand in a path or a line.
    void check() const;
    std::string lines() const;
    SpaceId id() const;
};

// One space in one storage directory.
class Space {
  public:
    Space(const std::string &directory, const SpaceIdentity &identity);

    const SpaceId &id() const { return id_; }
    const std::string &path() const { return path_; }
    // "<namespace>/<32 hex>", where it is in its directory.
    const std::string &below() const { return below_; }
    // What files of it are called in a folder for all spaces.
    const std::string &name() const { return name_; }
    // False: it is not there, or its manifest is torn. Throws where it is another's or unreadable.
    bool there() const;
    // Makes it where it is not there. Nobody ever sees it without its manifest.
    void ensure(WriterFolder &writer, const Access &access, const char *software) const;
    // Of a new space: what differs from its neighbours, so that a misspelling is noticed.
    void tell_neighbours(const Logger &log) const;

  private:
    bool put_in_place(const std::string &aside, WriterFolder &writer, const Access &access) const;

    std::string lines_, below_, namespace_path_, path_, name_;
    SpaceId id_;
};

// For a handle without a layout: the space of this namespace and model, as long as there is one.
class SpaceFinder {
  public:
    SpaceFinder(std::vector<std::string> directories, const SpaceIdentity &wanted,
                const Logger &log);

    // "<namespace>/<32 hex>" below each directory; "": there is none, or several.
    std::string current();
    // To be called after a miss; lists anew at most every 100 ms. True: the answer has changed.
    bool look_again();

  private:
    std::string look();

    const std::vector<std::string> directories_;
    const SpaceIdentity wanted_;
    const Logger &log_;
    std::mutex mutex_;  // guards all below
    std::string current_;
    int64_t looked_ns_ = 0;
    bool warned_ = false;
};

// Makes an empty folder with the right mode from the start; 0 also where there is one already.
int place_folder(const std::string &path, WriterFolder &writer, const Access &access);

// Whoever removed a space deletes it as well; later somebody else goes on.
constexpr int64_t kTrashAgeNs = 60ll * 1000000000;
// Deletes removed spaces in which nothing has changed for so long, a bounded number of files.
void sweep_trash(const std::string &directory, int64_t age_ns = kTrashAgeNs);

}  // namespace ucm
